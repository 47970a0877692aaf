"""Q1_0: the sign of a weight, and one scale for 128."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, in_order
from qlab.gguf.blocks.base import (
    BlockType,
    halves,
    join,
    pack_bits,
    read_half,
    register,
    unpack_bits,
)


@register
class Q1_0(BlockType):
    """128 weights in 18 bytes, 1.125 bits each: w = d where the bit is 1, else -d::

        byte   0  1  2                   3              ...  17
               d     bits of w0 .. w7    w8 .. w15           w120 .. w127

    d is float16, the mean magnitude: the best scale for given signs.
    """

    name, type_id, block_size, block_bytes = "Q1_0", 41, 128, 18

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        return join(*halves(in_order(np.abs(x)) / f32(128)), pack_bits(x >= 0))

    @classmethod
    def decode(cls, data: Array) -> Array:
        d = read_half(data, 0)[:, None]
        return np.where(unpack_bits(data[:, 2:]) == 1, d, -d)
