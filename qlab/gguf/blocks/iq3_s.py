"""IQ3_S: four weights in nine bits and four signs, on a grid of 512 points."""

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
from qlab.gguf.blocks.base import (
    BlockType,
    halves,
    join,
    pack_bits,
    read_half,
    register,
    unpack_bits,
)
from qlab.gguf.searches.grid import grid_search


@register
class IQ3_S(BlockType):
    """256 weights in 110 bytes, 3.4375 bits each: w = d · (1 + 2 s) · sign · GRID[g]::

        byte   0  1  2 .. 65              66 .. 73                74 .. 105     106 .. 109
               d     low eight bits of    ninth bit of each g,    eight sign    8 s, four bits
                     g of 64 fours        eight a byte            bits each     each, low first

    d is float16. 32 weights share s. All signs are free.
    """

    name, type_id, block_size, block_bytes = "IQ3_S", 21, 256, 110
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
            even=False,
            reach=9,
            width=0.2,
            threshold=0,
            again="any",
        )
        d, s = sub_scales(scales.reshape(-1, 8), 16)
        low, sign = (points & 255).reshape(-1, 8, 8), sign.reshape(-1, 8, 4)
        # llama.cpp's quantizer does not move on in these two fields where 32 weights are all 0, so
        # what follows in the block lies 32 weights too early, and is read wrongly. So here: the
        # bytes are to be the same.
        zero = (x.reshape(-1, 8, 32) == 0).all(axis=-1)
        early = np.argsort(zero, axis=1, kind="stable")[..., None]
        low, sign = (np.take_along_axis(v, early, axis=1) for v in (low, sign))
        # A little more than the scale of the largest group: better on average.
        packed = join(
            *halves(d * f32(1.033)),
            low.reshape(-1, 64),
            pack_bits(points.reshape(-1, 64) >> 8),
            sign.reshape(-1, 32),
            pack_pairs(s),
        )
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = data[:, 2:66] | unpack_bits(data[:, 66:74]).astype(np.uint16) << 8
        step = read_half(data, 0)[:, None] * (f32(1) + f32(2) * nibbles(data[:, 106:]))
        points = grid("IQ3_S")[codes].reshape(-1, 8, 4, 8)
        sign = signs(data[:, 74:106].reshape(-1, 8, 4))
        return (step[..., None, None] * points * sign).reshape(-1, 256)
