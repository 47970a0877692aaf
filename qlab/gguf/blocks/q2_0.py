"""Q2_0: two bits and one scale for 64 weights, for ternary models."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, reciprocal, round_away, truncate
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register


@register
class Q2_0(BlockType):
    """64 weights in 18 bytes, 2.25 bits each: w = d · (q - 1)::

        byte   0  1  2                         3             ...  17
               d     q0 | q1 | q2 | q3         q4 .. q7           q60 .. q63   (two bits, low first)

    d is float16, the largest magnitude. Code 3, which stands for 2 d, is never written.
    """

    name, type_id, block_size, block_bytes = "Q2_0", 42, 64, 18

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        d = np.max(np.abs(x), axis=-1)
        codes = np.clip(truncate(round_away(x * reciprocal(d)[..., None])) + 1, 0, 3)
        four = codes.reshape(*x.shape[:-1], 16, 4)
        packed = four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6
        return join(*halves(d), packed)

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = data[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
        return (codes.reshape(len(data), 64).astype(np.float32) - f32(1)) * read_half(data, 0)[
            :, None
        ]
