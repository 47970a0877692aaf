"""IQ1_M: IQ1_S with scales of 16 and a shift for every eight."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, from_half, importance_weights, in_order, to_half
from qlab.gguf.blocks._grids import energy, grid, quantizer_grid, sub_scales, words
from qlab.gguf.blocks.base import BlockType, join, register
from qlab.gguf.searches.ternary import SHIFT, VALUES, ternary_search


@register
class IQ1_M(BlockType):
    """256 weights in 56 bytes, 1.75 bits each: w = d · (2 s + 1) · (GRID[g] ± 1/8)::

        byte   0 .. 31              32 .. 47                      48 .. 55
               low eight bits of    four bits for each eight:     4 words of 16 bits: four s of
               g of 32 eights       upper three of g, and 1 for   three bits (low first), and four
                                    minus 1/8                     of the sixteen bits of d

    d is float16, its lowest bits in the first word. 16 weights share s.
    """

    name, type_id, block_size, block_bytes = "IQ1_M", 29, 256, 56
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        weights = x * x
        if importance is not None:
            weights = importance_weights(x, importance, energy(x, 2)[..., None])
        x, weights, shape = x.reshape(-1, 16), weights.reshape(-1, 16), x.shape
        table = quantizer_grid(cls.name)
        points, shifts, scales = ternary_search(x, weights, table, halves=True, threshold=1e-7)
        d, s = sub_scales(scales.reshape(-1, 16), 8)
        zero = d == 0
        # With all codes chosen, the best d for the whole block.
        q = np.take_along_axis(VALUES[shifts], table.points[points].astype(np.int64), axis=-1)
        q = q.reshape(x.shape) * (2 * s + 1).reshape(-1, 1).astype(np.float32)
        xq = in_order((weights * q * x).reshape(-1, 256))
        q2 = in_order((weights * q * q).reshape(-1, 256))
        d = np.where(q2 > 0, xq / q2, d)
        # A little more than that: better on average.
        bits = np.where(zero, 0, to_half(d * f32(1.1125)).astype(np.int64))
        word = (s.reshape(-1, 4, 4) << np.array([0, 3, 6, 9])).sum(axis=-1)
        word |= (bits[:, None] >> np.array([0, 4, 8, 12]) & 15) << 12
        four = points >> 8 | np.where(np.repeat(zero, 16)[:, None], 0, shifts) << 3
        packed = join(
            (points & 255).reshape(-1, 32),
            (four[:, 0] | four[:, 1] << 4).reshape(-1, 16),
            word.astype("<u2").view(np.uint8),
        )
        return packed.reshape(*shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        word = words(data[:, 48:], "<u2")
        bits = (word >> 12).astype(np.uint16) << np.array([0, 4, 8, 12], np.uint16)
        d = from_half(np.bitwise_or.reduce(bits, axis=-1))
        s = (word[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
        step = d[:, None] * (s * 2 + 1).astype(np.float32)
        four = np.stack([data[:, 32:48] & 15, data[:, 32:48] >> 4], axis=-1).astype(np.uint16)
        codes = data[:, :32].reshape(-1, 16, 2) | (four & 7) << 8
        shift = np.where(four >> 3 == 0, SHIFT, -SHIFT)
        values = grid("IQ1_M")[codes] + shift[..., None].astype(f32)
        return (step[..., None, None] * values).reshape(-1, 256)
