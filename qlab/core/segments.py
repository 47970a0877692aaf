"""The squared error of any run of sorted values, in constant time and without cancellation.

The error of replacing the values i..j by their weighted mean is usually taken from prefix sums,
Σwx² - (Σwx)²/Σw. That subtracts two large numbers: with one outlier of 1e8 nothing is left of the
error of values near 1. Here the runs are built up from positive parts alone. For each power of two
2^l the values are cut into blocks of 2·2^l, and mean and error of every run that starts or ends in
the middle of its block are kept. Any run i..j crosses the middle of exactly one block, the one
whose level is the highest bit in which i and j differ; its two halves are joined by the formula of
Chan, Golub and LeVeque (1979):

    M = M1 + M2 + w1·w2 / (w1 + w2) · (mean1 - mean2)²

Chapter: Beyond the straight line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segments:
    """Tables of a batch of rows. Each is float64 (levels, rows, n), n a power of two."""

    weight: np.ndarray
    mean: np.ndarray
    error: np.ndarray

    def cost(self, rows: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Squared error of the runs i..j (both included, i <= j) of the given rows."""
        level = np.frexp((i ^ j).astype(np.float64))[1] - 1  # position of the highest bit
        same = level < 0  # a single value: no error
        level = np.maximum(level, 0)
        _, height, width = self.mean.shape
        base = (level * height + rows) * width
        left, right = base + i, base + j
        w1, w2 = self.weight.ravel()[left], self.weight.ravel()[right]
        gap = self.mean.ravel()[left] - self.mean.ravel()[right]
        total = w1 + w2
        joined = np.divide(w1 * w2, total, out=np.zeros_like(total), where=total > 0)
        cost = self.error.ravel()[left] + self.error.ravel()[right] + joined * gap * gap
        return np.where(same, 0.0, cost)


def segments(x: np.ndarray, weights: np.ndarray) -> Segments:
    """Tables for the rows of ``x``.

    Args:
        x: float64 (rows, n), each row ascending, n at least 1.
        weights: float64 (rows, n), not negative.
    """
    rows, n = x.shape
    size = max(2, 1 << (n - 1).bit_length())
    fill = ((0, 0), (0, size - n))
    x = np.pad(x, fill, mode="edge")
    weights = np.pad(weights, fill)
    levels = size.bit_length() - 1
    tables = np.empty((3, levels, rows, size))
    for level in range(levels):
        half = 1 << level
        shape = (rows, size // (2 * half), 2, half)
        parts = [_outward(a.reshape(shape)) for a in (x, weights)]
        for table, part in zip(tables, _running(*parts), strict=True):
            table[level] = _outward(part).reshape(rows, size)
    return Segments(tables[1], tables[0], tables[2])


def _outward(a: np.ndarray) -> np.ndarray:
    """Turn left halves around, so that both halves of a block run away from its middle."""
    return np.stack([a[:, :, 0, ::-1], a[:, :, 1]], axis=2)


def _running(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, weight, error) of the first 1, 2, 3, ... entries along the last axis."""
    first = x[..., :1]
    total = np.cumsum(w, axis=-1)
    shifted = np.cumsum(w * (x - first), axis=-1)  # of one sign, since x is sorted
    safe = np.where(total > 0, total, 1.0)
    mean = first + shifted / safe
    error = np.zeros_like(x)
    step = w[..., 1:] * total[..., :-1] / safe[..., 1:] * (x[..., 1:] - mean[..., :-1]) ** 2
    error[..., 1:] = np.cumsum(step, axis=-1)
    return mean, total, error
