"""Figure: where to clip a distribution, and how many bits to spend."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

BINS = 600


def histogram_clip(values: Any, name: str = "weight") -> Picture:
    """Drag the clipping range and the bits over a histogram; see the error's two parts.

    Args:
        values: any array of finite numbers (at least two different ones).
        name: what a value is, for the axis.

    The error is computed from the histogram's bins (600, so to about the width of a bin) for
    symmetric quantization with the restricted range.
    """
    x = to_numpy(values).astype(np.float64).reshape(-1)
    if x.size < 2 or not np.isfinite(x).all() or x.min() == x.max():
        raise QlabError("histogram_clip needs at least two different finite values")
    amax = float(np.abs(x).max())
    counts, _edges = np.histogram(x, bins=BINS, range=(-amax, amax))
    rows = []
    for bits in (8, 6, 4, 3, 2):
        clip, rounding, clipping = _best(counts, amax, bits)
        rows.append((bits, f"{clip / amax:.2f}", f"{rounding:.3g}", f"{clipping:.3g}"))
    return figure(
        "clipping",
        {"counts": counts.tolist(), "amax": amax, "name": name},
        alt=f"Histogram of {name} values with a movable clipping range; below it the mean squared "
        "error, split into rounding and clipping.",
        caption="Clip or round? A narrow range rounds finely but cuts the tails off; a wide one "
        "keeps the tails and rounds coarsely. Find the range with the smallest sum for each "
        "number of bits.",
        fallback=table(
            ("bits", "best range / largest value", "rounding error", "clipping error"), rows
        ),
    )


def error_parts(counts: np.ndarray, amax: float, clip: float, bits: int) -> tuple[float, float]:
    """(rounding, clipping) mean squared error of a histogram over [-amax, amax].

    The script of the figure computes the same; a test compares the two.
    """
    n = len(counts)
    centers = -amax + (np.arange(n) + 0.5) * 2 * amax / n
    qmax = 2 ** (bits - 1) - 1
    scale = clip / qmax
    inside = np.abs(centers) <= clip
    restored = np.clip(np.round(centers / scale), -qmax, qmax) * scale
    squared = (centers - restored) ** 2 * counts / counts.sum()
    return float(squared[inside].sum()), float(squared[~inside].sum())


def _best(counts: np.ndarray, amax: float, bits: int) -> tuple[float, float, float]:
    tried = [(c, *error_parts(counts, amax, c, bits)) for c in amax * np.arange(2, 101) / 100]
    return min(tried, key=lambda t: t[1] + t[2])
