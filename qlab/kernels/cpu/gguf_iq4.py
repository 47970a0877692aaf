"""IQ4_NL and IQ4_XS compiled; explained in ``qlab.gguf.blocks._iq4``.

The nearest of the sixteen levels is found without a branch: from the lowest level, the distance to
the next is added for each cut that the value is not below.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.gguf_lanes import LANES, clip, nearest, put_half, to_half
from qlab.kernels.cpu.jit import jit

f32, i32, u8 = np.float32, np.int32, np.uint8
_ZERO, _ONE, _TINY = f32(0), f32(1), f32(1e-15)


@jit()
def _level(v):
    """The nearest level, float32."""
    q = f32(-127)
    q += _ZERO if v < f32(-115.5) else f32(23)
    q += _ZERO if v < f32(-93.5) else f32(21)
    q += _ZERO if v < f32(-74.0) else f32(18)
    q += _ZERO if v < f32(-57.0) else f32(16)
    q += _ZERO if v < f32(-42.0) else f32(14)
    q += _ZERO if v < f32(-28.5) else f32(13)
    q += _ZERO if v < f32(-16.0) else f32(12)
    q += _ZERO if v < f32(-4.5) else f32(11)
    q += _ZERO if v < f32(7.0) else f32(12)
    q += _ZERO if v < f32(19.0) else f32(12)
    q += _ZERO if v < f32(31.5) else f32(13)
    q += _ZERO if v < f32(45.5) else f32(15)
    q += _ZERO if v < f32(61.0) else f32(16)
    q += _ZERO if v < f32(79.0) else f32(20)
    q += _ZERO if v < f32(101.0) else f32(24)
    return q


@jit()
def _index(v):
    """The number of the nearest level, int32."""
    q = i32(0)
    q += i32(0) if v < f32(-115.5) else i32(1)
    q += i32(0) if v < f32(-93.5) else i32(1)
    q += i32(0) if v < f32(-74.0) else i32(1)
    q += i32(0) if v < f32(-57.0) else i32(1)
    q += i32(0) if v < f32(-42.0) else i32(1)
    q += i32(0) if v < f32(-28.5) else i32(1)
    q += i32(0) if v < f32(-16.0) else i32(1)
    q += i32(0) if v < f32(-4.5) else i32(1)
    q += i32(0) if v < f32(7.0) else i32(1)
    q += i32(0) if v < f32(19.0) else i32(1)
    q += i32(0) if v < f32(31.5) else i32(1)
    q += i32(0) if v < f32(45.5) else i32(1)
    q += i32(0) if v < f32(61.0) else i32(1)
    q += i32(0) if v < f32(79.0) else i32(1)
    q += i32(0) if v < f32(101.0) else i32(1)
    return q


@jit()
def _level_lanes(x, w, scale, t):
    """``_iq4.level_search`` for LANES groups: x, w float32 (32, LANES), scale written."""
    magnitude, peak, inverse, s_qx, s_q2, best = t[0], t[1], t[2], t[3], t[4], t[5]
    for k in range(LANES):
        magnitude[k], peak[k] = _ZERO, _ZERO
    for i in range(32):
        for k in range(LANES):
            v = x[i, k]
            larger = abs(v) > magnitude[k]
            magnitude[k] = abs(v) if larger else magnitude[k]
            peak[k] = v if larger else peak[k]
    for step in range(-8, 8):
        first = step == -8
        for k in range(LANES):
            if first:
                inverse[k] = _ONE / (-peak[k] / f32(-127))
            else:
                inverse[k] = f32(f32(step) + f32(-127)) / peak[k]
            s_qx[k], s_q2[k] = _ZERO, _ZERO
        for i in range(32):
            for k in range(LANES):
                q = _level(inverse[k] * x[i, k])
                wq = w[i, k] * q
                s_qx[k] += wq * x[i, k]
                s_q2[k] += wq * q
        if first:
            for k in range(LANES):
                scale[k] = s_qx[k] / s_q2[k] if s_q2[k] > _ZERO else _ZERO
                best[k] = scale[k] * s_qx[k]
        else:
            for k in range(LANES):
                better = s_q2[k] > _ZERO and s_qx[k] * s_qx[k] > best[k] * s_q2[k]
                scale[k] = s_qx[k] / s_q2[k] if better else scale[k]
                best[k] = scale[k] * s_qx[k] if better else best[k]
    for k in range(LANES):
        scale[k] = _ZERO if magnitude[k] < _TINY else scale[k]


@jit()
def _put_levels(x, at, inverse, block, to):
    for i in range(16):
        low = _index(inverse * x[at + i])
        block[to + i] = u8(low | (_index(inverse * x[at + 16 + i]) << 4))


@jit()
def encode_iq4(x, importance, out, super_block):
    """IQ4_NL (``super_block`` 32) or IQ4_XS (256).

    Args:
        x: float32 (blocks, super_block).
        importance: float32 (blocks of a row, super_block), or (0, super_block) for none.
        out: uint8 (blocks, bytes), written.
    """
    given = len(importance) > 0
    subs = super_block // 32
    xt, wt = np.zeros((32, LANES), np.float32), np.zeros((32, LANES), np.float32)
    t, scales = np.empty((6, LANES), np.float32), np.empty(LANES, np.float32)
    group = LANES // subs
    for first in range(0, len(x), group):
        count = min(group, len(x) - first)
        for b in range(count):
            row = x[first + b]
            energy = _ZERO
            if given:
                for i in range(super_block):
                    energy += row[i] * row[i]
                energy = energy * (f32(2) / f32(super_block))
            column = (first + b) % max(1, len(importance))
            for s in range(subs):
                for i in range(32):
                    v = row[32 * s + i]
                    w = v * v
                    if given:
                        w = importance[column, 32 * s + i] * np.sqrt(energy + w)
                    xt[i, b * subs + s] = v
                    wt[i, b * subs + s] = w
        _level_lanes(xt, wt, scales, t)
        for b in range(count):
            row, block = x[first + b], out[first + b]
            if subs == 1:
                d = scales[b]
                put_half(block, 0, to_half(d))
                _put_levels(row, 0, _ZERO if d == _ZERO else _ONE / d, block, 2)
                continue
            magnitude, peak = _ZERO, _ZERO
            for s in range(subs):
                v = scales[b * subs + s]
                if abs(v) > magnitude:
                    magnitude, peak = abs(v), v
            d = -peak / f32(32)
            put_half(block, 0, to_half(d))
            inverse = _ZERO if d == _ZERO else _ONE / d
            high = 0
            for s in range(subs):
                integer = clip(nearest(inverse * scales[b * subs + s]), i32(-32), i32(31))
                step = d * f32(integer)
                _put_levels(row, 32 * s, _ZERO if step == _ZERO else _ONE / step, block, 8 + 16 * s)
                integer = i32(integer + 32)
                high |= (integer >> 4) << (2 * s)
                if s % 2 == 0:
                    block[4 + s // 2] = u8(integer & 15)
                else:
                    block[4 + s // 2] |= u8((integer & 15) << 4)
            block[2], block[3] = u8(high & 0xFF), u8(high >> 8)
