"""IQ3_XXS: four weights a byte, on a grid of 256 points."""

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
class IQ3_XXS(BlockType):
    """256 weights in 98 bytes, 3.0625 bits each: w = d · (s + 1/2) / 2 · sign · GRID[g]::

        byte   0  1  2 .. 65              66 .. 97
               d     g of 64 fours        8 words of 32 bits: seven sign bits of each of four
                                          eights (low first), then s, four bits

    d is float16. 32 weights share s. The eighth sign makes the number of minus signs even.
    """

    name, type_id, block_size, block_bytes = "IQ3_XXS", 18, 256, 98
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        weights = x * x
        if importance is not None:
            weights = importance_weights(x, importance, energy(x, 2)[..., None])
        points, sign, scales = grid_search(
            x.reshape(-1, 32),
            weights.reshape(-1, 32),
            quantizer_grid(cls.name),
            even=True,
            reach=15,
            width=0.2,
            threshold=1e-8,
            again="off",
        )
        d, s = sub_scales(scales.reshape(-1, 8), 16)
        zero = d == 0
        points = np.where(zero[:, None], 0, points.reshape(-1, 64))
        packed = pack_sevens(np.where(zero[:, None, None], 0, sign.reshape(-1, 8, 4)), s)
        # A little more than the scale of the largest group: better on average.
        packed = join(*halves(d * f32(1.0125)), points, packed.reshape(-1, 32))
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        word = words(data[:, 66:], "<u4")
        step = read_half(data, 0)[:, None] * (f32(0.5) + (word >> 28).astype(np.float32)) * f32(0.5)
        points = grid("IQ3_XXS")[data[:, 2:66]].reshape(-1, 8, 4, 8)
        sevens = word[..., None] >> np.array([0, 7, 14, 21], np.uint32) & 127
        return (step[..., None, None] * points * signs(EVEN_SIGNS[sevens])).reshape(-1, 256)
