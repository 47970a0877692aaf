"""The searches of ``qlab.gguf.searches`` compiled, many groups side by side.

A sum must be added up in the order of the C, one element after the other, so a processor's vector
unit cannot help within a group. It can across groups: here ``LANES`` groups are laid out as
columns, and each step of a search is done for all of them at once. Every lane sees the operations
of the C in the order of the C.

No step may promote to float64, so constants are wrapped in ``f32`` and integers in ``i32``.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.jit import jit

LANES = 64
f32, i32, u32 = np.float32, np.int32, np.uint32
_MAGIC = f32(12582912.0)
_TINY = f32(1e-15)
_ZERO, _ONE, _TENTH = f32(0), f32(1), f32(0.1)


@jit()
def nearest(x):
    """``arithmetic.nearest_int``."""
    bits = f32(x + _MAGIC).view(np.int32)
    return i32(i32(bits & i32(0x007FFFFF)) - i32(0x00400000))


@jit()
def clip(k, low, high):
    return max(low, min(high, k))


@jit()
def to_half(x):
    """The bits of float16."""
    bits = f32(x).view(np.uint32)
    sign = u32((bits >> u32(16)) & u32(0x8000))
    size = u32(bits & u32(0x7FFFFFFF))
    if size > u32(0x7F800000):
        return u32(sign | u32(0x7E00))
    if size >= u32(0x477FF000):
        return u32(sign | u32(0x7C00))
    if size < u32(0x38800000):  # subnormal: adding 1/2 rounds to its last bit
        shifted = f32(u32(size).view(np.float32) + f32(0.5))
        return u32(sign | u32(f32(shifted).view(np.uint32) - u32(0x3F000000)))
    rounded = u32(size + u32(0xFFF) + u32((size >> u32(13)) & u32(1)))
    return u32(sign | u32(u32(rounded - u32(0x38000000)) >> u32(13)))


@jit()
def from_half(bits):
    """float32 of the bits of float16."""
    sign = u32(u32(bits & u32(0x8000)) << u32(16))
    rest = u32(bits & u32(0x7FFF))
    if rest >= u32(0x7C00):
        wide = u32(u32(0x7F800000) | u32(u32(rest & u32(0x3FF)) << u32(13)))
    elif rest < u32(0x400):
        wide = f32(f32(rest) * f32(2.0**-24)).view(np.uint32)
    else:
        wide = u32(u32(rest << u32(13)) + u32(0x38000000))
    return u32(sign | wide).view(np.float32)


@jit()
def put_half(out, at, bits):
    out[at] = np.uint8(bits & u32(0xFF))
    out[at + 1] = np.uint8(bits >> u32(8))


@jit()
def _guard(x, top):
    """From 0 to ``top``; 0 for NaN."""
    low = top if x > top else x
    return low if x > _ZERO else _ZERO


@jit()
def affine_lanes(x, w, n, start, width, steps, absolute, guarded, scale, minus_low, codes, t):
    """``searches.affine_search`` for LANES groups.

    Args:
        x, w: float32 (size, LANES).
        n: the largest code, int32.
        scale, minus_low: float32 (LANES,), written.
        codes: float32 (size, LANES), written.
        t: float32 (at least 15, LANES), scratch.
    """
    size = x.shape[0]
    low, high, sum_w, sum_x, inverse = t[0], t[1], t[2], t[3], t[4]
    s_l, s_l2, s_xl, error = t[5], t[6], t[7], t[8]
    try_scale, try_low, least, best_inverse, best_from = t[9], t[10], t[11], t[12], t[13]
    moved = t[14]
    top = f32(n)
    for k in range(LANES):
        low[k], high[k] = x[0, k], x[0, k]
        sum_w[k], sum_x[k] = w[0, k], w[0, k] * x[0, k]
    for i in range(1, size):
        for k in range(LANES):
            v, wv = x[i, k], w[i, k]
            low[k] = v if v < low[k] else low[k]
            high[k] = v if v > high[k] else high[k]
            sum_w[k] += wv
            sum_x[k] += wv * v
    for k in range(LANES):
        low[k] = _ZERO if low[k] > _ZERO else low[k]
        minus_low[k] = low[k]
        inverse[k] = top / (high[k] - low[k])
        try_scale[k] = _ONE / inverse[k]
        scale[k] = try_scale[k]
        best_inverse[k], best_from[k] = inverse[k], low[k]
        least[k], moved[k] = _ZERO, _ZERO
    for i in range(size):
        for k in range(LANES):
            q = f32(clip(nearest(inverse[k] * (x[i, k] - low[k])), i32(0), n))
            gap = try_scale[k] * q + low[k] - x[i, k]
            gap = abs(gap) if absolute else gap * gap
            least[k] += w[i, k] * gap
    for step in range(steps + 1):
        reach = f32(f32(start + f32(width * f32(step))) + top)
        for k in range(LANES):
            inverse[k] = reach / (high[k] - minus_low[k])
            s_l[k], s_l2[k], s_xl[k] = _ZERO, _ZERO, _ZERO
        for i in range(size):
            for k in range(LANES):
                v = x[i, k]
                ideal = inverse[k] * (v - minus_low[k])
                ideal = _guard(ideal, top) if guarded else ideal
                q = f32(clip(nearest(ideal), i32(0), n))
                codes[i, k] = q
                wq = w[i, k] * q
                s_l[k] += wq
                s_l2[k] += wq * q
                s_xl[k] += wq * v
        for k in range(LANES):
            det = sum_w[k] * s_l2[k] - s_l[k] * s_l[k]
            a = (sum_w[k] * s_xl[k] - sum_x[k] * s_l[k]) / det
            b = (s_l2[k] * sum_x[k] - s_l[k] * s_xl[k]) / det
            above = b > _ZERO
            try_low[k] = _ZERO if above else b
            try_scale[k] = s_xl[k] / s_l2[k] if above else a
            s_l[k] = det
            error[k] = _ZERO
        for i in range(size):
            for k in range(LANES):
                gap = try_scale[k] * codes[i, k] + try_low[k] - x[i, k]
                gap = abs(gap) if absolute else gap * gap
                error[k] += w[i, k] * gap
        for k in range(LANES):
            better = s_l[k] > _ZERO and error[k] < least[k]
            best_inverse[k] = inverse[k] if better else best_inverse[k]
            best_from[k] = minus_low[k] if better else best_from[k]
            least[k] = error[k] if better else least[k]
            scale[k] = try_scale[k] if better else scale[k]
            minus_low[k] = try_low[k] if better else minus_low[k]
            moved[k] = _ONE if better else moved[k]
    for k in range(LANES):
        flat = high[k] == low[k]
        best_inverse[k] = _ZERO if flat else best_inverse[k]
        scale[k] = _ZERO if flat else scale[k]
        minus_low[k] = -low[k] if flat else -minus_low[k]
    for i in range(size):
        for k in range(LANES):
            ideal = best_inverse[k] * (x[i, k] - best_from[k])
            ideal = _guard(ideal, top) if guarded and moved[k] > _ZERO else ideal
            codes[i, k] = f32(clip(nearest(ideal), i32(0), n))


@jit()
def symmetric_lanes(x, w, n, scale, codes, t):
    """``searches.symmetric_search`` for LANES groups; codes float32, from -n to n - 1, 0 for zeros.

    Args:
        x, w: float32 (size, LANES).
        n: half the number of codes, int32.
        scale: float32 (LANES,), written; 0 marks a group of zeros, whose codes are -n.
        codes: float32 (size, LANES), written.
        t: float32 (at least 8, LANES), scratch.
    """
    size = x.shape[0]
    magnitude, peak, inverse, s_xl, s_l2 = t[0], t[1], t[2], t[3], t[4]
    best, best_inverse = t[5], t[6]
    for k in range(LANES):
        magnitude[k], peak[k] = _ZERO, _ZERO
    for i in range(size):
        for k in range(LANES):
            v = x[i, k]
            larger = abs(v) > magnitude[k]
            magnitude[k] = abs(v) if larger else magnitude[k]
            peak[k] = v if larger else peak[k]
    for step in range(-10, 10):
        if step == 0:
            continue
        reach = f32(n) if step == -10 else f32(f32(n) + f32(_TENTH * f32(step)))
        for k in range(LANES):
            inverse[k] = -reach / peak[k]
            s_xl[k], s_l2[k] = _ZERO, _ZERO
        for i in range(size):
            for k in range(LANES):
                v, wv = x[i, k], w[i, k]
                q = f32(clip(nearest(inverse[k] * v), i32(-n), i32(n - i32(1))))
                s_xl[k] += wv * v * q
                s_l2[k] += wv * q * q
        if step == -10:  # the scale that rounding starts from
            for k in range(LANES):
                scale[k] = _ZERO if s_l2[k] == _ZERO else s_xl[k] / s_l2[k]
                best[k] = scale[k] * s_xl[k]
                best_inverse[k] = inverse[k]
        else:
            for k in range(LANES):
                better = s_l2[k] > _ZERO and s_xl[k] * s_xl[k] > best[k] * s_l2[k]
                scale[k] = s_xl[k] / s_l2[k] if better else scale[k]
                best[k] = scale[k] * s_xl[k] if better else best[k]
                best_inverse[k] = inverse[k] if better else best_inverse[k]
    for i in range(size):
        for k in range(LANES):
            q = f32(clip(nearest(best_inverse[k] * x[i, k]), i32(-n), i32(n - i32(1))))
            codes[i, k] = f32(-n) if magnitude[k] < _TINY else q
    for k in range(LANES):
        scale[k] = _ZERO if magnitude[k] < _TINY else scale[k]


@jit()
def positive_one(x, n, w, codes):
    """``searches.positive_search`` for one group; returns the scale, writes int32 ``codes``."""
    size = len(x)
    largest = _ZERO
    for i in range(size):
        largest = largest if largest > x[i] else x[i]
    if largest < _TINY:
        codes[:] = 0
        return _ZERO
    inverse = f32(n) / largest
    least = _ZERO
    step_back = _ONE / inverse
    for i in range(size):
        gap = x[i] - step_back * f32(i32(nearest(inverse * x[i]) & i32(0xFF)))
        least += w[i] * gap * gap
    for step in range(-4, 5):
        if step == 0:
            continue
        tried = f32(f32(_TENTH * f32(step)) + f32(n)) / largest
        step_back = _ONE / tried
        found = _ZERO
        for i in range(size):
            gap = x[i] - step_back * f32(min(n, nearest(tried * x[i])))
            found += w[i] * gap * gap
        if found < least:
            least = found
            inverse = tried
    xl, l2 = _ZERO, _ZERO
    for i in range(size):
        code = min(n, nearest(inverse * x[i]))
        codes[i] = i32(code & i32(0xFF))
        xl += w[i] * x[i] * f32(code)
        l2 += w[i] * f32(code) * f32(code)
    for _ in range(5):
        changed = False
        for i in range(size):
            old = f32(codes[i])
            xl_without = xl - w[i] * x[i] * old
            l2_without = l2 - w[i] * old * old
            if xl_without > _ZERO and l2_without > _ZERO:
                code = min(n, nearest(x[i] * l2_without / xl_without))
                if code != codes[i]:
                    new = f32(code)
                    xl_with = xl_without + w[i] * x[i] * new
                    l2_with = l2_without + w[i] * new * new
                    if xl_with * xl_with * l2 > xl * xl * l2_with:
                        codes[i] = i32(code & i32(0xFF))
                        xl, l2, changed = xl_with, l2_with, True
        if not changed:
            break
    return xl / l2 if l2 > _ZERO else _ZERO


@jit()
def symmetric_one(x, n, w, codes):
    """``searches.symmetric_search`` for one group; writes int32 codes from 0 to 2n - 1."""
    size = len(x)
    magnitude, peak = _ZERO, _ZERO
    for i in range(size):
        if abs(x[i]) > magnitude:
            magnitude, peak = abs(x[i]), x[i]
    if magnitude < _TINY:
        codes[:] = 0
        return _ZERO
    scale, best, best_inverse = _ZERO, _ZERO, _ZERO
    for step in range(-10, 10):
        if step == 0:
            continue
        reach = f32(n) if step == -10 else f32(f32(n) + f32(_TENTH * f32(step)))
        inverse = -reach / peak
        xl, l2 = _ZERO, _ZERO
        for i in range(size):
            q = f32(clip(nearest(inverse * x[i]), i32(-n), i32(n - i32(1))))
            xl += w[i] * x[i] * q
            l2 += w[i] * q * q
        if step == -10:
            scale = _ZERO if l2 == _ZERO else xl / l2
            best = scale * xl
            best_inverse = inverse
        elif l2 > _ZERO and xl * xl > best * l2:
            scale = xl / l2
            best = scale * xl
            best_inverse = inverse
    for i in range(size):
        codes[i] = clip(nearest(best_inverse * x[i]), i32(-n), i32(n - i32(1))) + n
    return scale


@jit()
def descent_lanes(x, n, scale, codes, t):
    """``searches.descent_search`` for LANES groups; codes float32 from -n to n - 1, -n for zeros.

    A pass in which no code of any lane moves is the last; a lane that is done stays as it is.
    """
    size = x.shape[0]
    magnitude, peak, s_xl, s_l2 = t[0], t[1], t[2], t[3]
    for k in range(LANES):
        magnitude[k], peak[k] = _ZERO, _ZERO
        s_xl[k], s_l2[k] = _ZERO, _ZERO
    for i in range(size):
        for k in range(LANES):
            v = x[i, k]
            larger = abs(v) > magnitude[k]
            magnitude[k] = abs(v) if larger else magnitude[k]
            peak[k] = v if larger else peak[k]
    for i in range(size):
        for k in range(LANES):
            v = x[i, k]
            inverse = f32(-n) / peak[k]
            q = f32(clip(nearest(inverse * v), i32(-n), i32(n - i32(1))))
            codes[i, k] = q
            w = v * v
            s_xl[k] += w * v * q
            s_l2[k] += w * q * q
    for _ in range(5):
        moved = i32(0)
        for i in range(size):
            for k in range(LANES):
                v, old = x[i, k], codes[i, k]
                w = v * v
                xl, l2 = s_xl[k], s_l2[k]
                xl_without = xl - w * v * old
                l2_without = l2 - w * old * old
                new = f32(clip(nearest(v * l2_without / xl_without), i32(-n), i32(n - i32(1))))
                xl_with = xl_without + w * v * new
                l2_with = l2_without + w * new * new
                better = xl_with * xl_with * l2 > xl * xl * l2_with
                better = better & (xl_without > _ZERO) & (new != old) & (l2_with > _ZERO)
                codes[i, k] = new if better else old
                s_xl[k] = xl_with if better else xl
                s_l2[k] = l2_with if better else l2
                moved = i32(moved | i32(better))
        if moved == 0:
            break
    for k in range(LANES):
        scale[k] = s_xl[k] / s_l2[k] if s_l2[k] > _ZERO else _ZERO
        scale[k] = _ZERO if magnitude[k] < _TINY else scale[k]
    for i in range(size):
        for k in range(LANES):
            codes[i, k] = f32(-n) if magnitude[k] < _TINY else codes[i, k]


@jit()
def row_energy(x):
    """Mean square of a row, added up in order."""
    total = _ZERO
    for i in range(len(x)):
        total += x[i] * x[i]
    return total / f32(len(x))
