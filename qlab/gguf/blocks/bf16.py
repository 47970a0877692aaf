"""BF16: the upper half of a float32."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks.base import BlockType, register


@register
class BF16(BlockType):
    """One weight, two bytes: the upper 16 bits of its float32, rounded half to even::

    bit   15  14..7  6..0
          s   exp    mantissa
    """

    name, type_id, block_size, block_bytes = "BF16", 30, 1, 2

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        # Add just under half of the last kept bit, and one more where that bit is 1: half to even.
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
        return rounded.astype("<u2").view(np.uint8)

    @classmethod
    def decode(cls, data: Array) -> Array:
        upper = np.ascontiguousarray(data).view("<u2").astype(np.uint32)
        return (upper << 16).view(np.float32)
