"""IQ2_S: eight weights in eighteen bits, on a grid of 1024 points."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, importance_weights
from qlab.gguf.blocks._grids import (
    energy,
    grid,
    nibbles,
    pack_pairs,
    quantizer_grid,
    signs,
    sub_scales,
)
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.searches.grid import grid_search


@register
class IQ2_S(BlockType):
    """256 weights in 82 bytes, 2.5625 bits each: w = d · (s + 1/2) / 4 · sign · GRID[g]::

        byte   0  1  2 .. 33               34 .. 65     66 .. 73                 74 .. 81
               d     low eight bits of     eight sign   upper two bits of g,     16 s, four bits
                     g of 32 eights        bits each    four a byte, low first   each, low first

    d is float16. 16 weights share s. All signs are free.
    """

    name, type_id, block_size, block_bytes = "IQ2_S", 22, 256, 82
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        twice = energy(x, 2)[..., None]
        if importance is None:
            weights = f32(0.25) * twice + x * x
        else:
            weights = importance_weights(x, importance, twice)
        points, sign, scales = grid_search(
            x.reshape(-1, 16),
            weights.reshape(-1, 16),
            quantizer_grid(cls.name),
            even=False,
            reach=9,
            width=0.1,
            threshold=1e-8,
            again="off",
        )
        d, s = sub_scales(scales.reshape(-1, 16), 16)
        points = points.reshape(-1, 32)
        high = ((points >> 8).reshape(-1, 8, 4) << np.array([0, 2, 4, 6])).sum(axis=-1)
        # A little less than the scale of the largest group: better on average.
        packed = join(
            *halves(d * f32(0.9875)), points & 255, sign.reshape(-1, 32), high, pack_pairs(s)
        )
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        shifts = np.array([0, 2, 4, 6], np.uint8)
        high = (data[:, 66:74, None] >> shifts & 3).reshape(-1, 32).astype(np.uint16)
        codes = (data[:, 2:34] | high << 8).reshape(-1, 16, 2)
        step = read_half(data, 0)[:, None] * (f32(0.5) + nibbles(data[:, 74:])) * f32(0.25)
        scaled = step[..., None, None] * grid("IQ2_S")[codes]
        return (scaled * signs(data[:, 34:66].reshape(-1, 16, 2))).reshape(-1, 256)
