"""Percentile: clip the rarest values.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qlab.calibrate.histogram import Histogram
from qlab.calibrate.observer import Observer
from qlab.core import Scheme
from qlab.core._array import Array
from qlab.errors import QlabError


class Percentile(Observer):
    """The range that holds ``p`` percent of all values; the rest is clipped.

    Symmetric: the p-th percentile of |x|. Asymmetric: (100 - p) / 2 percent are cut on each side.

    Args:
        p: percent of the values inside, in (0, 100]; 100 is min-max.
        bins: bins of the histogram.

    One pass, memory of 16 bytes a bin. A limit is the order statistic (the smallest value that at
    least p percent do not exceed) up to the width of one bin, at most 4 · max|x| / bins, and never
    lies outside of what was seen.

    Source: McKinstry et al. 2018, arXiv 1809.04191, section 3.2; ONNX Runtime's
    ``PercentileCalibrater`` has the same two definitions.
    Chapter: Static, dynamic, mixed: the families of methods.
    """

    name: ClassVar[str] = "percentile"

    def __init__(self, p: float = 99.99, bins: int = 1 << 14) -> None:
        super().__init__()
        if not 0 < p <= 100:
            raise QlabError(f"percentile {p}: it is in (0, 100], usually 99.9 to 99.999")
        self.p = float(p)
        self.histogram = Histogram(bins)

    def _update(self, x: Array) -> None:
        self.histogram.add(x)

    def _range(self, scheme: Scheme) -> tuple[float, float]:
        h = self.histogram
        if scheme.symmetric:
            high = quantile(h.folded(), 0.0, h.width, self.p / 100)
            high = min(high, h.amax)
            return -high, high
        cut = (100 - self.p) / 200
        low = -quantile(h.counts[::-1], -h.reach, h.width, 1 - cut)
        high = quantile(h.counts, -h.reach, h.width, 1 - cut)
        return max(low, h.minimum), min(high, h.maximum)


def quantile(counts: np.ndarray, start: float, width: float, q: float) -> float:
    """The value that a fraction q of the counts does not exceed, linear within a bin.

    Args:
        counts: int64 (bins,), over equal bins from ``start``.
        q: in (0, 1].
    """
    total = np.cumsum(counts)
    rank = q * total[-1]
    i = int(np.searchsorted(total, rank))
    i = min(i, int(np.flatnonzero(counts)[-1]))
    before = total[i] - counts[i]
    part = min(max((rank - before) / counts[i], 0.0), 1.0) if counts[i] else 1.0
    return start + width * (i + part)
