"""Entropy: clip where the quantized distribution loses the least information about the original.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from qlab.calibrate.histogram import Histogram
from qlab.calibrate.observer import Observer
from qlab.calibrate.schemes import levels_in_use
from qlab.core import Scheme
from qlab.core._array import Array


class Entropy(Observer):
    """The threshold T on |x| with the smallest Kullback-Leibler divergence, as in TensorRT.

    The histogram of |x| is cut after i bins, for every i; see ``divergences``. Symmetric:
    [-T, T]. Asymmetric: the part of it that was seen, [max(-T, min), min(T, max)], as in ONNX
    Runtime.

    Args:
        bins: bins of |x| between 0 and its reach, at least twice the levels.

    The divergence as a function of T is rugged: T may move by a tenth with the number of bins. Many
    exact zeros, as after a ReLU, pull T down, since they are spread over the whole first level.

    One pass, memory of 32 bytes a bin. T is a multiple of the width of a bin.

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017 (S7310), pages "KL divergence".
    Chapter: Static, dynamic, mixed: the families of methods.
    """

    name: ClassVar[str] = "entropy"

    def __init__(self, bins: int = 1 << 12) -> None:
        super().__init__()
        self.histogram = Histogram(2 * bins)

    def _update(self, x: Array) -> None:
        self.histogram.add(x)

    def _range(self, scheme: Scheme) -> tuple[float, float]:
        h = self.histogram
        threshold = h.amax
        if h.reach > 0:
            # Magnitudes that the format can tell apart: 128 for 8 bits, as in the source.
            levels = max(2, len(levels_in_use(scheme)) // 2)
            used = int(np.ceil(h.amax / h.width))
            folded = h.folded()
            folded = np.append(folded[: used - 1], folded[used - 1 :].sum())
            threshold = min(threshold, entropy_threshold(folded, h.width, levels))
        if scheme.symmetric:
            return -threshold, threshold
        return max(-threshold, h.minimum), min(threshold, h.maximum)


def entropy_threshold(counts: np.ndarray, width: float, levels: int) -> float:
    """T of the smallest divergence: the upper edge of the last bin that is kept.

    With no more bins than levels every bin has a level of its own, and nothing is clipped.
    """
    if len(counts) <= levels:
        return width * len(counts)
    return width * (levels + int(np.argmin(divergences(counts, levels))))


def divergences(counts: np.ndarray, levels: int) -> np.ndarray:
    """KL(P || Q) in nats when the histogram is cut after i bins, for i = levels ... len(counts).

    P: the first i bins, with everything beyond counted in bin i. Q: the first i bins merged into
    ``levels`` levels (bin b into level floor(b · levels / i)), each level spread evenly over its
    bins that P has filled. Both are normalized. Infinite where Q is 0 and P is not.

    Args:
        counts: int64 (bins,), of |x| over equal bins from 0.

    Returns: float64 (len(counts) - levels + 1,).
    """
    counts = np.asarray(counts, np.float64)
    bins = len(counts)
    total = counts.sum()
    # Running sums, so that each candidate costs one look-up a level instead of one a bin.
    mass = np.concatenate(([0.0], np.cumsum(counts)))
    filled = np.concatenate(([0.0], np.cumsum(counts > 0)))
    plogp = np.concatenate(([0.0], np.cumsum(_xlogx(counts))))
    out = np.empty(bins - levels + 1)
    level = np.arange(levels + 1)
    for i in range(levels, bins + 1):
        edge = -(-level * i // levels)  # level l holds the bins b with floor(b · levels / i) = l
        outliers = total - mass[i]
        q_mass = np.diff(mass[edge])
        in_level = np.diff(filled[edge])
        p_mass = q_mass.copy()
        p_mass[-1] += outliers
        if outliers and not counts[i - 1]:
            in_level[-1] += 1
        last = counts[i - 1]
        p_logp = plogp[i] - _xlogx(last) + _xlogx(last + outliers)
        held = p_mass > 0
        with np.errstate(divide="ignore"):
            q = np.log(q_mass[held] / in_level[held])
        kept = mass[i]
        if kept == 0:
            out[i - levels] = np.inf
            continue
        # sum of P/total · log((P/total) / (Q/kept))
        out[i - levels] = (p_logp - p_mass[held] @ q) / total - np.log(total) + np.log(kept)
    return out


def _xlogx(x: Any) -> Any:
    """x log x, with 0 log 0 = 0."""
    return x * np.log(np.where(x > 0, x, 1.0))
