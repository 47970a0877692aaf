"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 compiled; explained in ``qlab.gguf.blocks``.

Loops over a block run to ``len`` of a slice and not to 32: the compiler would write a short loop of
fixed length out, weight by weight, and then find no vectors in it. For the same reason largest and
smallest values are found on the bits of floats: of integers the largest does not depend on the
order, of floats it does (NaN, -0).

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.gguf_lanes import (
    LANES,
    affine_lanes,
    put_half,
    row_energy,
    symmetric_lanes,
    to_half,
)
from qlab.kernels.cpu.jit import jit

f32, i32, u32, u8 = np.float32, np.int32, np.uint32, np.uint8
_ZERO, _ONE, _HALF = f32(0), f32(1), f32(0.5)
_LARGEST = f32(3.4028234663852886e38)
_INFINITE = i32(0x7F800000)  # the bits of infinity; those of NaN lie above


@jit()
def all_finite(x):
    """Whether no element of float32 (rows, columns) is NaN or infinite."""
    for r in range(x.shape[0]):
        largest = i32(0)
        for i in range(x.shape[1]):
            largest = max(largest, i32(f32(x[r, i]).view(np.int32) & i32(0x7FFFFFFF)))
        if largest >= _INFINITE:
            return False
    return True


@jit()
def _largest_bits(x):
    """The bits of the largest magnitude. For finite floats the order of bits is that of sizes."""
    largest = i32(0)
    for i in range(32):
        largest = max(largest, i32(f32(x[i]).view(np.int32) & i32(0x7FFFFFFF)))
    return largest


@jit()
def _peak_of_tie(x, peak):
    """The first of x whose magnitude is ``peak``."""
    for i in range(len(x)):
        if abs(x[i]) == peak:
            return f32(x[i])
    return _ZERO


@jit()
def _in_order(bits):
    """The bits of a float as an integer that is ordered as the floats are; its own inverse."""
    return i32(bits ^ i32(i32(bits >> i32(31)) & i32(0x7FFFFFFF)))


@jit()
def _put_codes(codes, five, block, at):
    """Codes of 32 weights as nibbles, behind 4 bytes of fifth bits where there are any."""
    if five:
        for j in range(4):
            byte = 0
            for i in range(8):
                byte |= ((codes[8 * j + i] >> 4) & 1) << i
            block[at + j] = u8(byte)
        at += 4
    for i in range(16):
        block[at + i] = u8((codes[i] & 15) | ((codes[16 + i] & 15) << 4))


@jit()
def _put_word(word, block, at):
    for j in range(4):
        block[at + j] = u8(u32(word >> u32(8 * j)) & u32(0xFF))


