"""F64 and the integers: tensors that a file may hold beside weights. Read, never quantized."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks.base import BlockType, register


class _Plain(BlockType):
    block_size = 1
    can_encode = False
    dtype: ClassVar[str]

    @classmethod
    def decode(cls, data: Array) -> Array:
        return np.ascontiguousarray(data).view(cls.dtype).astype(np.float32)


@register
class F64(_Plain):
    """One value, eight bytes, little-endian float64."""

    name, type_id, block_bytes, dtype = "F64", 28, 8, "<f8"


@register
class I8(_Plain):
    """One value, one byte."""

    name, type_id, block_bytes, dtype = "I8", 24, 1, "i1"


@register
class I16(_Plain):
    """One value, two bytes, little-endian."""

    name, type_id, block_bytes, dtype = "I16", 25, 2, "<i2"


@register
class I32(_Plain):
    """One value, four bytes, little-endian."""

    name, type_id, block_bytes, dtype = "I32", 26, 4, "<i4"


@register
class I64(_Plain):
    """One value, eight bytes, little-endian."""

    name, type_id, block_bytes, dtype = "I64", 27, 8, "<i8"
