"""IQ3_S: four weights in nine bits and four signs, on a grid of 512 points."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32
from qlab.gguf.blocks._grids import grid, nibbles, signs
from qlab.gguf.blocks.base import BlockType, read_half, register, unpack_bits


@register
class IQ3_S(BlockType):
    """256 weights in 110 bytes, 3.4375 bits each: w = d · (1 + 2 s) · sign · GRID[g]::

        byte   0  1  2 .. 65              66 .. 73                74 .. 105     106 .. 109
               d     low eight bits of    ninth bit of each g,    eight sign    8 s, four bits
                     g of 64 fours        eight a byte            bits each     each, low first

    d is float16. 32 weights share s. All signs are free.
    """

    name, type_id, block_size, block_bytes = "IQ3_S", 21, 256, 110
    can_encode, uses_importance = False, True

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = data[:, 2:66] | unpack_bits(data[:, 66:74]).astype(np.uint16) << 8
        step = read_half(data, 0)[:, None] * (f32(1) + f32(2) * nibbles(data[:, 106:]))
        points = grid("IQ3_S")[codes].reshape(-1, 8, 4, 8)
        sign = signs(data[:, 74:106].reshape(-1, 8, 4))
        return (step[..., None, None] * points * sign).reshape(-1, 256)
