"""Exact OBQ, one row a thread, in float64.

Chapter: GPTQ.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from qlab.kernels.cpu.jit import jit


@jit()
def _nearest(w, scale, factor, zero, low, high, levels, bounds):
    """(code or place, value) of one weight; arguments as in ``quantize_columns``."""
    if levels.size:
        place = np.searchsorted(bounds, w * factor)
        return np.float64(place), levels[place] * scale
    code = min(max(np.rint(w / factor) + zero, low), high)
    return code, (code - zero) * scale


@jit(parallel=True)
def quantize_rows(
    w, inverse, which, scale, factor, zero, low, high, levels, bounds, greedy, outliers
):
    """Codes (places in ``levels``) of each row: int16 (rows, n).

    Args:
        w: float64 (rows, n). inverse: float64 (n, n), H^-1.
        which: int64 (n,), the group of each column. scale, factor, zero: float64 (rows, groups).
        greedy: the cheapest weight first, else from left to right.
        outliers: with ``greedy``, weights more than half a step from the grid come first.
    """
    rows, n = w.shape
    codes = np.empty((rows, n), np.int16)
    for r in prange(rows):
        row, hinv = w[r].copy(), inverse.copy()
        free = np.ones(n, np.bool_)
        for step in range(n):
            best, p = np.inf, step
            if greedy:
                p = -1
                beyond = False
                for q in range(n):
                    if not free[q]:
                        continue
                    k = which[q]
                    _, value = _nearest(
                        row[q], scale[r, k], factor[r, k], zero[r, k], low, high, levels, bounds
                    )
                    error = row[q] - value
                    cost = error * error / hinv[q, q]
                    # Inside the grid of integers an error is half a step at most.
                    far = outliers and levels.size == 0 and abs(error) > 0.5000001 * scale[r, k]
                    if p < 0 or (far and not beyond) or (far == beyond and cost < best):
                        best, p, beyond = cost, q, far
            k = which[p]
            code, value = _nearest(
                row[p], scale[r, k], factor[r, k], zero[r, k], low, high, levels, bounds
            )
            codes[r, p] = np.int16(code)
            free[p] = False
            d = hinv[p, p]
            error = (row[p] - value) / d
            for q in range(n):
                if free[q]:
                    row[q] -= error * hinv[p, q]
            for a in range(n):
                if free[a]:
                    f = hinv[a, p] / d
                    for q in range(n):
                        hinv[a, q] -= f * hinv[p, q]
    return codes
