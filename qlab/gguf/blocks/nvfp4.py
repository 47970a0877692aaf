"""NVFP4: four-bit floats with an eight-bit float as scale of 16."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, truncate
from qlab.gguf.blocks.base import BlockType, join, pack_nibbles, register, unpack_nibbles
from qlab.gguf.blocks.mxfp4 import FP4_TWICE, nearest_fp4


@register
class NVFP4(BlockType):
    """64 weights in 36 bytes, 4.5 bits each: w = fp8_e4m3(d) · fp4_e2m1(q)::

        byte   0   1   2   3    4          ...  11          12 .. 19   20 .. 27   28 .. 35
               d0  d1  d2  d3   q0 | q8         q7 | q15    the next 16, each with its d

    d is an unsigned fp8_e4m3 whose sign bit is 0: the largest magnitude of the 16 over 6. llama.cpp
    rounds it half up. A further scale of the whole tensor lies in the file as a tensor of its own.
    """

    name, type_id, block_size, block_bytes = "NVFP4", 40, 64, 36

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        parts = x.reshape(*x.shape[:-1], 4, 16)
        d = _to_e4m3(np.max(np.abs(parts), axis=-1) / f32(6))
        codes = nearest_fp4(parts, _half_of_e4m3(d))
        return join(d, pack_nibbles(codes).reshape(*x.shape[:-1], 32))

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = unpack_nibbles(data[:, 4:].reshape(-1, 4, 8))
        values = FP4_TWICE[codes] * _half_of_e4m3(data[:, :4])[..., None]
        return values.reshape(-1, 64)


def _to_e4m3(x: Array) -> Array:
    """Bits of fp8_e4m3 of non-negative x, uint8. Halves go up; what rounds to 256 or more is 448.

    The codes from 0x78 to 0x7D (256 to 416) exist, and llama.cpp does not use them.
    """
    x = np.minimum(x, f32(448))
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    exponent = (bits >> 23 & 0xFF).astype(np.int32) - 120
    # Keep three bits of mantissa; adding the first dropped bit carries into the exponent by itself.
    normal = (exponent << 3) + (bits >> 20 & 7).astype(np.int32) + (bits >> 19 & 1).astype(np.int32)
    subnormal = np.minimum(truncate(x * f32(512) + f32(0.5)), 7)
    normal = np.where(normal >= 0x78, 0x7E, normal)
    found = np.where(exponent <= 0, subnormal, normal)
    return np.where(x > 0, found, 0).astype(np.uint8)


def _half_of_e4m3(d: Array) -> Array:
    """Half the value of the bits, float32; 0 for 0x7F, which stands for NaN."""
    exponent, mantissa = (d >> 3 & 15).astype(np.int32), (d & 7).astype(np.float32)
    subnormal = np.ldexp(mantissa, -9)
    normal = np.ldexp(f32(1) + mantissa / f32(8), exponent - 7)
    value = np.where(exponent == 0, subnormal, normal) * f32(0.5)
    return np.where(d == 0x7F, f32(0), value).astype(np.float32)