@jit()
def encode_symmetric(x, importance, out, n):
    """Q4_0 (n = 8) and Q5_0 (n = 16).

    Args:
        x: float32 (rows, columns).
        importance: float32 (columns,) or (0,) for none.
        out: uint8 (rows, row_bytes), written.
        n: half the number of codes.

    Returns: whether all of x is finite; if not, ``out`` is not to be used. The largest bits tell,
        and a look at x for that alone would take a tenth of the time.
    """
    rows, columns = x.shape
    five = n == 16
    wide = 22 if five else 18
    codes = np.empty(32, np.int32)
    if len(importance):
        _symmetric_searched(x, importance, out, i32(n), wide)
        return all_finite(x)
    half_up, top = f32(n + 0.5), i32(2 * n - 1)
    for r in range(rows):
        for b in range(columns // 32):
            block, v = out[r, wide * b : wide * (b + 1)], x[r, 32 * b : 32 * (b + 1)]
            # The value of largest magnitude. As integers, the bits of positive floats are ordered
            # by size; as unsigned integers all negative ones lie above and are too.
            up, down = i32(0), u32(0)
            for i in range(len(v)):
                up = max(up, f32(v[i]).view(np.int32))
            for i in range(len(v)):
                down = max(down, f32(v[i]).view(np.uint32))
            below = i32(0) if down <= u32(0x80000000) else i32(down & u32(0x7FFFFFFF))
            if max(up, below) >= _INFINITE:
                return False
            peak = i32(up).view(np.float32) if up > below else u32(down).view(np.float32)
            if up == below:
                peak = _peak_of_tie(v, i32(up).view(np.float32)) if up > 0 else _ZERO
            d = peak / f32(-n)
            put_half(block, 0, to_half(d))
            inverse = _ZERO if d == _ZERO else _ONE / d
            if abs(inverse) > _LARGEST:  # d so small that 1 / d is infinite: every cast gives 0
                block[2:] = 0
                continue
            if not five:
                packed = block[2:]
                for i in range(len(packed)):
                    low = min(top, i32(v[i] * inverse + half_up))
                    high = min(top, i32(v[16 + i] * inverse + half_up))
                    packed[i] = u8(i32(low | i32(high << i32(4))))
                continue
            for i in range(len(v)):
                codes[i] = min(top, i32(v[i] * inverse + half_up))
            fifth, packed = u32(0), block[6:]
            for i in range(len(v)):
                fifth = u32(fifth | u32(u32(codes[i] >> 4) << u32(i)))
            _put_word(fifth, block, 2)
            for i in range(len(packed)):
                packed[i] = u8(i32(codes[i] & 15) | i32(i32(codes[16 + i] & 15) << i32(4)))
    return True


@jit()
def _symmetric_searched(x, importance, out, n, wide):
    rows, columns = x.shape
    blocks = columns // 32
    xt, wt = np.zeros((32, LANES), np.float32), np.zeros((32, LANES), np.float32)
    found, t = np.empty((32, LANES), np.float32), np.empty((8, LANES), np.float32)
    scales, codes = np.empty(LANES, np.float32), np.empty(32, np.int32)
    energy = np.empty(rows, np.float32)
    for r in range(rows):
        energy[r] = row_energy(x[r])
    for first in range(0, rows * blocks, LANES):
        count = min(LANES, rows * blocks - first)
        for k in range(count):
            r, at = (first + k) // blocks, (first + k) % blocks * 32
            for i in range(32):
                v = x[r, at + i]
                xt[i, k] = v
                wt[i, k] = importance[at + i] * np.sqrt(energy[r] + v * v)
        symmetric_lanes(xt, wt, n, scales, found, t)
        for k in range(count):
            r, b = (first + k) // blocks, (first + k) % blocks
            block = out[r, wide * b : wide * (b + 1)]
            put_half(block, 0, to_half(scales[k]))
            for i in range(32):
                codes[i] = i32(found[i, k]) + n
            _put_codes(codes, n == 16, block, 2)


@jit()
def encode_affine_32(x, importance, out, n):
    """Q4_1 (n = 15) and Q5_1 (n = 31); arguments as in ``encode_symmetric``, n the largest code."""
    rows, columns = x.shape
    five = n == 31
    wide = 24 if five else 20
    if len(importance):
        _affine_searched(x, importance, out, i32(n), wide)
        return all_finite(x)
    codes, top = np.empty(32, np.int32), i32(n)
    for r in range(rows):
        for b in range(columns // 32):
            block, v = out[r, wide * b : wide * (b + 1)], x[r, 32 * b : 32 * (b + 1)]
            least, most = i32(0x7FFFFFFF), i32(-0x80000000)
            for i in range(len(v)):
                least = min(least, _in_order(f32(v[i]).view(np.int32)))
            for i in range(len(v)):
                most = max(most, _in_order(f32(v[i]).view(np.int32)))
            if most >= _INFINITE or least <= -_INFINITE - i32(1):  # minus infinity, in order
                return False
            low = i32(_in_order(least)).view(np.float32)
            high = i32(_in_order(most)).view(np.float32)
            if low == _ZERO or high == _ZERO:  # of 0 and -0 the C takes what comes first
                low, high = v[0], v[0]
                for i in range(1, 32):
                    low = v[i] if v[i] < low else low
                    high = v[i] if v[i] > high else high
            d = (high - low) / f32(n)
            put_half(block, 0, to_half(d))
            put_half(block, 2, to_half(low))
            inverse = _ZERO if d == _ZERO else _ONE / d
            if not (inverse <= _LARGEST and d <= _LARGEST):
                block[4:] = 0  # 1 / d or the range is infinite: in the C every cast gives 0
                continue
            if not five:
                packed = block[4:]
                for i in range(len(packed)):
                    a = min(top, i32((v[i] - low) * inverse + _HALF))
                    c = min(top, i32((v[16 + i] - low) * inverse + _HALF))
                    packed[i] = u8(i32(a | i32(c << i32(4))))
                continue
            for i in range(len(v)):
                codes[i] = min(top, i32((v[i] - low) * inverse + _HALF))
            fifth, packed = u32(0), block[8:]
            for i in range(len(v)):
                fifth = u32(fifth | u32(u32(codes[i] >> 4) << u32(i)))
            _put_word(fifth, block, 4)
            for i in range(len(packed)):
                packed[i] = u8(i32(codes[i] & 15) | i32(i32(codes[16 + i] & 15) << i32(4)))
    return True


@jit()
def _affine_searched(x, importance, out, n, wide):
    rows, columns = x.shape
    blocks = columns // 32
    xt, wt = np.zeros((32, LANES), np.float32), np.zeros((32, LANES), np.float32)
    found, t = np.empty((32, LANES), np.float32), np.empty((16, LANES), np.float32)
    scales, minus = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    codes, energy = np.empty(32, np.int32), np.empty(rows, np.float32)
    for r in range(rows):
        energy[r] = row_energy(x[r])
    for first in range(0, rows * blocks, LANES):
        count = min(LANES, rows * blocks - first)
        for k in range(count):
            r, at = (first + k) // blocks, (first + k) % blocks * 32
            for i in range(32):
                v = x[r, at + i]
                xt[i, k] = v
                wt[i, k] = importance[at + i] * np.sqrt(energy[r] + v * v)
        affine_lanes(xt, wt, n, f32(-0.9), f32(0.05), 36, False, True, scales, minus, found, t)
        for k in range(count):
            r, b = (first + k) // blocks, (first + k) % blocks
            block = out[r, wide * b : wide * (b + 1)]
            put_half(block, 0, to_half(scales[k]))
            put_half(block, 2, to_half(-minus[k]))
            for i in range(32):
                codes[i] = i32(found[i, k])
            _put_codes(codes, n == 31, block, 4)


@jit()
def encode_q8_0(x, importance, out):
    """Q8_0; arguments as in ``encode_symmetric``."""
    rows, columns = x.shape
    for r in range(rows):
        for b in range(columns // 32):
            block, v = out[r, 34 * b : 34 * (b + 1)], x[r, 32 * b : 32 * (b + 1)]
            largest = i32(_largest_bits(v))
            if largest >= _INFINITE:
                return False
            d = largest.view(np.float32) / f32(127)
            put_half(block, 0, to_half(d))
            inverse = _ZERO if d == _ZERO else _ONE / d
            if inverse > _LARGEST:  # in the C every cast gives 0
                block[2:] = 0
                continue
            for i in range(32):
                scaled = v[i] * inverse
                whole = np.trunc(scaled)
                rest = scaled - whole  # exact
                if abs(rest) >= _HALF:
                    whole += np.copysign(_ONE, scaled)
                block[2 + i] = u8(np.int8(i32(whole)))
    return True
