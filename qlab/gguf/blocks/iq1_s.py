"""IQ1_S: eight ternary weights in eleven bits, on a grid of 2048 points."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, importance_weights
from qlab.gguf.blocks._grids import energy, grid, quantizer_grid, sub_scales, words
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.searches.ternary import SHIFT, ternary_search


@register
class IQ1_S(BlockType):
    """256 weights in 50 bytes, 1.5625 bits each: w = d · (2 s + 1) · (GRID[g] ± 1/8)::

        byte   0  1  2 .. 33              34 .. 49
               d     low eight bits of    8 words of 16 bits: upper three bits of each of four g
                     g of 32 eights       (low first), s (three bits), and 1 for minus 1/8

    d is float16. A point is eight of -1, 0, 1. 32 weights share s and the shift by an eighth, which
    lets three levels lie unevenly around 0.
    """

    name, type_id, block_size, block_bytes = "IQ1_S", 19, 256, 50
    uses_importance = needs_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        weights = importance_weights(x, importance, energy(x, 2)[..., None])
        points, shifts, scales = ternary_search(
            x.reshape(-1, 32),
            weights.reshape(-1, 32),
            quantizer_grid(cls.name),
            halves=False,
            threshold=1e-12,
        )
        d, s = sub_scales(scales.reshape(-1, 8), 8)
        points = points.reshape(-1, 8, 4)
        word = ((points >> 8) << np.array([0, 3, 6, 9])).sum(axis=-1)
        word |= np.where(d[:, None] == 0, 0, s | shifts.reshape(-1, 8, 4)[..., 0] << 3) << 12
        # An eighth more than the scale of the largest group: better on average.
        packed = join(
            *halves(d * f32(1.125)),
            (points & 255).reshape(-1, 32),
            word.astype("<u2").view(np.uint8),
        )
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        word = words(data[:, 34:], "<u2")
        high = word[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7
        codes = data[:, 2:34].reshape(-1, 8, 4) | high << 8
        step = read_half(data, 0)[:, None] * ((word >> 12 & 7) * 2 + 1).astype(np.float32)
        shift = np.where(word >> 15 == 0, SHIFT, -SHIFT)[..., None, None]
        return (step[..., None, None] * (grid("IQ1_S")[codes] + shift)).reshape(-1, 256)
