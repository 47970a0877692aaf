"""The grid types of two and three bits compiled: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.

What they do is explained in ``qlab.gguf.searches.grid``, in the same words. Sums must be added up
in the order of the C, so a vector unit cannot help within one. Here it computes all scales that are
tried side by side, and eight neighbours of the table side by side.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlab.kernels.cpu.gguf_lanes import nearest, positive_one, put_half, to_half
from qlab.kernels.cpu.jit import jit

f32, i32, i64, u8, u64 = np.float32, np.int32, np.int64, np.uint8, np.uint64
_ZERO, _ONE, _HALF = f32(0), f32(1), f32(0.5)
_LARGEST = np.finfo(np.float32).max
# ``_order`` of the largest float: only what is smaller is a distance.
_FARTHEST = np.uint64(0x7F7FFFFF << 32)
TRIES = 32  # room for the scales that are tried at once
WIDE = 8  # neighbours that are compared at once

# The last argument of encode_grid.
IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S = range(5)


class Tables(NamedTuple):
    """A ``Grid`` laid out for the kernels.

    Attributes:
        place: int32 (combinations,), number of the point, -1 if none.
        values: float32 (points, size), what the levels of each point are worth.
        first: int32 (combinations + 1,), where the neighbours of each combination begin in the
            next two.
        near: uint16 (rows, wide), numbers of neighbours; a list is filled up with its last one.
            ``wide`` is WIDE for points of eight, and 1 for points of four.
        near_values: float32 (rows, size, wide), what their levels are worth.
    """

    place: NDArray[Any]
    values: NDArray[Any]
    first: NDArray[Any]
    near: NDArray[Any]
    near_values: NDArray[Any]


def lay_out(grid: Any, worth: tuple[int, ...]) -> Tables:
    """The tables of a ``qlab.gguf.blocks._grids.Grid``; ``worth`` is what its levels stand for."""
    counts = np.diff(grid.first)
    wide = WIDE if grid.size == 8 else 1
    rows = -(-counts // wide)
    first = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
    whose = np.repeat(np.arange(len(counts)), rows)
    offset = (np.arange(first[-1]) - first[whose])[:, None] * wide + np.arange(wide)
    near = grid.near[grid.first[whose][:, None] + np.minimum(offset, counts[whose][:, None] - 1)]
    values = np.array(worth, np.float32)[grid.points]
    near_values = np.ascontiguousarray(values[near].transpose(0, 2, 1))
    return Tables(grid.place, values, first, near, near_values)


@jit()
def _order(distance, at):
    """A number that sorts by distance, then by place in a list; NaN comes last, as no distance.

    The bits of floats that are not negative sort as they do, and those of NaN are larger.
    """
    return u64(u64(f32(distance).view(np.uint32)) << u64(32)) | u64(at)


@jit()
def nearest_8(x, w, at, scale, shift, first, near, near_values, u):
    """The best neighbour of combination ``u``, or -1: ``nearest_point`` for one cell of eight.

    ``shift`` is added to all values of the table. Each sum is written out, so that it stays in
    registers.
    """
    x0, x1, x2, x3 = x[at + 0], x[at + 1], x[at + 2], x[at + 3]
    x4, x5, x6, x7 = x[at + 4], x[at + 5], x[at + 6], x[at + 7]
    w0, w1, w2, w3 = w[at + 0], w[at + 1], w[at + 2], w[at + 3]
    w4, w5, w6, w7 = w[at + 4], w[at + 5], w[at + 6], w[at + 7]
    best = _FARTHEST
    for row in range(first[u], first[u + 1]):
        for j in range(WIDE):
            gap = scale * (near_values[row, 0, j] + shift) - x0
            d = w0 * gap * gap
            gap = scale * (near_values[row, 1, j] + shift) - x1
            d += w1 * gap * gap
            gap = scale * (near_values[row, 2, j] + shift) - x2
            d += w2 * gap * gap
            gap = scale * (near_values[row, 3, j] + shift) - x3
            d += w3 * gap * gap
            gap = scale * (near_values[row, 4, j] + shift) - x4
            d += w4 * gap * gap
            gap = scale * (near_values[row, 5, j] + shift) - x5
            d += w5 * gap * gap
            gap = scale * (near_values[row, 6, j] + shift) - x6
            d += w6 * gap * gap
            gap = scale * (near_values[row, 7, j] + shift) - x7
            d += w7 * gap * gap
            best = min(best, _order(d, row * WIDE + j))
    if best == _FARTHEST:
        return i32(-1)
    found = i64(best & u64(0xFFFFFFFF))
    return i32(near[found // WIDE, found % WIDE])


@jit()
def _nearest_4(x, w, at, scale, first, near, near_values, u):
    """The same for one cell of four. Lists are short: a plain look at one after the other."""
    x0, x1, x2, x3 = x[at + 0], x[at + 1], x[at + 2], x[at + 3]
    w0, w1, w2, w3 = w[at + 0], w[at + 1], w[at + 2], w[at + 3]
    least, found = _LARGEST, i32(-1)
    for row in range(first[u], first[u + 1]):
        gap = scale * near_values[row, 0, 0] - x0
        d = w0 * gap * gap
        gap = scale * near_values[row, 1, 0] - x1
        d += w1 * gap * gap
        gap = scale * near_values[row, 2, 0] - x2
        d += w2 * gap * gap
        gap = scale * near_values[row, 3, 0] - x3
        d += w3 * gap * gap
        if d < least:
            least, found = d, i32(near[row, 0])
    return found


@jit()
def _nearest(x, w, at, size, scale, first, near, near_values, u):
    if size == 4:
        return _nearest_4(x, w, at, scale, first, near, near_values, u)
    # Adding -0 changes nothing, and the compiler knows.
    return nearest_8(x, w, at, scale, f32(-0.0), first, near, near_values, u)


@jit()
def _split(x, w, even, size, bits):
    """Magnitudes, written over x, and sign bits: ``split_signs``."""
    for k in range(len(x) // 8):
        at = 8 * k
        sign, odd = i32(0), i32(0)
        cheapest = 0
        least = w[at] * x[at] * x[at]
        for i in range(8):
            v = x[at + i]
            cost = w[at + i] * v * v
            if cost < least:
                least, cheapest = cost, i
            if v < _ZERO:
                x[at + i] = -v
                sign |= i32(1 << i)
                odd ^= i32(1)
        if even and odd == 1:
            x[at + cheapest] = -x[at + cheapest]
            sign ^= i32(1 << cheapest)
        bits[k] = sign & (127 if even else 255)


@jit()
def _combinations(x, size, levels, inverse, lanes, q, number):
    """Rounded to levels with each scale: q float32 (n, TRIES) as 2 level + 1, number by cell."""
    top = i32(levels - 1)
    power = i32(1)
    for i in range(len(x)):
        v, cell = x[i], i // size
        if i % size == 0:
            power = i32(1)
            for t in range(lanes):
                number[cell, t] = i32(0)
        for t in range(lanes):
            level = nearest(_HALF * (inverse[t] * v - _ONE))
            level = max(i32(0), min(top, level))
            q[i, t] = f32(2) * f32(level) + _ONE
            number[cell, t] += i32(level * power)
        power = i32(power * levels)


@jit()
def _group(
    x, w, kind, largest, scale, place, values, first, near, near_values, points, q, number, t5
):
    """``_points_and_scale`` of one group: writes its points, returns the scale, NaN for overflow.

    Args:
        x, w: float32 (n,), magnitudes and costs.
        points: int32 (n / size,), written.
        q: float32 (n, TRIES) and number: int32 (2 n / size, TRIES), scratch.
        t5: float32 (5, TRIES), scratch.
    """
    three = kind >= IQ3_XXS
    size, levels = (4, 8) if three else (8, 3)
    reach = 6 if kind == IQ2_XXS else 15 if kind == IQ3_XXS else 9
    width = f32(0.2) if three else f32(0.1)
    top = f32(2 * levels - 1)
    n = len(x)
    cells = n // size
    tries = 2 * reach + 1
    lanes = (tries + 7) // 8 * 8
    inverse, forward, s_xq, s_q2, root = t5[0], t5[1], t5[2], t5[3], t5[4]
    for t in range(lanes):
        inverse[t] = (top + f32(t - reach) * width) / largest
        forward[t] = _ONE / inverse[t]
        s_xq[t], s_q2[t] = _ZERO, _ZERO
    for i in range(n):
        root[i] = np.sqrt(w[i])
    nan = f32(np.nan)
    _combinations(x, size, levels, inverse, lanes, q, number)
    for c in range(cells):
        at = c * size
        for t in range(tries):
            u = number[c, t]
            p = place[u]
            number[cells + c, t] = i32(0)
            if p < 0:
                number[cells + c, t] = i32(1)
                p = _nearest(x, root, at, size, forward[t], first, near, near_values, u)
                if p < 0:
                    return nan
                for i in range(size):
                    q[at + i, t] = values[p, i]
            number[c, t] = p
    for i in range(n):
        v, cost = x[i], w[i]
        wx = cost * v
        for t in range(lanes):
            s_xq[t] += wx * q[i, t]
            s_q2[t] += cost * q[i, t] * q[i, t]
    best, chosen = _ZERO, -1
    for t in range(tries):
        if s_q2[t] > _ZERO and s_xq[t] * s_xq[t] > best * s_q2[t]:
            scale = s_xq[t] / s_q2[t]
            best = scale * s_xq[t]
            chosen = t
    any_off = kind == IQ2_XXS or (kind == IQ3_S and chosen < 0)
    for c in range(cells):
        points[c] = number[c, chosen] if chosen >= 0 else i32(0)
        any_off = any_off or (chosen >= 0 and number[cells + c, chosen] == 1)
    if any_off and scale > _ZERO:
        all_of_them = kind == IQ2_XXS or kind == IQ3_S
        back = _ONE / scale
        for c in range(cells):
            if not (all_of_them or (chosen >= 0 and number[cells + c, chosen] == 1)):
                continue
            at = c * size
            u, power = i32(0), i32(1)
            for i in range(size):
                level = nearest(_HALF * (back * x[at + i] - _ONE))
                level = max(i32(0), min(i32(levels - 1), level))
                u = i32(u + level * power)
                power = i32(power * levels)
            p = place[u]
            if p < 0:
                p = _nearest(x, root, at, size, scale, first, near, near_values, u)
                if p < 0:
                    return nan
            points[c] = p
        xq, q2 = _ZERO, _ZERO
        for i in range(n):
            v = values[points[i // size], i % size]
            xq += w[i] * x[i] * v
            q2 += w[i] * v * v
        if q2 > _ZERO:
            scale = xq / q2
    return scale


@jit()
def encode_grid(x, importance, out, place, values, first, near, near_values, kind):
    """All five types.

    Args:
        x: float32 (blocks, 256).
        importance: float32 (blocks of a row, 256), or (0, 256) for none.
        out: uint8 (blocks, bytes), written.
        place, values, first, near, near_values: the ``Tables``.
        kind: one of the constants above.

    Returns: whether all went well; not where float32 overflows.
    """
    given = len(importance) > 0
    n = 16 if kind == IQ2_XS or kind == IQ2_S else 32
    size, levels = (4, 8) if kind >= IQ3_XXS else (8, 3)
    groups, cells, eights = 256 // n, n // size, n // 8
    even = kind == IQ2_XXS or kind == IQ2_XS or kind == IQ3_XXS
    threshold = f32(1e-15) if kind == IQ2_XXS or kind == IQ2_XS else f32(1e-8)
    threshold = _ZERO if kind == IQ3_S else threshold
    times = _ONE if kind == IQ2_XXS or kind == IQ2_XS else f32(2)
    all_points, all_bits = np.empty((groups, cells), np.int32), np.empty((groups, eights), np.int32)
    scales, s = np.empty(groups, np.float32), np.empty(groups, np.int32)
    v, w, codes = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.int32)
    q, number = np.zeros((n, TRIES), np.float32), np.zeros((2 * cells, TRIES), np.int32)
    t5 = np.zeros((5, TRIES), np.float32)
    for b in range(len(x)):
        row = x[b]
        column = b % max(1, len(importance))
        energy = _ZERO
        if given or kind == IQ2_S:
            for i in range(256):
                energy += row[i] * row[i]
            energy = times * energy / f32(256)
        for g in range(groups):
            for i in range(n):
                value = row[g * n + i]
                v[i] = value
                if given:
                    w[i] = importance[column, g * n + i] * np.sqrt(energy + value * value)
                elif kind == IQ2_S:
                    w[i] = f32(0.25) * energy + value * value
                else:
                    w[i] = value * value
            _split(v, w, even, size, all_bits[g])
            largest = v[0]
            for i in range(1, n):
                largest = largest if largest > v[i] else v[i]
            live = largest != _ZERO and not largest < threshold
            scale = largest / f32(2 * levels - 1)
            if live and kind == IQ2_XXS:
                scale = positive_one(v, i32(4), w, codes)
                largest = scale * f32(3)
                live = not largest <= _ZERO
            if not live:
                scales[g] = _ZERO
                all_points[g, :] = 0
                all_bits[g, :] = 0
                continue
            scale = _group(
                v, w, kind, largest, scale, place, values, first, near, near_values,
                all_points[g], q, number, t5,
            )  # fmt: skip
            if np.isnan(scale):
                return False
            if scale < _ZERO:
                scale = -scale
                for k in range(eights):
                    all_bits[g, k] = ~all_bits[g, k] & (127 if even else 255)
            scales[g] = scale
        _pack(row, all_points, all_bits, _sub_scales(scales, s), s, kind, out[b])
    return True


@jit()
def _sub_scales(scales, s):
    """``sub_scales`` with four bits; returns d."""
    largest = _ZERO
    for g in range(len(scales)):
        largest = scales[g] if scales[g] > largest else largest
    d = largest / f32(31)
    inverse = _ONE / d
    for g in range(len(scales)):
        level = nearest(_HALF * (inverse * scales[g] - _ONE))
        s[g] = i32(0) if largest == _ZERO else max(i32(0), min(i32(15), level))
    return d


@jit()
def _pack(row, points, bits, d, s, kind, block):
    """The bytes of a block, as the classes in ``qlab.gguf.blocks`` draw them."""
    block[:] = 0
    if kind == IQ2_XXS or kind == IQ2_XS or kind == IQ3_XXS:
        if d == _ZERO:
            return
    groups = len(s)
    if kind == IQ2_XXS or kind == IQ3_XXS:
        put_half(block, 0, to_half(d * f32(1.0125) if kind == IQ3_XXS else d))
        for g in range(8):
            word = np.uint32(s[g]) << np.uint32(28)
            for k in range(4):
                word |= np.uint32(bits[g, k]) << np.uint32(7 * k)
            at = 66 + 4 * g
            if kind == IQ2_XXS:
                at = 6 + 8 * g
                for k in range(4):
                    block[2 + 8 * g + k] = u8(points[g, k])
            else:
                for k in range(8):
                    block[2 + 8 * g + k] = u8(points[g, k])
            for k in range(4):
                block[at + k] = u8((word >> np.uint32(8 * k)) & np.uint32(255))
        return
    nibbles = 66
    if kind == IQ2_XS:
        put_half(block, 0, to_half(d))
        for g in range(16):
            for k in range(2):
                code = points[g, k] | (bits[g, k] << 9)
                block[2 + 4 * g + 2 * k] = u8(code & 255)
                block[3 + 4 * g + 2 * k] = u8(code >> 8)
    elif kind == IQ2_S:
        nibbles = 74
        put_half(block, 0, to_half(d * f32(0.9875)))
        for g in range(16):
            for k in range(2):
                at = 2 * g + k
                block[2 + at] = u8(points[g, k] & 255)
                block[34 + at] = u8(bits[g, k])
                block[66 + at // 4] |= u8((points[g, k] >> 8) << (2 * (at % 4)))
    else:
        nibbles = 106
        put_half(block, 0, to_half(d * f32(1.033)))
        early = 0  # see IQ3_S.encode
        for g in range(8):
            zero = True
            for i in range(32):
                zero = zero and row[32 * g + i] == _ZERO
            for k in range(8):
                block[66 + g] |= u8((points[g, k] >> 8) << k)
            if zero:
                continue
            for k in range(8):
                block[2 + 8 * early + k] = u8(points[g, k] & 255)
            for k in range(4):
                block[74 + 4 * early + k] = u8(bits[g, k])
            early += 1
    for g in range(0, groups, 2):
        block[nibbles + g // 2] = u8(s[g] | (s[g + 1] << 4))
