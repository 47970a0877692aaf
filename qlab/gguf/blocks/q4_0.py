"""Q4_0: four bits and one scale for 32 weights."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import (
    Array,
    f32,
    first_largest,
    importance_weights,
    in_order,
    reciprocal,
    truncate,
)
from qlab.gguf.blocks.base import (
    BlockType,
    halves,
    join,
    pack_nibbles,
    read_half,
    register,
    unpack_nibbles,
)
from qlab.gguf.searches import symmetric_search


@register
class Q4_0(BlockType):
    """32 weights in 18 bytes, 4.5 bits each: w = d · (q - 8)::

        byte   0  1  2          3          ...  17
               d     q0 | q16   q1 | q17        q15 | q31      (low | high four bits)

    d is float16. The weight of largest magnitude gets code 0, so d has the opposite sign of it, and
    all 16 codes are used: -8 to 7. With an importance matrix the scale is searched.
    """

    name, type_id, block_size, block_bytes = "Q4_0", 2, 32, 18
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, d = symmetric_codes(x, importance, 8)
        return join(*halves(d), pack_nibbles(codes))

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = unpack_nibbles(data[:, 2:]).astype(np.float32) - f32(8)
        return codes * read_half(data, 0)[:, None]


def symmetric_codes(x: Array, importance: Array | None, n: int) -> tuple[Array, Array]:
    """Codes from 0 to 2n - 1 and the scale of each block, for Q4_0 and Q5_0."""
    rows, blocks, size = x.shape
    if importance is None:
        _, peak = first_largest(x)
        d = peak / f32(-n)
        shifted = x * reciprocal(d)[..., None] + f32(n + 0.5)
        as_int8 = truncate(shifted).astype(np.int8).astype(np.int32)
        return np.minimum(2 * n - 1, as_int8) & 0xFF, d
    energy = in_order((x * x).reshape(rows, -1)) / f32(blocks * size)
    weights = importance_weights(x, importance, energy[:, None, None])
    codes, d = symmetric_search(x.reshape(-1, size), n, weights.reshape(-1, size))
    return codes.reshape(x.shape), d.reshape(rows, blocks)
