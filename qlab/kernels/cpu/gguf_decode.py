"""Dequantizing compiled; what the bytes mean is explained in ``qlab.gguf.blocks``.

A kernel takes blocks, uint8 (blocks, bytes), and writes float32 (blocks, weights). Each weight is
computed by the operations of the C, in their order. The loops over a sub-block stand in the
kernels, alike as some are: a function of their own would be compiled before it is known how short
they are, without vectors for 16 weights, and be six times as slow.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.gguf_lanes import from_half
from qlab.kernels.cpu.jit import jit

f32, i32, u32 = np.float32, np.int32, np.uint32
_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


@jit()
def _half(block, at):
    return from_half(u32(u32(block[at]) | u32(u32(block[at + 1]) << u32(8))))


@jit()
def _bits(block, at):
    """32 bits, little-endian."""
    word = u32(0)
    for j in range(4):
        word = u32(word | u32(u32(block[at + j]) << u32(8 * j)))
    return word


@jit()
def decode_symmetric(data, out, n):
    """Q4_0 (n = 8) and Q5_0 (n = 16)."""
    for b in range(len(data)):
        block, w = data[b], out[b]
        d = _half(block, 0)
        if n == 8:
            packed = block[2:]
            for i in range(len(packed)):
                w[i] = f32(i32(i32(packed[i] & 15) - i32(8))) * d
            for i in range(len(packed)):
                w[16 + i] = f32(i32(i32(packed[i] >> 4) - i32(8))) * d
            continue
        high, packed = _bits(block, 2), block[6:]
        for i in range(len(packed)):
            q = i32(i32(packed[i] & 15) | i32(i32(u32(high >> u32(i)) & u32(1)) << i32(4)))
            w[i] = f32(i32(q - i32(16))) * d
        for i in range(len(packed)):
            q = i32(i32(packed[i] >> 4) | i32(i32(u32(high >> u32(16 + i)) & u32(1)) << i32(4)))
            w[16 + i] = f32(i32(q - i32(16))) * d


@jit()
def decode_affine_32(data, out, n):
    """Q4_1 (n = 15) and Q5_1 (n = 31)."""
    for b in range(len(data)):
        block, w = data[b], out[b]
        d, m = _half(block, 0), _half(block, 2)
        if n == 15:
            packed = block[4:]
            for i in range(len(packed)):
                w[i] = f32(i32(packed[i] & 15)) * d + m
            for i in range(len(packed)):
                w[16 + i] = f32(i32(packed[i] >> 4)) * d + m
            continue
        high, packed = _bits(block, 4), block[8:]
        for i in range(len(packed)):
            q = i32(i32(packed[i] & 15) | i32(i32(u32(high >> u32(i)) & u32(1)) << i32(4)))
            w[i] = f32(q) * d + m
        for i in range(len(packed)):
            q = i32(i32(packed[i] >> 4) | i32(i32(u32(high >> u32(16 + i)) & u32(1)) << i32(4)))
            w[16 + i] = f32(q) * d + m


@jit()
def decode_q8_0(data, out):
    """Q8_0."""
    for b in range(len(data)):
        block, w = data[b], out[b]
        d, packed = _half(block, 0), block[2:]
        for i in range(len(w)):
            w[i] = f32(np.int8(packed[i])) * d


@jit()
def _six_bits(block, scales, minima):
    """``_k.unpack_six_bits``."""
    for s in range(4):
        a, b, c = i32(block[4 + s]), i32(block[8 + s]), i32(block[12 + s])
        scales[s], minima[s] = i32(a & 63), i32(b & 63)
        scales[4 + s] = i32((c & 15) | ((a >> 6) << 4))
        minima[4 + s] = i32((c >> 4) | ((b >> 6) << 4))


@jit()
def decode_q4_k(data, out):
    """Q4_K. The minimum is added with its sign turned, which rounds as taking it off does."""
    s_int, m_int = np.empty(8, np.int32), np.empty(8, np.int32)
    scales, lows = np.empty(8, np.float32), np.empty(8, np.float32)
    for b in range(len(data)):
        block, w = data[b], out[b]
        d, dmin = _half(block, 0), _half(block, 2)
        _six_bits(block, s_int, m_int)
        for s in range(8):
            scales[s], lows[s] = d * f32(s_int[s]), -(dmin * f32(m_int[s]))
        for j in range(4):
            packed = block[16 + 32 * j : 48 + 32 * j]
            first, second = w[64 * j : 64 * j + 32], w[64 * j + 32 : 64 * j + 64]
            scale, low = scales[2 * j], lows[2 * j]
            scale_2, low_2 = scales[2 * j + 1], lows[2 * j + 1]
            for i in range(len(packed)):
                first[i] = f32(i32(packed[i] & 15)) * scale + low
            for i in range(len(packed)):
                second[i] = f32(i32(packed[i] >> 4)) * scale_2 + low_2


@jit()
def decode_q5_k(data, out):
    """Q5_K."""
    s_int, m_int = np.empty(8, np.int32), np.empty(8, np.int32)
    scales, lows = np.empty(8, np.float32), np.empty(8, np.float32)
    for b in range(len(data)):
        block, w = data[b], out[b]
        d, dmin = _half(block, 0), _half(block, 2)
        _six_bits(block, s_int, m_int)
        for s in range(8):
            scales[s], lows[s] = d * f32(s_int[s]), -(dmin * f32(m_int[s]))
        high = block[16:48]
        for s in range(8):
            packed = block[48 + 32 * (s // 2) : 80 + 32 * (s // 2)]
            scale, low, part = scales[s], lows[s], w[32 * s : 32 * s + 32]
            shift = i32(4 * (s % 2))
            for i in range(len(packed)):
                fifth = i32(i32(i32(i32(high[i]) >> i32(s)) & i32(1)) << i32(4))
                q = i32(i32(i32(i32(packed[i]) >> shift) & i32(15)) | fifth)
                part[i] = f32(q) * scale + low


@jit()
def decode_q2_k(data, out):
    """Q2_K."""
    for b in range(len(data)):
        block, w = data[b], out[b]
        d, dmin = _half(block, 80), _half(block, 82)
        for s in range(16):  # sub-block s: weights 16 s .. 16 s + 15
            scale = d * f32(i32(block[s] & 15))
            low = -(dmin * f32(i32(block[s] >> 4)))
            at = 16 + 32 * (s // 8) + 16 * (s % 2)
            shift = i32(2 * (s // 2 % 4))
            packed, part = block[at : at + 16], w[16 * s : 16 * s + 16]
            for i in range(len(part)):
                part[i] = f32(i32(i32(i32(packed[i]) >> shift) & i32(3))) * scale + low


@jit()
def decode_q3_k(data, out):
    """Q3_K."""
    for b in range(len(data)):
        block, w = data[b], out[b]
        d = _half(block, 108)
        for s in range(16):
            low = i32(block[96 + s % 8] >> (4 * (s // 8))) & i32(15)
            top = i32(block[104 + s % 4] >> (2 * (s // 4))) & i32(3)
            scale = d * f32(i32(i32(low | i32(top << 4)) - i32(32)))
            at, plane = 16 * (s % 2), i32(s // 2)
            high = block[at : at + 16]
            packed = block[32 + 32 * (s // 8) + at : 48 + 32 * (s // 8) + at]
            shift, part = i32(2 * (s // 2 % 4)), w[16 * s : 16 * s + 16]
            for i in range(len(part)):
                third = i32(i32(i32(i32(high[i]) >> plane) & i32(1)) << i32(2))
                q = i32(i32(i32(i32(packed[i]) >> shift) & i32(3)) | third)
                part[i] = scale * f32(i32(q - i32(4)))


@jit()
def decode_q6_k(data, out):
    """Q6_K."""
    for b in range(len(data)):
        block, w = data[b], out[b]
        d = _half(block, 208)
        for s in range(16):
            scale = d * f32(np.int8(block[192 + s]))
            half, quarter, at = s // 8, s // 2 % 4, 16 * (s % 2)
            packed = block[64 * half + 32 * (quarter % 2) + at :]
            high = block[128 + 32 * half + at :]
            shift, up = i32(4 * (quarter // 2)), i32(2 * quarter)
            part = w[16 * s : 16 * s + 16]
            for i in range(len(part)):
                top = i32(i32(i32(i32(high[i]) >> up) & i32(3)) << i32(4))
                q = i32(i32(i32(i32(packed[i]) >> shift) & i32(15)) | top)
                part[i] = scale * f32(i32(q - i32(32)))


@jit()
def decode_iq4(data, out, super_block):
    """IQ4_NL (``super_block`` 32) and IQ4_XS (256)."""
    for b in range(len(data)):
        block, w = data[b], out[b]
        d, subs = _half(block, 0), super_block // 32
        top = i32(i32(block[2]) | i32(i32(block[3]) << i32(8)))
        for s in range(subs):
            scale = d
            if subs > 1:
                low = i32(block[4 + s // 2] >> (4 * (s % 2))) & i32(15)
                integer = i32(low | i32(i32(i32(top >> i32(2 * s)) & i32(3)) << i32(4)))
                scale = d * f32(i32(integer - i32(32)))
            at = 16 * s + (8 if subs > 1 else 2)
            packed, part = block[at : at + 16], w[32 * s : 32 * s + 32]
            for i in range(len(packed)):
                part[i] = scale * _LEVELS[u32(packed[i] & 15)]
            for i in range(len(packed)):
                part[16 + i] = scale * _LEVELS[u32(packed[i] >> 4)]


@jit()
def decode_f16(halves, out):
    """F16; here the bytes come as uint16 (weights,), and out is (weights,)."""
    for i in range(len(halves)):
        word = u32(halves[i])
        rest = u32(u32(word & u32(0x7FFF)) << u32(13))
        # Exponents move from a bias of 15 to one of 127; infinity and NaN to the top; a subnormal
        # becomes a number from 2^-14 up, of which 2^-14 is taken off.
        size = u32(rest + u32(0x38000000))
        size = u32(rest | u32(0x7F800000)) if rest >= u32(0x0F800000) else size
        small = f32(u32(rest + u32(0x38800000)).view(np.float32) - f32(2.0**-14)).view(np.uint32)
        size = small if rest < u32(0x00800000) else size
        out[i] = u32(size | u32(u32(word & u32(0x8000)) << u32(16))).view(np.float32)


@jit()
def decode_bf16(halves, out):
    """BF16; arguments as in ``decode_f16``."""
    for i in range(len(halves)):
        out[i] = u32(u32(halves[i]) << u32(16)).view(np.float32)
