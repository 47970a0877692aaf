"""Q4_1: four bits, a scale and a minimum for 32 weights."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import (
    Array,
    f32,
    first_highest,
    first_smallest,
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
from qlab.gguf.searches import affine_search


@register
class Q4_1(BlockType):
    """32 weights in 20 bytes, 5 bits each: w = d · q + m::

        byte   0  1  2  3  4          5          ...  19
               d     m     q0 | q16   q1 | q17        q15 | q31      (low | high four bits)

    d and m are float16. m is the smallest weight, which gets code 0; the largest gets 15.
    """

    name, type_id, block_size, block_bytes = "Q4_1", 3, 32, 20
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, d, m = affine_codes(x, importance, 15)
        if importance is None:
            codes = np.minimum(15, codes.astype(np.int8).astype(np.int32))
        return join(*halves(d, m), pack_nibbles(codes & 0xFF))

    @classmethod
    def decode(cls, data: Array) -> Array:
        d, m = read_half(data, 0), read_half(data, 2)
        return unpack_nibbles(data[:, 4:]).astype(np.float32) * d[:, None] + m[:, None]


def affine_codes(x: Array, importance: Array | None, n: int) -> tuple[Array, Array, Array]:
    """Codes from 0 to n, the scale and the minimum of each block, for Q4_1 and Q5_1."""
    rows, blocks, size = x.shape
    if importance is None:
        m = first_smallest(x)
        d = (first_highest(x) - m) / f32(n)
        return truncate((x - m[..., None]) * reciprocal(d)[..., None] + f32(0.5)), d, m
    energy = in_order((x * x).reshape(rows, -1)) / f32(blocks * size)
    weights = importance_weights(x, importance, energy[:, None, None]).reshape(-1, size)
    codes, d, minus_m = affine_search(x.reshape(-1, size), n, weights, -0.9, 0.05, 36, guarded=True)
    return codes.reshape(x.shape), d.reshape(rows, blocks), -minus_m.reshape(rows, blocks)
