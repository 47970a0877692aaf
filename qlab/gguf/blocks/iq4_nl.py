"""IQ4_NL: four bits on a ruler that is finer near 0."""

from __future__ import annotations

from qlab.gguf.arithmetic import Array, reciprocal
from qlab.gguf.blocks._iq4 import LEVELS, level_search, level_weights, nearest_level
from qlab.gguf.blocks.base import (
    BlockType,
    halves,
    join,
    pack_nibbles,
    read_half,
    register,
    unpack_nibbles,
)


@register
class IQ4_NL(BlockType):
    """32 weights in 18 bytes, 4.5 bits each: w = d · LEVELS[q]::

        byte   0  1  2          3          ...  17
               d     q0 | q16   q1 | q17        q15 | q31      (low | high four bits)

    d is float16. The layout of Q4_0; the sixteen levels, from -127 to 113, are not equally spaced.
    """

    name, type_id, block_size, block_bytes = "IQ4_NL", 20, 32, 18
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        weights = level_weights(x, importance)
        d = level_search(x.reshape(-1, 32), weights.reshape(-1, 32)).reshape(x.shape[:2])
        codes = nearest_level(reciprocal(d)[..., None] * x)
        return join(*halves(d), pack_nibbles(codes))

    @classmethod
    def decode(cls, data: Array) -> Array:
        return read_half(data, 0)[:, None] * LEVELS[unpack_nibbles(data[:, 2:])]
