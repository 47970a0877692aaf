"""The k-quants compiled: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

What they do is explained in ``qlab.gguf.blocks``, in the same words and the same order. A kernel
takes super-blocks in groups that fill the lanes of a search.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.gguf_lanes import (
    LANES,
    affine_lanes,
    clip,
    descent_lanes,
    from_half,
    nearest,
    positive_one,
    put_half,
    symmetric_lanes,
    symmetric_one,
    to_half,
)
from qlab.kernels.cpu.jit import jit

f32, i32, u8 = np.float32, np.int32, np.uint8
_ZERO, _ONE = f32(0), f32(1)
_TINY = f32(1e-15)


@jit()
def _fill(x, importance, kind, size, first, count, xt, wt, totals):
    """Sub-blocks as columns: weights, and what an error in each costs.

    ``kind``: 0 magnitudes, 1 rms + magnitude, 2 importance with the energy, 3 with twice it,
    4 importance alone, 5 squares.
    """
    subs = 256 // size
    for b in range(LANES // subs):
        if b >= count:
            for s in range(subs):
                for i in range(size):
                    xt[i, b * subs + s] = _ZERO
                    wt[i, b * subs + s] = _ZERO
            continue
        row = x[first + b]
        energy = _ZERO
        if kind == 2 or kind == 3:
            for i in range(256):
                energy += row[i] * row[i]
            energy = (energy if kind == 2 else f32(2) * energy) / f32(256)
        column = (first + b) % max(1, len(importance))
        for s in range(subs):
            k = b * subs + s
            rms = _ZERO
            if kind == 1:
                for i in range(size):
                    v = row[s * size + i]
                    rms += v * v
                rms = np.sqrt(rms / f32(size))
            total = _ZERO
            for i in range(size):
                v = row[s * size + i]
                if kind == 0:
                    w = abs(v)
                elif kind == 1:
                    w = rms + abs(v)
                elif kind == 4:
                    w = importance[column, s * size + i]
                elif kind == 5:
                    w = v * v
                else:
                    w = importance[column, s * size + i] * np.sqrt(energy + v * v)
                xt[i, k] = v
                wt[i, k] = w
                total += w
            totals[k] = total


@jit()
def _scale_integers(values, levels, integers):
    """Integers from 0 to ``levels`` in a byte for the largest value; returns the step."""
    largest = _ZERO
    for s in range(len(values)):
        if values[s] > largest:
            largest = values[s]
    for s in range(len(values)):
        integers[s] = 0
        if largest > _ZERO:
            inverse = f32(levels) / largest
            integers[s] = i32(nearest(inverse * values[s]) & i32(0xFF))
    return largest / f32(levels)


@jit()
def _requantize(x, at, size, scale, minimum, low, high, codes):
    if scale == _ZERO:
        return
    for i in range(size):
        codes[at + i] = clip(nearest((x[at + i] + minimum) / scale), low, high)


@jit()
def encode_affine(x, importance, out, bits):
    """Q2_K, Q4_K and Q5_K.

    Args:
        x: float32 (super-blocks, 256).
        importance: float32 (super-blocks of a row, 256), or (0, 256) for none.
        out: uint8 (super-blocks, bytes), written.
        bits: 2, 4 or 5.
    """
    given = len(importance) > 0
    size = 16 if bits == 2 else 32
    subs = 256 // size
    n = i32((1 << bits) - 1)
    levels = i32(15 if bits == 2 else 63)
    start, width, steps, absolute = f32(-0.5), f32(0.1), 15, bits == 2
    kind = 0 if bits == 2 else 1
    if bits == 4:
        start, steps = f32(-1), 20
    if given:
        start, width, steps, absolute = f32(-0.9), f32(0.05), 36, False
        kind = 2 if bits == 2 else 3
    xt, wt = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    found, t = np.empty((size, LANES), np.float32), np.empty((16, LANES), np.float32)
    scales, minima = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    totals = np.zeros(LANES, np.float32)
    s_int, m_int = np.empty(subs, np.int32), np.empty(subs, np.int32)
    codes = np.empty(256, np.int32)
    group = LANES // subs
    for first in range(0, len(x), group):
        count = min(group, len(x) - first)
        _fill(x, importance, kind, size, first, count, xt, wt, totals)
        affine_lanes(xt, wt, n, start, width, steps, absolute, given, scales, minima, found, t)
        for b in range(count):
            lanes = slice(b * subs, (b + 1) * subs)
            if given:
                d = positive_one(scales[lanes], levels, totals[lanes], s_int)
                dmin = positive_one(minima[lanes], levels, totals[lanes], m_int)
            else:
                d = _scale_integers(scales[lanes], levels, s_int)
                dmin = _scale_integers(minima[lanes], levels, m_int)
            d_half, dmin_half = to_half(d), to_half(dmin)
            d, dmin = from_half(d_half), from_half(dmin_half)
            row, block = x[first + b], out[first + b]
            if bits == 2:
                for s in range(subs):
                    both = i32(i32(s_int[s] | i32(m_int[s] << 4)) & 0xFF)
                    block[s] = u8(both)
                    s_int[s], m_int[s] = i32(both & 15), i32(both >> 4)
            else:
                _put_six_bits(s_int, m_int, block, bits == 5 or not given)
            for s in range(subs):
                for i in range(size):
                    codes[s * size + i] = i32(found[i, b * subs + s])
                _requantize(
                    row, s * size, size, d * f32(s_int[s]), dmin * f32(m_int[s]), i32(0), n, codes
                )
            if bits == 2:
                _put_crumbs(codes, 0, block, 16)
                put_half(block, 80, d_half)
                put_half(block, 82, dmin_half)
            else:
                put_half(block, 0, d_half)
                put_half(block, 2, dmin_half)
                if bits == 5:
                    _put_planes(codes, 4, block, 16)
                at = 16 if bits == 4 else 48
                for j in range(4):
                    for i in range(32):
                        low = codes[64 * j + i] & 15
                        block[at + 32 * j + i] = u8(low | ((codes[64 * j + 32 + i] & 15) << 4))


@jit()
def _put_six_bits(s_int, m_int, block, limit):
    """Bytes 4-15 of Q4_K and Q5_K; the integers as they are read back: ``q4_k.affine_codes``."""
    for s in range(8):
        if limit:
            s_int[s], m_int[s] = min(i32(63), s_int[s]), min(i32(63), m_int[s])
    for s in range(4):
        block[4 + s] = u8((s_int[s] | ((s_int[4 + s] >> 4) << 6)) & 0xFF)
        block[8 + s] = u8((m_int[s] | ((m_int[4 + s] >> 4) << 6)) & 0xFF)
        block[12 + s] = u8((s_int[4 + s] & 15) | ((m_int[4 + s] & 15) << 4))
    for s in range(4):
        s_int[s], m_int[s] = i32(block[4 + s] & 63), i32(block[8 + s] & 63)
        s_int[4 + s] = i32((block[12 + s] & 15) | ((block[4 + s] >> 6) << 4))
        m_int[4 + s] = i32((block[12 + s] >> 4) | ((block[8 + s] >> 6) << 4))


@jit()
def _put_crumbs(codes, shift, block, at):
    """Two bits of each of 256 codes, from bit ``shift`` on: ``_k.pack_crumbs``."""
    for half in range(2):
        for i in range(32):
            byte = 0
            for part in range(4):
                byte |= ((codes[128 * half + 32 * part + i] >> shift) & 3) << (2 * part)
            block[at + 32 * half + i] = u8(byte)


@jit()
def _put_planes(codes, shift, block, at):
    """One bit of each of 256 codes: ``_k.pack_planes``."""
    for i in range(32):
        byte = 0
        for part in range(8):
            byte |= ((codes[32 * part + i] >> shift) & 1) << part
        block[at + i] = u8(byte)


@jit()
def encode_q6_k(x, importance, out):
    """Q6_K; arguments as in ``encode_affine``."""
    given = len(importance) > 0
    xt, wt = np.empty((16, LANES), np.float32), np.empty((16, LANES), np.float32)
    found, t = np.empty((16, LANES), np.float32), np.empty((8, LANES), np.float32)
    scales, totals = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    codes = np.empty(256, np.int32)
    group = LANES // 16
    for first in range(0, len(x), group):
        count = min(group, len(x) - first)
        _fill(x, importance, 4 if given else 5, 16, first, count, xt, wt, totals)
        symmetric_lanes(xt, wt, i32(32), scales, found, t)
        for b in range(count):
            row, block = x[first + b], out[first + b]
            magnitude, peak = _ZERO, _ZERO
            for s in range(16):
                v = scales[16 * b + s]
                if abs(v) > magnitude:
                    magnitude, peak = abs(v), v
            if magnitude < _TINY:
                block[:] = 0
                continue
            inverse = f32(-128) / peak
            d_half = to_half(_ONE / inverse)
            put_half(block, 208, d_half)
            d = from_half(d_half)
            for s in range(16):
                integer = np.int8(min(i32(127), nearest(inverse * scales[16 * b + s])))
                block[192 + s] = u8(integer)
                for i in range(16):
                    codes[16 * s + i] = i32(found[i, 16 * b + s])
                _requantize(row, 16 * s, 16, d * f32(integer), _ZERO, i32(-32), i32(31), codes)
            for i in range(256):
                codes[i] += 32
            for half in range(2):
                for i in range(64):
                    low = codes[128 * half + i] & 15
                    block[64 * half + i] = u8(low | ((codes[128 * half + 64 + i] & 15) << 4))
            _put_crumbs(codes, 4, block, 128)


@jit()
def encode_q3_k(x, importance, out):
    """Q3_K; arguments as in ``encode_affine``."""
    given = len(importance) > 0
    xt, wt = np.empty((16, LANES), np.float32), np.empty((16, LANES), np.float32)
    found, t = np.empty((16, LANES), np.float32), np.empty((8, LANES), np.float32)
    scales, totals = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    codes, s_int = np.empty(256, np.int32), np.empty(16, np.int32)
    group = LANES // 16
    for first in range(0, len(x), group):
        count = min(group, len(x) - first)
        _fill(x, importance, 3 if given else 5, 16, first, count, xt, wt, totals)
        if given:
            symmetric_lanes(xt, wt, i32(4), scales, found, t)
        else:
            descent_lanes(xt, i32(4), scales, found, t)
        for b in range(count):
            row, block = x[first + b], out[first + b]
            lanes = scales[16 * b : 16 * (b + 1)]
            for s in range(16):
                for i in range(16):
                    codes[16 * s + i] = i32(found[i, 16 * b + s])
            if given:
                d = symmetric_one(lanes, i32(32), totals[16 * b : 16 * (b + 1)], s_int)
            else:
                magnitude, peak = _ZERO, _ZERO
                for s in range(16):
                    if abs(lanes[s]) > magnitude:
                        magnitude, peak = abs(lanes[s]), lanes[s]
                d = _ZERO
                s_int[:] = 0
                if peak != _ZERO:
                    inverse = f32(-32) / peak
                    d = _ONE / inverse
                    for s in range(16):
                        integer = i32(np.int8(nearest(inverse * lanes[s])))
                        s_int[s] = clip(integer, i32(-32), i32(31)) + 32
            d_half = to_half(d)
            d = from_half(d_half)
            for s in range(16):
                scale = d * f32(s_int[s] - 32)
                _requantize(row, 16 * s, 16, scale, _ZERO, i32(-4), i32(3), codes)
            for i in range(256):
                codes[i] += 4
            _put_planes(codes, 2, block, 0)
            _put_crumbs(codes, 0, block, 32)
            for s in range(8):
                block[96 + s] = u8((s_int[s] & 15) | ((s_int[8 + s] & 15) << 4))
            for s in range(4):
                top = 0
                for part in range(4):
                    top |= (s_int[4 * part + s] >> 4) << (2 * part)
                block[104 + s] = u8(top)
            put_half(block, 108, d_half)
