"""F32: float32 as it is."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks.base import BlockType, register


@register
class F32(BlockType):
    """One weight, four bytes, little-endian::

    byte  0  1  2  3
          └── w ──┘
    """

    name, type_id, block_size, block_bytes = "F32", 0, 1, 4

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        return np.ascontiguousarray(x, "<f4").view(np.uint8)

    @classmethod
    def decode(cls, data: Array) -> Array:
        return np.ascontiguousarray(data).view("<f4").astype(np.float32)
