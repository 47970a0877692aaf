"""The search for three levels: x ≈ scale · (level - 1 ± 1/8), levels 0, 1, 2.

With three levels all codes can be tried. In the best codes for any scale, the smallest weights
have level 0, the largest level 2, and those between level 1. So the weights are sorted, and each of
the two cuts is put at every place; sums over the sorted weights give (Σ w x q)² / Σ w q² of each
pair of cuts in a few operations. Each is tried with both shifts.

A group is one cell of 16 or 32 weights. Where its eights are no points of the table, the best ones
near them are taken (``nearest_point``), and the scale is computed once more.

In llama.cpp: ``quantize_row_iq1_s_impl`` and ``quantize_row_iq1_m_impl`` of ggml-quants.c (MIT
licence). They sort with the C library's ``qsort``, which keeps the order of equal weights in every
release of the GNU C library; so does this.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.errors import QlabError
from qlab.gguf.arithmetic import Array, f32, in_order
from qlab.gguf.blocks._grids import Grid
from qlab.gguf.searches.grid import LARGEST, TOO_LARGE, nearest_point

SHIFT = f32(0.125)
# What the three levels are worth: with shift + 1/8, and with - 1/8.
VALUES = np.array([[-1, 0, 1], [-1, 0, 1]], np.float32) + np.array([[SHIFT], [-SHIFT]], np.float32)


def ternary_search(
    x: Array, weights: Array, grid: Grid, *, halves: bool, threshold: float
) -> tuple[Array, Array, Array]:
    """Points, shifts and the scale of each group.

    Args:
        x, weights: float32 (groups, n), n a multiple of 8.
        grid: the table.
        halves: whether the two eights of a group of 16 have shifts of their own.
        threshold: a group whose largest magnitude is below counts as zero.

    Returns: int64 (groups, n / 8) numbers of points, int64 (groups, n / 8) shifts, 0 for + 1/8 and
        1 for - 1/8, and float32 (groups,) scales, not negative. All are 0 for a group of zeros.

    Raises: QlabError where float32 overflows: the C stops there.
    """
    count, n = x.shape
    points, shifts = np.zeros((2, count, n // 8), np.int64)
    scales = np.zeros(count, np.float32)
    live = np.flatnonzero(~(np.abs(x).max(axis=1) < f32(threshold)))
    x, weights = x[live], weights[live]
    order = np.argsort(x, axis=1, kind="stable")
    cuts = _cuts_of_halves if halves else _cuts
    low, high, choice, scale = cuts(x, weights, order)
    some = low >= 0
    live, x, weights, order = live[some], x[some], weights[some], order[some]
    low, high, choice, scale = low[some], high[some], choice[some], scale[some]
    if not len(x):
        return points, shifts, scales
    rank = np.argsort(order, axis=1)
    levels = (rank >= low[:, None]).astype(np.int64) + (rank >= high[:, None])
    # ``choice`` says which shift: one for all, or one for each half, the first in the higher bit.
    shift = np.stack([choice >> 1, choice & 1], axis=1) if halves else choice[:, None]
    shift = np.broadcast_to(shift, (len(x), n // 8))
    negative = (scale < 0)[:, None]
    levels, shift = np.where(negative, 2 - levels, levels), np.where(negative, 1 - shift, shift)
    scale = np.abs(scale)

    values = VALUES[shift]  # (groups, eights, levels)
    cells, costs = x.reshape(*shift.shape, 8), weights.reshape(*shift.shape, 8)
    combination = grid.number(levels.reshape(cells.shape))
    chosen = grid.place[combination].astype(np.int64)
    off = chosen < 0
    of_cell = np.broadcast_to(scale[:, None], off.shape)[off]
    chosen[off] = nearest_point(
        cells[off], costs[off], of_cell, combination[off], grid, values[off]
    )
    q = np.take_along_axis(values, grid.points[chosen].astype(np.int64), axis=-1).reshape(x.shape)
    xq, q2 = in_order(weights * q * x), in_order(weights * q * q)
    scale = np.where(off.any(axis=1) & (xq > 0) & (q2 > 0), xq / q2, scale)
    if np.isnan(scale).any():
        raise QlabError(TOO_LARGE)
    points[live], shifts[live], scales[live] = chosen, shift, scale
    return points, shifts, scales


def _sums(terms: Array) -> Array:
    """What the first 0, 1, ... n terms add up to: float32 (groups, n) to (groups, n + 1)."""
    start = np.zeros((len(terms), 1), np.float32)
    return np.cumsum(np.concatenate([start, terms], axis=1), axis=1, dtype=np.float32)


def _cuts(x: Array, w: Array, order: Array) -> tuple[Array, Array, Array, Array]:
    """The best two cuts, shift and scale, with one shift for the group. -1 if there are none."""
    n = x.shape[1]
    sum_x = _sums(np.take_along_axis(w * x, order, 1))
    sum_w = _sums(np.take_along_axis(w, order, 1))
    found = _Best(x)
    for low in range(n + 1):
        for high in range(low, n + 1):
            for choice, (a, b, c) in enumerate(VALUES):
                below, between = sum_x[:, low] - sum_x[:, 0], sum_x[:, high] - sum_x[:, low]
                xq = below * a + between * b + (sum_x[:, n] - sum_x[:, high]) * c
                below, between = sum_w[:, low] - sum_w[:, 0], sum_w[:, high] - sum_w[:, low]
                q2 = below * a * a + between * b * b + (sum_w[:, n] - sum_w[:, high]) * c * c
                found.look(xq, q2, low, high, choice)
    return found.low, found.high, found.choice, found.scale


def _cuts_of_halves(x: Array, w: Array, order: Array) -> tuple[Array, Array, Array, Array]:
    """The same with a shift for each half of the group.

    The levels are 1 apart, so Σ w x q = Σ w x · (top level) - Σ below one cut - Σ below the other.
    """
    n = x.shape[1]
    sum_x, sum_w = [], []
    for half in (order < n // 2, order >= n // 2):
        sum_x.append(_sums(np.where(half, np.take_along_axis(w * x, order, 1), f32(0))))
        sum_w.append(_sums(np.where(half, np.take_along_axis(w, order, 1), f32(0))))
    found = _Best(x)
    for low in range(n + 1):
        for high in range(low, n + 1):
            xq, q2 = [], []  # of half and shift
            for sx, sw in zip(sum_x, sum_w, strict=True):
                below = sx[:, low] + sx[:, high]
                for a, b, c in VALUES:
                    xq.append(sx[:, n] * c - below)
                    steps = sw[:, low] * (a * a - b * b), sw[:, high] * (b * b - c * c)
                    q2.append(sw[:, n] * c * c + steps[0] + steps[1])
            for choice in range(4):
                first, second = choice >> 1, 2 + (choice & 1)
                found.look(xq[first] + xq[second], q2[first] + q2[second], low, high, choice)
    return found.low, found.high, found.choice, found.scale


class _Best:
    """The best cuts so far of each group; the first of equally good ones stays."""

    def __init__(self, x: Array) -> None:
        self.score = np.full(len(x), -LARGEST, np.float32)
        self.scale = np.abs(x).max(axis=1)
        self.low, self.high, self.choice = np.full((3, len(x)), -1)

    def look(self, xq: Array, q2: Array, low: int, high: int, choice: int) -> None:
        better = (q2 > 0) & (xq * xq > self.score * q2)
        self.scale = np.where(better, xq / q2, self.scale)
        self.score = np.where(better, self.scale * xq, self.score)
        self.low = np.where(better, low, self.low)
        self.high = np.where(better, high, self.high)
        self.choice = np.where(better, choice, self.choice)
