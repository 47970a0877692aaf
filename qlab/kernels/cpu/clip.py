"""The exact search for the scale of least squared error, one row a thread.

With levels l_0 < l_1 < ... at scale 1 and thresholds t_j halfway between neighbours, a value x > 0
gets level j as soon as s falls below x / t_j. Between two such breakpoints nothing changes its
level, so the error is a parabola in s:

    E(s) = sum x² - 2 s A + s² B,      A = sum x·l(x),  B = sum l(x)²,

with its minimum sum x² - A²/B at s = A/B. The search walks s from infinity down through all
breakpoints in order, keeps A and B as running sums, and takes a parabola's minimum where it lies
between its two breakpoints. At a breakpoint itself E has a concave kink, never a minimum. The
breakpoints of one threshold come sorted because the row is; a heap merges the thresholds.

It stops when the clipping error alone, which only grows as s falls, exceeds the best error so far:
for 4 bits and Gaussian values it then has visited about 2 of 7 breakpoints a value.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from qlab.kernels.cpu.jit import jit


@jit()
def _value(row, side, rank):
    """Magnitude of rank ``rank`` from the outside: of the positive values, or of the negative."""
    n = row.size
    if rank >= n:
        return 0.0
    return np.float64(row[n - 1 - rank]) if side == 0 else -np.float64(row[rank])


@jit()
def _sift(keys, streams, size, i):
    """Restore the heap (largest key first) below place i."""
    key, stream = keys[i], streams[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] > keys[child]:
            child += 1
        if keys[child] <= key:
            break
        keys[i], streams[i] = keys[child], streams[child]
        i = child
    keys[i], streams[i] = key, stream


@jit()
def _search_row(row, t, dl, dq, side, base, top, known, keys, streams, ptr):
    """(s, E) of least squared error E < known; s = 0 if there is none.

    row: float32, ascending. Stream j: threshold t[j] > 0 on side[j] (0: positive values, 1: the
    magnitudes of negative values); passing it changes the level's magnitude by dl[j] and its square
    by dq[j]. base, top: magnitude of the level next to zero and of the outermost one, each side.
    keys, streams, ptr: work space, one place a stream.
    """
    n, size = row.size, t.size
    squares = 0.0
    a, b = 0.0, 0.0
    clip_fixed = 0.0
    for i in range(n):
        x = np.float64(row[i])
        of = 0 if x >= 0 else 1
        squares += x * x
        a += abs(x) * base[of]
        b += base[of] * base[of]
        if top[of] <= 0:
            clip_fixed += x * x
    tie = 1e-14 * squares  # what float64 sums of these values can resolve
    best, best_s = known, 0.0
    if clip_fixed >= best:
        return best_s, best

    for j in range(size):
        streams[j] = j
        ptr[j] = 0
        keys[j] = max(_value(row, side[j], ptr[j]), 0.0) / t[j]
    for i in range(size // 2 - 1, -1, -1):
        _sift(keys, streams, size, i)

    above = np.inf
    # Clipped so far on each side: how many, their sum and their sum of squares.
    c0, c1 = 0, 0
    sum0, sum1, sq0, sq1 = 0.0, 0.0, 0.0, 0.0
    while True:
        below = keys[0] if size > 0 else 0.0
        if b > 0 and a >= below * b and a <= above * b:
            error = squares - a * a / b
            # Of scales that are equally good up to rounding, the last and smallest.
            if error < best or (best_s > 0 and error <= best + tie):
                best, best_s = min(best, error), a / b
        if below <= 0:
            break
        j = streams[0]
        of = side[j]
        a += dl[j] * _value(row, of, ptr[j])
        b += dq[j]
        ptr[j] += 1
        keys[0] = max(_value(row, of, ptr[j]), 0.0) / t[j]
        _sift(keys, streams, size, 0)
        above = below
        if j == size - 1 or side[j + 1] != of:  # the outermost threshold of its side
            while top[0] > 0:
                x = _value(row, 0, c0)
                if x <= below * top[0]:
                    break
                c0 += 1
                sum0 += x
                sq0 += x * x
            while top[1] > 0:
                x = _value(row, 1, c1)
                if x <= below * top[1]:
                    break
                c1 += 1
                sum1 += x
                sq1 += x * x
            u, v = below * top[0], below * top[1]
            clipped = sq0 - 2 * u * sum0 + u * u * c0 + sq1 - 2 * v * sum1 + v * v * c1
            if clipped + clip_fixed > best + tie:
                break
    return best_s, best


@jit(parallel=True)
def search_scales(rows, t, dl, dq, side, base, top):
    """The best scale of each row: float64 (rows,). Arguments as in ``_search_row``."""
    out = np.zeros(rows.shape[0])
    for i in prange(rows.shape[0]):
        size = t.size
        keys = np.empty(size)
        streams = np.empty(size, np.int64)
        ptr = np.empty(size, np.int64)
        s, _ = _search_row(rows[i], t, dl, dq, side, base, top, np.inf, keys, streams, ptr)
        out[i] = s
    return out


@jit(parallel=True)
def search_affine(rows, qmin, qmax, first, window):
    """The best scale and zero point of each row, for codes qmin ... qmax.

    first: int64 (rows,), the zero point to try first; then its neighbours, farther and farther, up
    to ``window`` away. Returns float64 (rows,) and int64 (rows,).
    """
    out_s = np.zeros(rows.shape[0])
    out_z = first.copy()
    for i in prange(rows.shape[0]):
        size = qmax - qmin
        keys, t, dq = np.empty(size), np.empty(size), np.empty(size)
        dl, base, top = np.ones(size), np.zeros(2), np.zeros(2)
        streams, ptr, side = (
            np.empty(size, np.int64),
            np.empty(size, np.int64),
            np.empty(size, np.int64),
        )
        best = np.inf
        for step in range(2 * window + 1):
            z = first[i] + (step + 1) // 2 * (1 if step % 2 else -1)
            if z < qmin or z > qmax:
                continue
            top[0], top[1] = qmax - z, z - qmin
            for j in range(size):
                side[j] = 0 if j < qmax - z else 1
                k = j + 1 if side[j] == 0 else j + 1 - (qmax - z)
                t[j] = k - 0.5
                dq[j] = 2 * k - 1
            s, error = _search_row(rows[i], t, dl, dq, side, base, top, best, keys, streams, ptr)
            if s > 0:
                best, out_s[i], out_z[i] = error, s, z
    return out_s, out_z
