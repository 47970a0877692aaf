"""Histogram: the distribution of a stream in bounded memory, whatever its range turns out to be.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

import math

import numpy as np

from qlab.core._array import Array, to_numpy
from qlab.errors import QlabError


class Histogram:
    """Counts and sums over ``bins`` equal bins of [-reach, reach), for one pass over any stream.

    ``reach`` is the smallest power of two that exceeds every |x| so far. When a larger value comes,
    reach doubles and neighbouring bins merge in pairs. Bin edges are multiples of a power of two,
    so merging is exact: counts do not depend on how the stream was cut into batches, nor on their
    order (sums do, in the last digits of float64).

    The width of a bin is at most 4 · max|x| / bins. A quantile read from the histogram is off by at
    most that width.

    Attributes:
        counts: int64 (bins,).
        sums: float64 (bins,), sum of the values in each bin.
        reach: float, 0 until a value other than 0 has come.
        count, minimum, maximum, sum_squares: of all values, exact up to float64 rounding.
    """

    def __init__(self, bins: int = 1 << 14) -> None:
        if bins < 4 or bins % 4:
            raise QlabError(f"{bins} bins: a histogram has a multiple of 4, usually 16384")
        self.counts = np.zeros(bins, np.int64)
        self.sums = np.zeros(bins, np.float64)
        self.reach = 0.0
        self.count = 0
        self.minimum, self.maximum = math.inf, -math.inf
        self.sum_squares = 0.0

    @property
    def bins(self) -> int:
        return len(self.counts)

    @property
    def width(self) -> float:
        """Width of a bin, in units of x (0 while all values are 0)."""
        return 2 * self.reach / self.bins

    @property
    def edges(self) -> np.ndarray:
        """float64 (bins + 1,)."""
        return np.arange(-(self.bins // 2), self.bins // 2 + 1) * self.width

    @property
    def amax(self) -> float:
        """Largest |x|."""
        return max(-self.minimum, self.maximum, 0.0)

    @property
    def nbytes(self) -> int:
        """Bytes held: it does not grow with the stream."""
        return self.counts.nbytes + self.sums.nbytes

    def add(self, x: Array) -> None:
        """Take in finite values of any shape (NumPy or torch); computed on the CPU."""
        flat = to_numpy(x).reshape(-1).astype(np.float64)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.count += flat.size
        self.sum_squares += float(flat @ flat)
        self._grow(max(-low, high))
        half = self.bins // 2
        if self.reach == 0:
            self.counts[half] += flat.size
            return
        # A power of two divides exactly, so no value lands in a neighbour's bin.
        bin_of = np.floor(flat / self.width).astype(np.int64) + half
        self.counts += np.bincount(bin_of, minlength=self.bins)
        self.sums += np.bincount(bin_of, weights=flat, minlength=self.bins)

    def below(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many values lie below each t, and their sum; a bin that t cuts is spread evenly."""
        total = np.concatenate(([0], np.cumsum(self.counts))).astype(np.float64)
        sums = np.concatenate(([0.0], np.cumsum(self.sums)))
        if self.reach == 0:
            return np.where(t > 0, total[-1], 0.0), np.zeros_like(t)
        place = np.clip(t / self.width + self.bins // 2, 0, self.bins)
        i = np.minimum(place.astype(np.int64), self.bins - 1)
        part = place - i
        counted = total[i] + part * self.counts[i]
        # Values spread evenly around their mean: the lower part of a bin has the lower mean.
        mean = self.sums[i] / np.maximum(self.counts[i], 1) - 0.5 * (1 - part) * self.width
        return counted, sums[i] + part * self.counts[i] * mean

    def folded(self) -> np.ndarray:
        """int64 (bins / 2,): counts of |x| over [0, reach)."""
        half = self.bins // 2
        return self.counts[half:] + self.counts[:half][::-1]

    def _grow(self, amax: float) -> None:
        """Double ``reach`` until it exceeds amax."""
        if amax < self.reach or amax == 0:
            return
        target = 2.0 ** math.frexp(amax)[1]
        if self.reach == 0:
            # Only zeros so far: they stay in the bin [0, width).
            self.reach = target
            return
        steps = round(math.log2(target / self.reach))
        for _ in range(steps):
            self.counts, self.sums = _halve(self.counts), _halve(self.sums)
        self.reach = target


def _halve(values: np.ndarray) -> np.ndarray:
    """Merge neighbours and keep the middle at the middle."""
    merged = values.reshape(-1, 2).sum(axis=1)
    out = np.zeros_like(values)
    quarter = len(values) // 4
    out[quarter : quarter + len(merged)] = merged
    return out
