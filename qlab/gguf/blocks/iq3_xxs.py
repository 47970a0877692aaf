"""IQ3_XXS: four weights a byte, on a grid of 256 points."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32
from qlab.gguf.blocks._grids import EVEN_SIGNS, grid, signs, words
from qlab.gguf.blocks.base import BlockType, read_half, register


@register
class IQ3_XXS(BlockType):
    """256 weights in 98 bytes, 3.0625 bits each: w = d · (s + 1/2) / 2 · sign · GRID[g]::

        byte   0  1  2 .. 65              66 .. 97
               d     g of 64 fours        8 words of 32 bits: seven sign bits of each of four
                                          eights (low first), then s, four bits

    d is float16. 32 weights share s. The eighth sign makes the number of minus signs even.
    """

    name, type_id, block_size, block_bytes = "IQ3_XXS", 18, 256, 98
    can_encode, uses_importance = False, True

    @classmethod
    def decode(cls, data: Array) -> Array:
        word = words(data[:, 66:], "<u4")
        step = read_half(data, 0)[:, None] * (f32(0.5) + (word >> 28).astype(np.float32)) * f32(0.5)
        points = grid("IQ3_XXS")[data[:, 2:66]].reshape(-1, 8, 4, 8)
        sevens = word[..., None] >> np.array([0, 7, 14, 21], np.uint32) & 127
        return (step[..., None, None] * points * signs(EVEN_SIGNS[sevens])).reshape(-1, 256)
