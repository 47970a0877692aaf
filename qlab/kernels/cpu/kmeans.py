"""The dynamic program of ``qlab.core.kmeans`` compiled.

The recurrence, the tables and the order of the comparisons are those of ``qlab.core.kmeans`` and
``qlab.core.segments``, where they are explained.

Chapter: Beyond the straight line.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from qlab.kernels.cpu.jit import jit

_TINY = 2.0**-1022  # keeps 0 / 0 of runs without weight at 0


@jit()
def _tables(x, w, mean, weight, error):
    """Mean, weight and error of every run that starts or ends in the middle of its block."""
    n = len(x)
    for level in range(mean.shape[0]):
        half = 1 << level
        for middle in range(half, n + half, 2 * half):
            for side in range(2):
                step = 1 if side else -1
                at = middle if side else middle - 1
                if not side and at >= n:
                    continue
                first = x[min(at, n - 1)]
                total, shifted, err, before = 0.0, 0.0, 0.0, first
                for _ in range(half):
                    if at < n:
                        grown = total + w[at]
                        if grown > 0:
                            err += w[at] * total / grown * (x[at] - before) ** 2
                        total = grown
                        shifted += w[at] * (x[at] - first)
                        if total > 0:
                            before = first + shifted / total
                        mean[level, at], weight[level, at], error[level, at] = before, total, err
                    at += step


@jit()
def _costs(mean, weight, error, before, i, low, high, costs):
    """before[m - 1] + error(m..i) for m = low..high, written to ``costs``."""
    for level in range(mean.shape[0]):
        if not (i >> level) & 1:
            continue
        # Runs that start in the left half of the block of this level end with i in its right half.
        begin = ((i >> level) - 1) << level
        w2, mean2, error2 = weight[level, i], mean[level, i], error[level, i]
        for m in range(max(begin, low), min(begin + (1 << level), high + 1)):
            w1 = weight[level, m]
            gap = mean[level, m] - mean2
            joined = w1 * w2 / max(w1 + w2, _TINY)
            costs[m] = before[m] + error[level, m] + error2 + joined * gap * gap
    if high == i:
        costs[i] = before[i]


@jit()
def _row(mean, weight, error, before, least, best, only_last, costs):
    """D_j and the start of its last run, by divide and conquer. ``before[m]`` is D_{j-1}(m - 1)."""
    n = len(least)
    stride = 1
    while stride < n:
        stride *= 2
    while stride >= 1:
        for i in range(n - 1 if only_last else stride - 1, n, 2 * stride):
            low = best[i - stride] if i >= stride and not only_last else 0
            high = min(i, best[i + stride]) if i + stride < n else i
            _costs(mean, weight, error, before, i, low, high, costs)
            where = low
            for m in range(low + 1, high + 1):
                if costs[m] < costs[where]:
                    where = m
            least[i], best[i] = costs[where], where
        if only_last:
            break
        stride //= 2


@jit(parallel=True)
def kmeans_rows(x, k, weights):
    """Optimal centroids of each row.

    Args:
        x: float64 (rows, n), each row ascending, n at least 1.
        k: number of centroids.
        weights: float64 (rows, n), not negative.

    Returns: float64 (rows, k), ascending; and the least error (rows,).
    """
    rows, n = x.shape
    levels = 1
    while (1 << levels) < n:
        levels += 1
    centroids = np.empty((rows, k))
    errors = np.empty(rows)
    for r in prange(rows):
        mean, weight = np.zeros((levels, n)), np.zeros((levels, n))
        error = np.zeros((levels, n))
        _tables(x[r], weights[r], mean, weight, error)
        before, least, costs = np.zeros(n), np.zeros(n), np.empty(n)
        starts = np.zeros((k, n), dtype=np.int64)
        for i in range(n):  # one centroid: the run from 0
            _costs(mean, weight, error, before, i, 0, 0, costs)
            least[i] = costs[0]
        for j in range(1, k):
            before[1:] = least[:-1]
            _row(mean, weight, error, before, least, starts[j], j == k - 1, costs)
        errors[r] = least[n - 1]
        end = n - 1
        for j in range(k - 1, -1, -1):
            first = starts[j, end] if j and end >= 0 else 0
            total, shifted = 0.0, 0.0
            anchor = x[r, min(first, n - 1)]
            for i in range(first, end + 1):
                total += weights[r, i]
                shifted += weights[r, i] * (x[r, i] - anchor)
            centroids[r, j] = anchor + (shifted / total if total > 0 else 0.0)
            end = first - 1
        centroids[r].sort()
    return centroids, errors
