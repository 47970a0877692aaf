"""IQ2_XS: eight weights in sixteen bits, on a grid of 512 points."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, importance_weights
from qlab.gguf.blocks._grids import (
    EVEN_SIGNS,
    energy,
    grid,
    nibbles,
    pack_pairs,
    quantizer_grid,
    signs,
    sub_scales,
    words,
)
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.searches.grid import grid_search


@register
class IQ2_XS(BlockType):
    """256 weights in 74 bytes, 2.3125 bits each: w = d · (s + 1/2) / 4 · sign · GRID[g]::

        byte   0  1  2 .. 65                                66 .. 73
               d     32 words of 16 bits: g (nine, low),    16 s, four bits each, low first
                     seven sign bits

    d is float16. 16 weights share s. The eighth sign makes the number of minus signs even.
    """

    name, type_id, block_size, block_bytes = "IQ2_XS", 17, 256, 74
    uses_importance = needs_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        weights = importance_weights(x, importance, energy(x, 1)[..., None])
        points, sign, scales = grid_search(
            x.reshape(-1, 16),
            weights.reshape(-1, 16),
            quantizer_grid(cls.name),
            even=True,
            reach=9,
            width=0.1,
            threshold=1e-15,
            again="off",
        )
        d, s = sub_scales(scales.reshape(-1, 16), 16)
        codes = (points | sign.astype(np.int64) << 9).reshape(-1, 32)
        codes = np.where(d[:, None] == 0, 0, codes).astype("<u2").view(np.uint8)
        return join(*halves(d), codes, pack_pairs(s)).reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = words(data[:, 2:66], "<u2").reshape(-1, 16, 2)
        step = read_half(data, 0)[:, None] * (f32(0.5) + nibbles(data[:, 66:])) * f32(0.25)
        scaled = step[..., None, None] * grid("IQ2_XS")[codes & 511]
        return (scaled * signs(EVEN_SIGNS[codes >> 9])).reshape(-1, 256)
