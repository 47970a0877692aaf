"""MXFP4: four-bit floats that share a power of two."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, truncate
from qlab.gguf.blocks.base import BlockType, join, pack_nibbles, register, unpack_nibbles

# Twice the values of fp4_e2m1, so that they are integers; the scale is halved instead.
FP4_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


@register
class MXFP4(BlockType):
    """32 weights in 17 bytes, 4.25 bits each: w = 2^(e - 127) · fp4_e2m1(q)::

        byte   0   1          2          ...  16
               e   q0 | q16   q1 | q17        q15 | q31      (low | high four bits)

    e is a power of two with a bias of 127: that of the largest magnitude, less 2, since the largest
    fp4_e2m1 is 6 = 1.5 · 2².
    """

    name, type_id, block_size, block_bytes = "MXFP4", 39, 32, 17

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        largest = np.max(np.abs(x), axis=-1)
        exponent = np.floor(np.log2(largest.astype(np.float64)).astype(np.float32))
        e = np.where(largest > 0, truncate(exponent - f32(2) + f32(127)), 0).astype(np.uint8)
        return join(e[..., None], pack_nibbles(nearest_fp4(x, _half_scale(e)).astype(np.uint8)))

    @classmethod
    def decode(cls, data: Array) -> Array:
        return FP4_TWICE[unpack_nibbles(data[:, 1:])] * _half_scale(data[:, :1])


def nearest_fp4(x: Array, scale: Array) -> Array:
    """The code whose value is nearest; of two equally near ones the smaller code.

    Args:
        x: float32 (..., size).
        scale: float32 (...,), in units of x for each step of ``FP4_TWICE``.
    """
    best = np.zeros(x.shape, np.int32)
    least = np.abs(FP4_TWICE[0] * scale[..., None] - x)
    for code in range(1, 16):
        gap = np.abs(FP4_TWICE[code] * scale[..., None] - x)
        best = np.where(gap < least, code, best)
        least = np.where(gap < least, gap, least)
    return best


def _half_scale(e: Array) -> Array:
    """2^(e - 128), float32; the two smallest are subnormal."""
    return np.ldexp(np.float64(1), e.astype(np.int32) - 128).astype(np.float32)
