"""Lloyd's algorithm: k-means in any number of dimensions.

    repeat   code(x) = the nearest centroid;   centroid = the mean of the points with its code

Each half step can only lower the sum of squared distances, so it ends, but in a local minimum that
depends on the start. k-means++ starts well: each next centroid is a point drawn with probability in
proportion to its squared distance to those already drawn.

Sources: Lloyd 1982 (IEEE Transactions on Information Theory 28, written 1957); Arthur and
Vassilvitskii 2007 (k-means++). Chapter: Beyond the straight line.
"""

from __future__ import annotations

import numpy as np

from qlab.core._array import Array, check_finite, to_numpy
from qlab.core.kmeans import KMeans
from qlab.errors import QlabError

_AT_ONCE = 1 << 17  # distances computed at a time: they stay in the cache
_SAMPLE = 32  # points a centroid that k-means++ looks at, at most


def lloyd(
    x: Array,
    k: int,
    *,
    init: str | Array = "k-means++",
    weights: Array | None = None,
    seed: int = 0,
    iterations: int = 100,
    tolerance: float = 0.0,
) -> KMeans:
    """Cluster points by Lloyd's algorithm.

    Args:
        x: NumPy array or torch tensor of finite numbers, (n, d), or (n,) for one dimension.
        k: number of centroids.
        init: ``"k-means++"``, ``"random"`` (k of the points), or the first centroids, (k, d).
        weights: not negative, (n,); how much each point counts.
        seed: of the random start.
        iterations: at most so many.
        tolerance: stop when an iteration lowers the error by less than this share of it. 0: stop
            when nothing moves.

    Returns: KMeans with centroids (k, d), sorted ascending if d = 1. A centroid that loses all its
        points is moved to the point that is farthest from its own.

    Raises: QlabError for an empty or not finite ``x``, k < 1, or an ``init`` of another shape.

    Chapter: Beyond the straight line.
    """
    points, mass = _checked(x, k, weights)
    centroids = _start(points, mass, k, init, np.random.default_rng(seed))
    codes, far = assign(points, centroids)
    error = float(np.sum(mass * far))
    for _ in range(iterations):
        moved = _move(points, mass, codes, far, centroids)
        codes, far = assign(points, moved)
        before, error = error, float(np.sum(mass * far))
        still = np.array_equal(moved, centroids)
        centroids = moved
        if still or before - error < tolerance * before:
            break
    if points.shape[1] == 1:
        order = np.argsort(centroids[:, 0], kind="stable")
        centroids, codes = centroids[order], np.argsort(order, kind="stable")[codes]
    return KMeans(centroids, codes, error)


def assign(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest centroid (k, d) of each point (n, d), and the squared distance to it."""
    # |x - c|² = |x|² - 2 x·c + |c|², and |x|² does not change which c is nearest: one product of
    # (x, 1) with (-2c, |c|²). About the middle of the centroids, so that little cancels.
    middle = centroids.mean(axis=0)
    moved = centroids - middle
    table = np.concatenate([-2 * moved, np.sum(moved * moved, axis=1, keepdims=True)], axis=1).T
    table = np.ascontiguousarray(table)
    codes = np.empty(len(points), dtype=np.int64)
    size = max(1, _AT_ONCE // len(centroids))
    for start in range(0, len(points), size):
        part = points[start : start + size] - middle
        ones = np.ones((len(part), 1))
        codes[start : start + size] = np.argmin(np.hstack([part, ones]) @ table, axis=1)
    return codes, np.sum((points - centroids[codes]) ** 2, axis=1)


def _checked(x: Array, k: int, weights: Array | None) -> tuple[np.ndarray, np.ndarray]:
    check_finite(x, "x")
    points = to_numpy(x).astype(np.float64)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.size == 0:
        raise QlabError(f"k-means needs points (n, d), at least one; got shape {points.shape}")
    if k < 1:
        raise QlabError(f"k = {k}: a codebook has at least 1 centroid")
    if weights is None:
        return points, np.ones(len(points))
    mass = to_numpy(weights).astype(np.float64).reshape(-1)
    if len(mass) != len(points) or not (np.isfinite(mass).all() and (mass >= 0).all()):
        raise QlabError(f"weights must be {len(points)} finite numbers that are not negative")
    return points, mass


def _start(
    points: np.ndarray, mass: np.ndarray, k: int, init: str | Array, rng: np.random.Generator
) -> np.ndarray:
    n, d = points.shape
    if not isinstance(init, str):
        centroids = to_numpy(init).astype(np.float64).reshape(-1, d)
        if len(centroids) != k:
            raise QlabError(f"init has {len(centroids)} centroids of {d} numbers, not {k}")
        return centroids
    if init == "random":
        return points[rng.choice(n, k, replace=k > n)].copy()
    if init != "k-means++":
        raise QlabError(f"init '{init}': use 'k-means++', 'random', or an array of centroids")
    if n > _SAMPLE * k:  # a sample is enough to start from
        some = rng.choice(n, _SAMPLE * k, replace=False)
        points, mass, n = points[some], mass[some], _SAMPLE * k
    centroids = np.empty((k, d))
    chance = mass
    far = np.full(n, np.inf)
    for j in range(k):
        total = np.cumsum(chance)
        at = 0 if total[-1] <= 0 else int(np.searchsorted(total, rng.random() * total[-1], "right"))
        centroids[j] = points[min(at, n - 1)]
        far = np.minimum(far, np.sum((points - centroids[j]) ** 2, axis=1))
        chance = mass * far
    return centroids


def _move(
    points: np.ndarray,
    mass: np.ndarray,
    codes: np.ndarray,
    far: np.ndarray,
    centroids: np.ndarray,
) -> np.ndarray:
    """The mean of each cluster. An empty one takes the farthest point, if that helps."""
    k, d = centroids.shape
    total = np.bincount(codes, mass, k)
    sums = np.stack([np.bincount(codes, mass * points[:, c], k) for c in range(d)], axis=1)
    moved = np.where(total[:, None] > 0, sums / np.maximum(total, 2.0**-1022)[:, None], centroids)
    empty = np.flatnonzero(total == 0)
    if len(empty):
        for j, at in zip(empty, np.argsort(-mass * far, kind="stable"), strict=False):
            if far[at] > 0 and mass[at] > 0:
                moved[j] = points[at]
    return moved
