"""k-means in one dimension, solved exactly by dynamic programming.

    D_j(i) = min over m of  D_{j-1}(m - 1) + error(m..i),      D_0 = 0 of nothing

D_j(i) is the least squared error of the first i + 1 sorted values with j centroids; error(m..i) is
that of the run m..i about its mean. In one dimension clusters are runs, so this is the optimum, and
Lloyd's algorithm is not needed. The best m grows with i, so one row of D takes O(n log n) by divide
and conquer: first the middle i, then each half between the answers of its neighbors.

Sources: Bruce 1965 (Optimum quantization, MIT technical report 429) for the dynamic program; Wang
and Song 2011 (Ckmeans.1d.dp, The R Journal 3/2); Grønlund et al. 2017 (arXiv 1701.07204) for the
monotone rows. Chapter: Beyond the straight line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qlab.core._array import Array, check_finite, to_numpy
from qlab.core.segments import Segments, segments
from qlab.errors import QlabError

_AT_ONCE = 1 << 21  # candidates that are compared in one go: bounds the memory
_REFINE = 30  # iterations of Lloyd's algorithm after a search on bins, at most


# (rows sorted ascending (rows, n), k, weights (rows, n)) -> centroids (rows, k), error (rows,)
Solver = Callable[[np.ndarray, int, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class KMeans:
    """A clustering.

    Attributes:
        centroids: float64 (k,) ascending, or (k, d).
        codes: int64 (n,), index of the nearest centroid.
        inertia: weighted sum of squared distances to the nearest centroid.
        lower_bound: no k centroids have a smaller inertia than this (0 where nothing is known;
            equal to ``inertia``, to rounding, where the optimum was found).
    """

    centroids: np.ndarray
    codes: np.ndarray
    inertia: float
    lower_bound: float = 0.0


def kmeans_1d(
    x: Array,
    k: int,
    weights: Array | None = None,
    *,
    bins: int | None = None,
    solver: Solver | None = None,
) -> KMeans:
    """The k values with the least sum of squared distances to ``x``.

    Args:
        x: NumPy array or torch tensor of finite numbers, any shape (flattened), not empty.
        k: number of centroids, at least 1. With fewer than k distinct values the largest is
            repeated.
        weights: not negative, not all zero, the shape of ``x``; how much each value counts.
        bins: None for the exact optimum, in O(k n log n) time for n distinct values. Else only
            boundaries between about that many runs of values are tried, and the result is refined
            by Lloyd's algorithm; ``lower_bound`` then says how far from the optimum it can be.
        solver: what solves sorted rows: ``kmeans_rows`` (the default) or its compiled twin,
            ``qlab.kernels.cpu.kmeans.kmeans_rows``.

    Raises: QlabError for an empty or not finite ``x``, k < 1, or bad weights.

    Chapter: Beyond the straight line.
    """
    values, mass = _checked(x, k, weights)
    where = np.argsort(values, kind="stable")
    ordered, mass_ordered = values[where], mass[where]
    distinct = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    points = ordered[distinct]
    mass_of_points = np.add.reduceat(mass_ordered, distinct)
    if bins is None or len(points) <= bins:
        centroids, _ = (solver or kmeans_rows)(points[None], k, mass_of_points[None])
        centroids, lower = centroids[0], None
    else:
        if bins < 2 * k:
            raise QlabError(f"{bins} bins are too few for {k} centroids: use at least {2 * k}")
        centroids, lower = _binned(points, mass_of_points, k, bins, solver or kmeans_rows)
    codes = nearest(values, centroids)
    inertia = float(np.sum(mass * (values - centroids[codes]) ** 2))
    return KMeans(centroids, codes, inertia, inertia if lower is None else min(lower, inertia))


def kmeans_rows(
    x: np.ndarray, k: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The same for each row: a codebook a block.

    Args:
        x: float64 (rows, n), each row ascending.
        weights: float64 (rows, n); default 1.

    Returns: centroids, float64 (rows, k), ascending; and the least error, float64 (rows,).
    """
    x = np.asarray(x, dtype=np.float64)
    weights = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    rows, n = x.shape
    centroids, least = np.empty((rows, k)), np.empty(rows)
    size = max(1, _AT_ONCE // (2 * n))
    for start in range(0, rows, size):
        part = slice(start, start + size)
        tables = segments(x[part], weights[part])
        first, least[part] = _solve(tables, n, k)
        centroids[part] = _means(x[part], weights[part], first)
    return centroids, least


def nearest(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest of the ascending centroids (k,) for each x; a tie goes to the lower."""
    # Half the sum could overflow for huge values, the sum of halves cannot.
    middles = centroids[:-1] / 2 + centroids[1:] / 2
    return np.searchsorted(middles, x, side="left")


def _checked(x: Array, k: int, weights: Array | None) -> tuple[np.ndarray, np.ndarray]:
    check_finite(x, "x")
    values = to_numpy(x).astype(np.float64).reshape(-1)
    if values.size == 0:
        raise QlabError("k-means of nothing: x is empty")
    if k < 1:
        raise QlabError(f"k = {k}: a codebook has at least 1 centroid")
    if np.abs(values).max() > 1e150:
        raise QlabError("x is beyond 1e150, where squares overflow: divide it by its largest value")
    if weights is None:
        return values, np.ones_like(values)
    mass = to_numpy(weights).astype(np.float64).reshape(-1)
    if mass.size != values.size:
        raise QlabError(f"{mass.size} weights for {values.size} values: give one for each")
    if not (np.isfinite(mass).all() and (mass >= 0).all() and mass.any()):
        raise QlabError("weights must be finite, not negative, and not all zero")
    return values, mass


def _solve(tables: Segments, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """First index of each run, int (rows, k), ascending; and the least error (rows,)."""
    rows = tables.mean.shape[1]
    everything = np.arange(rows)[:, None]
    ends = np.broadcast_to(np.arange(n), (rows, n))
    # error with one centroid: the run from 0
    least = tables.cost(np.broadcast_to(everything, (rows, n)), np.zeros_like(ends), ends)
    starts = []
    for j in range(1, k):
        least, best = _row(tables, least, n, only_last=j == k - 1)
        starts.append(best)
    first = np.zeros((rows, k), dtype=np.int64)
    end = np.full(rows, n - 1)
    for j in range(k - 1, 0, -1):
        first[:, j] = np.where(end >= 0, starts[j - 1][np.arange(rows), np.maximum(end, 0)], 0)
        end = first[:, j] - 1
    return first, least[:, -1]


def _row(
    tables: Segments, before: np.ndarray, n: int, only_last: bool
) -> tuple[np.ndarray, np.ndarray]:
    """D_j and the start m of its last run, both (rows, n), from D_{j-1}."""
    rows = before.shape[0]
    # The run may start at 0, with nothing before it: fewer centroids are never better.
    cost_before = np.concatenate([np.zeros((rows, 1)), before[:, :-1]], axis=1)
    least, best = np.empty((rows, n)), np.zeros((rows, n), dtype=np.int64)
    size = 1 << (n - 1).bit_length() if n > 1 else 1
    strides = [0] if only_last else [size >> level for level in range(size.bit_length())]
    for stride in strides:
        if stride == 0:
            ends = np.array([n - 1])
            low, high = np.zeros((rows, 1), dtype=np.int64), np.full((rows, 1), n - 1)
        else:
            ends = np.arange(stride - 1, n, 2 * stride)
            if not len(ends):
                continue
            low = np.zeros((rows, len(ends)), dtype=np.int64)
            low[:, ends >= stride] = best[:, ends[ends >= stride] - stride]
            high = np.broadcast_to(ends, low.shape).copy()
            known = ends + stride < n
            high[:, known] = np.minimum(high[:, known], best[:, ends[known] + stride])
        at = np.broadcast_to(ends, low.shape)
        row = np.broadcast_to(np.arange(rows)[:, None], low.shape)
        found, m = _cheapest(
            tables, cost_before, row.ravel(), at.ravel(), low.ravel(), high.ravel()
        )
        least[:, ends], best[:, ends] = found.reshape(low.shape), m.reshape(low.shape)
    return least, best


def _cheapest(
    tables: Segments,
    cost_before: np.ndarray,
    row: np.ndarray,
    end: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """For each (row, end): the least cost over starts low..high, and the first start with it."""
    lengths = high - low + 1
    offsets = np.cumsum(lengths) - lengths
    which = np.repeat(np.arange(len(row)), lengths)
    start = np.arange(len(which)) - offsets[which] + low[which]
    cost = cost_before[row[which], start] + tables.cost(row[which], start, end[which])
    least = np.minimum.reduceat(cost, offsets)
    hits = np.flatnonzero(cost == least[which])[::-1]  # reversed: the first of equals stays
    best = np.empty(len(row), dtype=np.int64)
    best[which[hits]] = start[hits]
    return least, best


def _means(x: np.ndarray, weights: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Weighted mean of each run. An empty run repeats its neighbor."""
    rows, n = x.shape
    k = first.shape[1]
    anchor = np.take_along_axis(x, np.minimum(first, n - 1), axis=1).ravel()  # a value of the run
    run = np.repeat(np.arange(rows * k), np.diff(first, axis=1, append=n).ravel())
    shifted = weights.ravel() * (x.ravel() - anchor[run])
    total = np.bincount(run, weights.ravel(), rows * k)
    sums = np.bincount(run, shifted, rows * k)
    mean = anchor + np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
    return np.sort(mean.reshape(rows, k), axis=1)


def _binned(
    x: np.ndarray, w: np.ndarray, k: int, bins: int, solver: Solver
) -> tuple[np.ndarray, float]:
    """Optimum among boundaries between bins, refined; and a lower bound of the true optimum."""
    # Half of the bins hold equally many values, half are equally wide: the tails need those.
    half, share = bins // 2, np.cumsum(w)
    many = np.searchsorted(share, np.arange(half) / half * share[-1], side="left")
    wide = np.searchsorted(x, x[0] + (x[-1] - x[0]) * np.arange(half) / half, side="left")
    edges = np.unique(np.concatenate([many, wide]))
    total = np.add.reduceat(w, edges)
    anchor = x[edges]
    bin_of = np.repeat(np.arange(len(edges)), np.diff(edges, append=len(x)))
    safe = np.where(total > 0, total, 1.0)
    mean = anchor + np.add.reduceat(w * (x - anchor[bin_of]), edges) / safe
    own = np.add.reduceat(w * (x - mean[bin_of]) ** 2, edges)
    centroids, least = solver(mean[None], k, total[None])
    # Any codebook C has |x - C| >= |mean - C| - |x - mean| (the triangle inequality over all
    # values), and |mean - C| is at least the optimum of the means.
    within = float(own.sum())
    lower = max(0.0, float(least[0]) ** 0.5 - within**0.5) ** 2
    return _refine(x, w, centroids[0]), lower


def _refine(x: np.ndarray, w: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Lloyd's algorithm on sorted values; each step lowers the error."""
    for _ in range(_REFINE):
        middles = centroids[:-1] / 2 + centroids[1:] / 2
        first = np.concatenate([[0], np.searchsorted(x, middles, side="right")])
        moved = _means(x[None], w[None], first[None])[0]
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids
