"""Q8_0: eight bits and one scale for 32 weights."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, reciprocal, round_away, truncate
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register


@register
class Q8_0(BlockType):
    """32 weights in 34 bytes, 8.5 bits each: w = d · q::

        byte   0  1  2   3   ...  33
               d     q0  q1       q31       (signed)

    d is float16, the largest magnitude over 127. Codes are rounded half away from zero.
    """

    name, type_id, block_size, block_bytes = "Q8_0", 8, 32, 34

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, d = eight_bits(x)
        return join(*halves(d), codes.view(np.uint8))

    @classmethod
    def decode(cls, data: Array) -> Array:
        return data[:, 2:].view(np.int8).astype(np.float32) * read_half(data, 0)[:, None]


def eight_bits(x: Array) -> tuple[Array, Array]:
    """Signed codes int8 and the scale of each block, for Q8_0 and Q8_1."""
    d = np.max(np.abs(x), axis=-1) / f32(127)
    return truncate(round_away(x * reciprocal(d)[..., None])).astype(np.int8), d
