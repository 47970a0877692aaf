"""The search for a scale and points of a table, x ≈ scale · (2 level + 1).

The magnitudes of 8 (or 4) neighbouring weights are stored together, as the number of a point of a
table. The table has few of all combinations of levels: 256 of 3^8 = 6561, say. So there are two
questions, which scale and which point. As in ``symmetric_search`` a row of scales is tried, and
(Σ w x q)² / Σ w q² tells which is best. With each of them the weights are rounded to the nearest
levels. If this combination is no point, then the best point near it is taken: that of the smallest
Σ sqrt(w) (scale q - x)² among those of the innermost rings (``Grid.near``). Last, what was off the
table is placed anew with the scale that was found.

In llama.cpp: ``quantize_row_iq2_xxs_impl`` and those of the other types, of ggml-quants.c (MIT
licence).

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from qlab.errors import QlabError
from qlab.gguf.arithmetic import Array, f32, in_order, nearest_int
from qlab.gguf.blocks._grids import Grid, split_signs
from qlab.gguf.searches.positive import positive_search

LARGEST = np.finfo(np.float32).max
TOO_LARGE = (
    "weights whose squares times the importance overflow float32 have no nearest point in the "
    "table of a grid type: scale them down, or choose another type"
)


def nearest_point(
    x: Array, weights: Array, scale: Array, combination: Array, grid: Grid, values: Array
) -> Array:
    """The best point near a combination that is none.

    Args:
        x, weights: float32 (cells, size).
        scale: float32 (cells,).
        combination: int (cells,), numbers of combinations that are no points.
        grid: the table.
        values: float32 (levels,) or (cells, levels), what each level is worth.

    Returns: int (cells,), numbers of points.

    Raises: QlabError if a cell has no distance that is finite.
    """
    if not len(x):
        return np.zeros(0, np.int64)
    start, end = grid.first[combination], grid.first[combination + 1]
    # All candidates of all cells in one long list.
    cell = np.repeat(np.arange(len(x)), end - start)
    begin = np.concatenate([[0], np.cumsum(end - start)[:-1]])
    candidate = grid.near[np.arange(len(cell)) - begin[cell] + start[cell]]
    distance = np.zeros(len(cell), np.float32)
    for i in range(grid.size):
        level = grid.points[candidate, i]
        q = values[level] if values.ndim == 1 else values[cell, level]
        gap = scale[cell] * q - x[cell, i]
        distance = distance + weights[cell, i] * gap * gap
    distance = np.where(np.isnan(distance), np.inf, distance)
    least = np.minimum.reduceat(distance, begin)
    if not (least < LARGEST).all():
        raise QlabError(TOO_LARGE)
    best = np.flatnonzero(distance == least[cell])
    return candidate[best[np.searchsorted(cell[best], np.arange(len(x)))]].astype(np.int64)


def grid_search(
    x: Array,
    weights: Array,
    grid: Grid,
    *,
    even: bool,
    reach: int,
    width: float,
    threshold: float,
    again: Literal["off", "any", "always"],
) -> tuple[Array, Array, Array]:
    """Points, signs and the scale of each group.

    Args:
        x: float32 (groups, n).
        weights: float32 (groups, n), what an error in each costs.
        grid: the table.
        even: whether of eight signs seven are stored (see ``split_signs``).
        reach, width: the scales tried put the largest magnitude on the top level plus
            ``width`` · i, for i from -``reach`` to ``reach``.
        threshold: a group whose largest magnitude is below counts as zero.
        again: which points are placed anew at the end: those that were ``off`` the table, all if
            ``any`` was off it, or all ``always``. The last belongs to IQ2_XXS, which also tries
            scales around that of ``positive_search`` instead of the largest magnitude.

    Returns: int64 (groups, n / size) numbers of points, uint8 (groups, n / 8) sign bits, and
        float32 (groups,) scales, not negative. All are 0 for a group of zeros.

    Raises: QlabError where float32 overflows: the C stops there.
    """
    magnitudes, bits = split_signs(x, weights, even)
    top = f32(2 * grid.levels - 1)  # what the highest level is worth
    largest = magnitudes.max(axis=1)
    live = (largest != 0) & ~(largest < f32(threshold))
    scale = largest / top
    if again == "always":
        _, scale = positive_search(magnitudes, grid.levels + 1, weights)
        largest = scale * f32(grid.levels)
        live &= ~(largest <= 0)
    points = np.zeros((len(x), x.shape[1] // grid.size), np.int64)
    chosen, bits, scale = points[live], bits[live], scale[live]
    if live.any():
        x, w, largest = magnitudes[live], weights[live], largest[live]
        chosen, scale = _points_and_scale(x, w, largest, scale, grid, top, reach, width, again)
        bits = np.where(scale[:, None] < 0, ~bits & np.uint8(127 if even else 255), bits)
    out_bits, out_scale = np.zeros((len(live), x.shape[1] // 8), np.uint8), np.zeros(len(live), f32)
    points[live], out_bits[live], out_scale[live] = chosen, bits, np.abs(scale)
    return points, out_bits, out_scale


def _points_and_scale(
    x: Array,
    w: Array,
    largest: Array,
    scale: Array,
    grid: Grid,
    top: Any,
    reach: int,
    width: float,
    again: str,
) -> tuple[Array, Array]:
    """What remains to be found for groups that are not zero; the scale may be negative."""
    cells = (len(x), x.shape[1] // grid.size)
    root, values = np.sqrt(w), f32(2) * np.arange(grid.levels, dtype=np.float32) + f32(1)

    def place(inverse: Array, scale: Array, which: Array) -> tuple[Array, Array]:
        """Points of these cells, and whether rounding missed the table. Scales are of groups."""
        of_cell = np.nonzero(which)[0]
        inside = x.reshape(*cells, grid.size)[which]
        ideal = f32(0.5) * (inverse[of_cell, None] * inside - f32(1))
        combination = grid.number(np.clip(nearest_int(ideal), 0, grid.levels - 1))
        found = grid.place[combination].astype(np.int64)
        off = found < 0
        costs = root.reshape(*cells, grid.size)[which][off]
        near = nearest_point(
            inside[off], costs, scale[of_cell][off], combination[off], grid, values
        )
        found[off] = near
        return found, off

    def sums(points: Array) -> tuple[Array, Array]:
        q = values[grid.points[points]].reshape(x.shape)
        return in_order(w * x * q), in_order(w * q * q)

    everywhere = np.ones(cells, bool)
    chosen, best = np.zeros(cells, np.int64), np.zeros(len(x), np.float32)
    was_off = np.full(cells, again != "off")
    for step in range(-reach, reach + 1):
        inverse = (top + f32(step) * f32(width)) / largest
        tried, off = (v.reshape(cells) for v in place(inverse, f32(1) / inverse, everywhere))
        xq, q2 = sums(tried)
        better = (q2 > 0) & (xq * xq > best * q2)
        scale = np.where(better, xq / q2, scale)
        best = np.where(better, scale * xq, best)
        chosen = np.where(better[:, None], tried, chosen)
        was_off = np.where(better[:, None], off, was_off)
    if again == "always":
        was_off[:] = True
    elif again == "any":
        was_off |= was_off.any(axis=1, keepdims=True)
    was_off &= (scale > 0)[:, None]
    chosen[was_off], _ = place(f32(1) / scale, scale, was_off)
    xq, q2 = sums(chosen)
    scale = np.where(was_off.any(axis=1) & (q2 > 0), xq / q2, scale)
    if np.isnan(scale).any():
        raise QlabError(TOO_LARGE)
    return chosen, scale
