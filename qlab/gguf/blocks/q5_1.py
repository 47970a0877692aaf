"""Q5_1: five bits, a scale and a minimum for 32 weights."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array
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
from qlab.gguf.blocks.q4_1 import affine_codes


@register
class Q5_1(BlockType):
    """32 weights in 24 bytes, 6 bits each: w = d · q + m::

        byte   0  1  2  3  4 .. 7               8          ...  23
               d     m     bit 4 of q0 .. q31   q0 | q16        q15 | q31     (low | high four bits)

    d and m are float16. m is the smallest weight, which gets code 0; the largest gets 31.
    """

    name, type_id, block_size, block_bytes = "Q5_1", 7, 32, 24
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, d, m = affine_codes(x, importance, 31)
        return join(*halves(d, m), pack_bits(codes >> 4 & 1), pack_nibbles(codes & 15))

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = unpack_nibbles(data[:, 8:]) | unpack_bits(data[:, 4:8]) << 4
        d, m = read_half(data, 0), read_half(data, 2)
        return codes.astype(np.float32) * d[:, None] + m[:, None]
