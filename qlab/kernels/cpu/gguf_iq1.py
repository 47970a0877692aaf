"""The ternary grid types compiled: IQ1_S and IQ1_M.

What they do is explained in ``qlab.gguf.searches.ternary``, in the same words. The cuts of
``LANES`` groups are tried side by side.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.gguf_iq_grid import nearest_8
from qlab.kernels.cpu.gguf_lanes import LANES, nearest, put_half, to_half
from qlab.kernels.cpu.jit import jit

f32, i32, u8 = np.float32, np.int32, np.uint8
_ZERO, _ONE, _HALF = f32(0), f32(1), f32(0.5)
_LARGEST = np.finfo(np.float32).max
# What the levels are worth: with a shift of + 1/8 and of - 1/8.
_A0, _B0, _C0 = f32(-0.875), f32(0.125), f32(1.125)
_A1, _B1, _C1 = f32(-1.125), f32(-0.125), f32(0.875)


@jit()
def _sort(x, order):
    """Positions of x from the smallest to the largest; equal ones stay in order."""
    for i in range(len(x)):
        v, k = x[i], i
        while k > 0 and x[order[k - 1]] > v:
            order[k] = order[k - 1]
            k -= 1
        order[k] = i32(i)


@jit()
def _try(xq, q2, tag, score, scale, found, k):
    better = q2 > _ZERO and xq * xq > score[k] * q2
    scale[k] = xq / q2 if better else scale[k]
    score[k] = scale[k] * xq if better else score[k]
    found[k] = tag if better else found[k]


@jit()
def _cuts(sum_x, sum_w, score, scale, found):
    """``_cuts`` for LANES groups of 32. ``found``: (low · 33 + high) · 2 + choice, or -1."""
    for low in range(33):
        for high in range(low, 33):
            tag = i32((low * 33 + high) * 2)
            for k in range(LANES):
                bx, bw = sum_x[low, k] - sum_x[0, k], sum_w[low, k] - sum_w[0, k]
                mx, mw = sum_x[high, k] - sum_x[low, k], sum_w[high, k] - sum_w[low, k]
                hx, hw = sum_x[32, k] - sum_x[high, k], sum_w[32, k] - sum_w[high, k]
                xq = bx * _A0 + mx * _B0 + hx * _C0
                q2 = bw * _A0 * _A0 + mw * _B0 * _B0 + hw * _C0 * _C0
                _try(xq, q2, tag, score, scale, found, k)
                xq = bx * _A1 + mx * _B1 + hx * _C1
                q2 = bw * _A1 * _A1 + mw * _B1 * _B1 + hw * _C1 * _C1
                _try(xq, q2, i32(tag + 1), score, scale, found, k)


@jit()
def _cuts_of_halves(sum_x, sum_w, score, scale, found):
    """``_cuts_of_halves`` for LANES groups of 16: sums (2 · 17, LANES), the first half's first.

    ``found``: (low · 17 + high) · 4 + choice, or -1.
    """
    below0, above0 = _A0 * _A0 - _B0 * _B0, _B0 * _B0 - _C0 * _C0
    below1, above1 = _A1 * _A1 - _B1 * _B1, _B1 * _B1 - _C1 * _C1
    for low in range(17):
        for high in range(low, 17):
            tag = i32((low * 17 + high) * 4)
            for k in range(LANES):
                cut = sum_x[low, k] + sum_x[high, k]
                total, w = sum_x[16, k], sum_w[16, k]
                wl, wh = sum_w[low, k], sum_w[high, k]
                x0, x1 = total * _C0 - cut, total * _C1 - cut
                q0 = w * _C0 * _C0 + wl * below0 + wh * above0
                q1 = w * _C1 * _C1 + wl * below1 + wh * above1
                cut = sum_x[17 + low, k] + sum_x[17 + high, k]
                total, w = sum_x[33, k], sum_w[33, k]
                wl, wh = sum_w[17 + low, k], sum_w[17 + high, k]
                y0, y1 = total * _C0 - cut, total * _C1 - cut
                r0 = w * _C0 * _C0 + wl * below0 + wh * above0
                r1 = w * _C1 * _C1 + wl * below1 + wh * above1
                _try(x0 + y0, q0 + r0, tag, score, scale, found, k)
                _try(x0 + y1, q0 + r1, i32(tag + 1), score, scale, found, k)
                _try(x1 + y0, q1 + r0, i32(tag + 2), score, scale, found, k)
                _try(x1 + y1, q1 + r1, i32(tag + 3), score, scale, found, k)


@jit()
def _costs(row, importance, column, costs):
    """What an error in each weight of a block costs."""
    energy = _ZERO
    for i in range(256):
        energy += row[i] * row[i]
    energy = f32(2) * energy / f32(256)
    for i in range(256):
        square = row[i] * row[i]
        given = len(importance) > 0
        costs[i] = importance[column, i] * np.sqrt(energy + square) if given else square


@jit()
def _fill(x, w, threshold, order, sum_x, sum_w, k, halves):
    """Sort a group and write its sums as column ``k``; returns whether it is not zero."""
    n = len(x)
    largest = _ZERO
    for i in range(n):
        largest = abs(x[i]) if abs(x[i]) > largest else largest
    if largest < threshold:
        return False
    _sort(x, order)
    for h in range(2 if halves else 1):
        xs, ws = _ZERO, _ZERO
        base = 17 * h
        sum_x[base, k], sum_w[base, k] = _ZERO, _ZERO
        for j in range(n):
            i = order[j]
            if not halves or (i >= 8) == (h == 1):
                xs += w[i] * x[i]
                ws += w[i]
            sum_x[base + j + 1, k], sum_w[base + j + 1, k] = xs, ws
    return True


@jit()
def _points(x, w, order, low, high, shifts, scale, table, levels, points):
    """Points of a group for these cuts; its scale, NaN for overflow. A negative scale flips all.

    Args:
        x, w: float32 (n,).
        order: int32 (n,).
        shifts: int32 (n / 8,), 0 for + 1/8; flipped with the scale.
        table: the five arrays of ``Tables``.
        levels: int32 (n,), scratch.
        points: int32 (n / 8,), written.
    """
    place, values, first, near, near_values = table
    n = len(x)
    for j in range(n):
        levels[order[j]] = i32(0) if j < low else i32(1) if j < high else i32(2)
    if scale < _ZERO:
        scale = -scale
        for i in range(n):
            levels[i] = i32(2 - levels[i])
        for c in range(n // 8):
            shifts[c] = i32(1 - shifts[c])
    off = False
    for c in range(n // 8):
        at = 8 * c
        u, power = i32(0), i32(1)
        for i in range(8):
            u = i32(u + levels[at + i] * power)
            power = i32(power * 3)
        p = place[u]
        if p < 0:
            off = True
            shift = _B0 if shifts[c] == 0 else _B1
            p = nearest_8(x, w, at, scale, shift, first, near, near_values, u)
            if p < 0:
                return f32(np.nan)
        points[c] = p
    if off:
        xq, q2 = _ZERO, _ZERO
        for i in range(n):
            q = values[points[i // 8], i % 8] + (_B0 if shifts[i // 8] == 0 else _B1)
            xq += w[i] * q * x[i]
            q2 += w[i] * q * q
        if xq > _ZERO and q2 > _ZERO:
            scale = xq / q2
    return scale


@jit()
def _largest(scales):
    largest = _ZERO
    for g in range(len(scales)):
        largest = scales[g] if scales[g] > largest else largest
    return largest


@jit()
def _sub_scale(inverse, scale):
    level = nearest(_HALF * (inverse * scale - _ONE))
    return max(i32(0), min(i32(7), level))


@jit()
def encode_iq1_s(x, importance, out, place, values, first, near, near_values):
    """IQ1_S.

    Args:
        x: float32 (blocks, 256).
        importance: float32 (blocks of a row, 256).
        out: uint8 (blocks, 50), written.
        place, values, first, near, near_values: the ``Tables``.

    Returns: whether all went well; not where float32 overflows.
    """
    table = (place, values, first, near, near_values)
    sum_x, sum_w = np.zeros((33, LANES), np.float32), np.zeros((33, LANES), np.float32)
    score, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    found, order = np.empty(LANES, np.int32), np.empty((LANES, 32), np.int32)
    live = np.empty(LANES, np.bool_)
    per = LANES // 8
    costs = np.empty((per, 256), np.float32)
    shifts, points = np.empty(4, np.int32), np.empty(4, np.int32)
    levels = np.empty(32, np.int32)
    scales, words = np.empty(8, np.float32), np.empty(8, np.int32)
    for begin in range(0, len(x), per):
        count = min(per, len(x) - begin)
        for b in range(count):
            row = x[begin + b]
            _costs(row, importance, (begin + b) % max(1, len(importance)), costs[b])
            for g in range(8):
                k, at = 8 * b + g, 32 * g
                live[k] = _fill(
                    row[at : at + 32], costs[b, at : at + 32], f32(1e-12),
                    order[k], sum_x, sum_w, k, False,
                )  # fmt: skip
        for k in range(LANES):
            score[k], scale[k], found[k] = -_LARGEST, _ZERO, i32(-1)
        _cuts(sum_x, sum_w, score, scale, found)
        for b in range(count):
            row, block = x[begin + b], out[begin + b]
            block[:] = 0
            for g in range(8):
                k, at = 8 * b + g, 32 * g
                scales[g], words[g], shifts[0] = _ZERO, i32(0), i32(0)
                if live[k] and found[k] >= 0:
                    cuts = found[k] // 2
                    shifts[:] = found[k] % 2
                    scales[g] = _points(
                        row[at : at + 32], costs[b, at : at + 32], order[k], cuts // 33, cuts % 33,
                        shifts, scale[k], table, levels, points,
                    )  # fmt: skip
                    if np.isnan(scales[g]):
                        return False
                    for c in range(4):
                        block[2 + 4 * g + c] = u8(points[c] & 255)
                        words[g] |= i32((points[c] >> 8) << (3 * c))
                # The shift lies above the three bits of s; both are written below.
                words[g] |= i32(shifts[0] << 15)
            largest = _largest(scales)
            d = largest / f32(15)
            inverse = _ONE / d
            put_half(block, 0, to_half(d * f32(1.125)))
            for g in range(8):
                word = words[g] & 0x0FFF
                if largest != _ZERO:
                    word = words[g] | (_sub_scale(inverse, scales[g]) << 12)
                block[34 + 2 * g] = u8(word & 255)
                block[35 + 2 * g] = u8(word >> 8)
    return True


@jit()
def encode_iq1_m(x, importance, out, place, values, first, near, near_values):
    """IQ1_M; as ``encode_iq1_s``, with ``importance`` (0, 256) for none, and blocks of 56 bytes."""
    table = (place, values, first, near, near_values)
    sum_x, sum_w = np.zeros((34, LANES), np.float32), np.zeros((34, LANES), np.float32)
    score, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    found, order = np.empty(LANES, np.int32), np.empty((LANES, 16), np.int32)
    live = np.empty(LANES, np.bool_)
    per = LANES // 16
    costs = np.empty((per, 256), np.float32)
    shifts, points = np.empty((16, 2), np.int32), np.empty((16, 2), np.int32)
    levels = np.empty(16, np.int32)
    scales, words = np.empty(16, np.float32), np.empty(4, np.int32)
    for begin in range(0, len(x), per):
        count = min(per, len(x) - begin)
        for b in range(count):
            row = x[begin + b]
            _costs(row, importance, (begin + b) % max(1, len(importance)), costs[b])
            for g in range(16):
                k, at = 16 * b + g, 16 * g
                live[k] = _fill(
                    row[at : at + 16], costs[b, at : at + 16], f32(1e-7),
                    order[k], sum_x, sum_w, k, True,
                )  # fmt: skip
        for k in range(LANES):
            score[k], scale[k], found[k] = -_LARGEST, _ZERO, i32(-1)
        _cuts_of_halves(sum_x, sum_w, score, scale, found)
        for b in range(count):
            row, block = x[begin + b], out[begin + b]
            block[:] = 0
            words[:] = 0
            for g in range(16):
                k, at = 16 * b + g, 16 * g
                scales[g] = _ZERO
                shifts[g, :] = 0
                points[g, :] = 0
                if live[k] and found[k] >= 0:
                    cuts = found[k] // 4
                    shifts[g, 0], shifts[g, 1] = i32((found[k] >> 1) & 1), i32(found[k] & 1)
                    scales[g] = _points(
                        row[at : at + 16], costs[b, at : at + 16], order[k], cuts // 17, cuts % 17,
                        shifts[g], scale[k], table, levels, points[g],
                    )  # fmt: skip
                    if np.isnan(scales[g]):
                        return False
                for c in range(2):
                    block[2 * g + c] = u8(points[g, c] & 255)
                    block[32 + g] |= u8((points[g, c] >> 8) << (4 * c))
            largest = _largest(scales)
            if largest == _ZERO:
                continue
            d = largest / f32(15)
            inverse = _ONE / d
            xq, q2 = _ZERO, _ZERO
            for g in range(16):
                s = _sub_scale(inverse, scales[g])
                words[g // 4] |= i32(s << (3 * (g % 4)))
                for c in range(2):
                    block[32 + g] |= u8(shifts[g, c] << (4 * c + 3))
                    shift = _B0 if shifts[g, c] == 0 else _B1
                    for i in range(8):
                        at = 16 * g + 8 * c + i
                        q = (values[points[g, c], i] + shift) * f32(2 * s + 1)
                        xq += costs[b, at] * q * row[at]
                        q2 += costs[b, at] * q * q
            if q2 > _ZERO:
                d = xq / q2
            bits = i32(to_half(d * f32(1.1125)))
            for j in range(4):
                word = words[j] | (((bits >> (4 * j)) & 15) << 12)
                block[48 + 2 * j] = u8(word & 255)
                block[49 + 2 * j] = u8(word >> 8)
    return True
