"""MseOptimal: the range of least squared error.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from qlab.calibrate.histogram import Histogram
from qlab.calibrate.observer import Observer
from qlab.calibrate.schemes import levels_in_use, reach
from qlab.core import Scheme
from qlab.core._array import Array, to_numpy


class MseOptimal(Observer):
    """The range whose codes have the least squared error on what was observed.

    Symmetric, and no more than ``keep`` values seen: they are kept, and the search is exact
    (``search_clip``). Otherwise it works on a histogram: over a grid of ranges, each refined by
    least squares until it no longer moves. The histogram knows count and sum of each bin, so only
    the values in bins that a rounding threshold cuts are uncertain; there are at most as many such
    bins as codes, each of width 4 · max|x| / bins at most.

    Args:
        keep: values to keep for the exact search (4 bytes each).
        bins: bins of the histogram (16 bytes each).

    Source: Choukroun et al. 2019, arXiv 1902.06822, section 3; Nagel et al. 2021, arXiv 2106.08295,
    section 3.1 (MSE range setting).
    Chapter: Static, dynamic, mixed: the families of methods.
    """

    name: ClassVar[str] = "mse"

    def __init__(self, keep: int = 1 << 17, bins: int = 1 << 14) -> None:
        super().__init__()
        self.keep = int(keep)
        self.histogram = Histogram(bins)
        self._kept: list[np.ndarray] | None = []

    @property
    def exact(self) -> bool:
        """Whether all values are still kept."""
        return self._kept is not None

    def _update(self, x: Array) -> None:
        self.histogram.add(x)
        if self._kept is None:
            return
        if self.histogram.count <= self.keep:
            self._kept.append(to_numpy(x).reshape(-1).copy())
        else:
            self._kept = None

    def _range(self, scheme: Scheme) -> tuple[float, float]:
        h = self.histogram
        levels = levels_in_use(scheme)
        if h.amax == 0:
            return 0.0, 0.0
        if scheme.symmetric and self._kept is not None:
            from qlab.calibrate.clip import best_scales

            scale = float(best_scales(np.concatenate(self._kept)[None], levels)[0])
            top = reach(scheme)
            return (-scale * top, scale * top) if scale > 0 else (-h.amax, h.amax)
        if scheme.symmetric:
            top = reach(scheme)
            scales = np.geomspace(h.amax / top, h.amax / top / 128, 160)
            scale, _ = min_error(h, levels, scales)
            return -scale * top, scale * top
        return self._affine_range(levels)

    def _affine_range(self, levels: np.ndarray) -> tuple[float, float]:
        """Over zero points and scales: shrink both ends, then refine."""
        h = self.histogram
        shrink = np.geomspace(1, 1 / 64, 24)
        low, high = np.meshgrid(min(h.minimum, 0.0) * shrink, max(h.maximum, 0.0) * shrink)
        low, high = low.ravel(), high.ravel()
        scales = (high - low) / (levels[-1] - levels[0])
        zeros = np.clip(np.round(levels[0] - low / scales), levels[0], levels[-1])
        errors = squared_error(h, levels - zeros[:, None], scales)
        i = int(np.argmin(errors))
        least, start, middle = float(errors[i]), float(scales[i]), float(zeros[i])
        scale, zero = start, middle
        for z in np.arange(max(middle - 4, levels[0]), min(middle + 4, levels[-1]) + 1):
            s, error = min_error(h, levels - z, np.array([start]))
            if error < least:
                least, scale, zero = error, s, z
        return float((levels[0] - zero) * scale), float((levels[-1] - zero) * scale)


def min_error(h: Histogram, levels: np.ndarray, scales: np.ndarray) -> tuple[float, float]:
    """The best of the scales, refined: given the codes, least squares gives the scale s = A/B."""
    errors = squared_error(h, levels, scales)
    scale, error = float(scales[np.argmin(errors)]), float(np.min(errors))
    for _ in range(20):
        a, b = _moments(h, levels, np.array([scale]))
        if b[0] <= 0 or a[0] <= 0:
            break
        new = float(a[0] / b[0])
        new_error = float(squared_error(h, levels, np.array([new]))[0])
        if new_error >= error:
            break
        scale, error = new, new_error
    return scale, error


def squared_error(h: Histogram, levels: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Sum of (x - s·l(x))² over the histogram.

    Args:
        levels: ascending, (levels,), or (scales, levels): of each scale its own.
        scales: (scales,).

    Returns: float64 (scales,).
    """
    a, b = _moments(h, levels, scales)
    return np.asarray(h.sum_squares - 2 * scales * a + scales**2 * b)


def _moments(h: Histogram, levels: np.ndarray, scales: np.ndarray) -> tuple[Any, Any]:
    """A = sum x·l(x) and B = sum l(x)² for each scale."""
    t = (levels[..., 1:] + levels[..., :-1]) / 2
    counts, sums = h.below(scales[:, None] * t)
    top = levels[..., -1]
    a = top * h.sums.sum() - (sums * np.diff(levels)).sum(axis=-1)
    b = top**2 * h.count - (counts * np.diff(levels**2)).sum(axis=-1)
    return a, b
