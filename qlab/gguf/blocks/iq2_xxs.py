"""IQ2_XXS: eight weights a byte, on a grid of 256 points."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32
from qlab.gguf.blocks._grids import EVEN_SIGNS, grid, signs, words
from qlab.gguf.blocks.base import BlockType, read_half, register


@register
class IQ2_XXS(BlockType):
    """256 weights in 66 bytes, 2.0625 bits each: w = d · (s + 1/2) / 4 · sign · GRID[g]::

        byte   0  1  2 .. 5         6 .. 9 (one word, low bit first)             10 .. 65
               d     g of four      seven sign bits of each of the four,         seven more
                     eights         then s, four bits

    d is float16. 32 weights share s. The eighth sign of an eight makes the number of minus signs
    even: the quantizer flips a sign where it has to.
    """

    name, type_id, block_size, block_bytes = "IQ2_XXS", 16, 256, 66
    can_encode, uses_importance, needs_importance = False, True, True

    @classmethod
    def decode(cls, data: Array) -> Array:
        pairs = words(data[:, 2:], "<u4").reshape(-1, 8, 2)
        step = read_half(data, 0)[:, None] * (f32(0.5) + (pairs[..., 1] >> 28).astype(np.float32))
        points = grid("IQ2_XXS")[words(pairs[..., 0], "u1").reshape(-1, 8, 4)]
        sevens = pairs[..., 1, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
        scaled = (step * f32(0.25))[..., None, None] * points
        return (scaled * signs(EVEN_SIGNS[sevens])).reshape(-1, 256)
