"""Q5_0: five bits and one scale for 32 weights."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32
from qlab.gguf.blocks.base import (
    BlockType,
    halves,
    join,
    pack_bits,
    pack_nibbles,
    read_half,
    register,
    unpack_bits,
    unpack_nibbles,
)
from qlab.gguf.blocks.q4_0 import symmetric_codes


@register
class Q5_0(BlockType):
    """32 weights in 22 bytes, 5.5 bits each: w = d · (q - 16)::

        byte   0  1  2 .. 5                6          ...  21
               d     bit 4 of q0 .. q31    q0 | q16        q15 | q31     (low | high four bits)

    d is float16. The weight of largest magnitude gets code 0.
    """

    name, type_id, block_size, block_bytes = "Q5_0", 6, 32, 22
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, d = symmetric_codes(x, importance, 16)
        return join(*halves(d), pack_bits(codes >> 4 & 1), pack_nibbles(codes & 15))

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = unpack_nibbles(data[:, 6:]) | unpack_bits(data[:, 2:6]) << 4
        return (codes.astype(np.float32) - f32(16)) * read_half(data, 0)[:, None]
