"""IQ2_XXS: eight weights a byte, on a grid of 256 points."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, importance_weights
from qlab.gguf.blocks._grids import (
    EVEN_SIGNS,
    energy,
    grid,
    pack_sevens,
    quantizer_grid,
    signs,
    sub_scales,
    words,
)
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.searches.grid import grid_search


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
    uses_importance = needs_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        weights = importance_weights(x, importance, energy(x, 1)[..., None])
        points, sign, scales = grid_search(
            x.reshape(-1, 32),
            weights.reshape(-1, 32),
            quantizer_grid(cls.name),
            even=True,
            reach=6,
            width=0.1,
            threshold=1e-15,
            again="always",
        )
        d, s = sub_scales(scales.reshape(-1, 8), 16)
        zero = (d == 0)[:, None, None]
        low = np.where(zero, 0, points.reshape(-1, 8, 4)).astype(np.uint8)
        high = pack_sevens(np.where(zero, 0, sign.reshape(-1, 8, 4)), s)
        pairs = np.concatenate([low, high], axis=-1).reshape(len(d), -1)
        return join(*halves(d), pairs).reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        pairs = words(data[:, 2:], "<u4").reshape(-1, 8, 2)
        step = read_half(data, 0)[:, None] * (f32(0.5) + (pairs[..., 1] >> 28).astype(np.float32))
        points = grid("IQ2_XXS")[words(pairs[..., 0], "u1").reshape(-1, 8, 4)]
        sevens = pairs[..., 1, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
        scaled = (step * f32(0.25))[..., None, None] * points
        return (scaled * signs(EVEN_SIGNS[sevens])).reshape(-1, 256)
