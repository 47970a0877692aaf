"""F16: half precision."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, from_half, to_half
from qlab.gguf.blocks.base import BlockType, register


@register
class F16(BlockType):
    """One weight, two bytes: sign, 5 bits of exponent, 10 of mantissa::

        bit   15  14..10  9..0
              s   exp     mantissa

    Rounded half to even; magnitudes from 65520 up become infinity.
    """

    name, type_id, block_size, block_bytes = "F16", 1, 1, 2

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        return np.ascontiguousarray(to_half(x)).view(np.uint8)

    @classmethod
    def decode(cls, data: Array) -> Array:
        return from_half(np.ascontiguousarray(data).view("<u2"))
