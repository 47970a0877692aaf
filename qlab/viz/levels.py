"""Figure: where to put the levels of a codebook."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.core.formats import get_format
from qlab.core.kmeans import kmeans_1d
from qlab.core.rate import gaussian_distortion
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

BINS = 400
SIZES = (4, 8, 16)


def codebook_levels(values: Any, name: str = "weight") -> Picture:
    """Drag the levels of a codebook over a histogram; see the error and its distance to the bound.

    Args:
        values: any array of finite numbers (at least two different ones). They are shown in units
            of their standard deviation.
        name: what a value is, for the axis.

    The error is computed from the histogram's bins (400, so to about the width of a bin).
    """
    x = to_numpy(values).astype(np.float64).reshape(-1)
    if x.size < 2 or not np.isfinite(x).all() or x.min() == x.max():
        raise QlabError("codebook_levels needs at least two different finite values")
    x = x / x.std()
    amax = float(np.abs(x).max())
    counts, _ = np.histogram(x, bins=BINS, range=(-amax, amax))
    presets = {size: starts(counts, amax, size) for size in SIZES}
    rows = []
    for size in SIZES:
        for word, levels in presets[size].items():
            error = distortion(counts, amax, levels)
            rows.append((size, word, f"{error:.3g}", f"{-10 * np.log10(error):.1f}"))
    return figure(
        "levels",
        {
            "counts": counts.tolist(),
            "amax": amax,
            "name": name,
            "rules": list(presets[SIZES[0]]),
            "sizes": list(SIZES),
            "presets": [
                [[round(v, 6) for v in levels] for levels in presets[size].values()]
                for size in SIZES
            ],
            "bounds": [gaussian_distortion(float(np.log2(size))) for size in SIZES],
        },
        alt=f"Histogram of {name} values with the levels of a codebook, which can be moved; below "
        "it the share of the squared error that comes from each place.",
        caption="Where should the levels be? Start from one of the rules, then drag a level, or "
        "choose one with Tab and move it with the arrow keys. A step of Lloyd's algorithm moves "
        "every level to the mean of the values that are nearest to it. Distances are in standard "
        "deviations (σ).",
        fallback=table(("levels", "rule", "error (σ²)", "SQNR (dB)"), rows),
    )


def distortion(counts: np.ndarray, amax: float, levels: Any) -> float:
    """Mean squared error of a histogram over [-amax, amax] with the nearest of the levels.

    The script of the figure computes the same; a test compares the two.
    """
    x = _centers(counts, amax)
    away = np.abs(x[:, None] - np.asarray(levels, dtype=np.float64)).min(axis=1)
    return float((away**2 * counts).sum() / counts.sum())


def starts(counts: np.ndarray, amax: float, size: int) -> dict[str, list[float]]:
    """Levels by each rule, ascending. The logarithmic rule has one level less: no second zero."""
    x = _centers(counts, amax)
    even = np.linspace(-1, 1, size)
    clips = amax * np.arange(2, 101) / 100
    best = min(clips, key=lambda c: distortion(counts, amax, c * even))
    share = (np.cumsum(counts) - counts / 2) / counts.sum()
    quantiles = np.interp((np.arange(size) + 0.5) / size, share, x)
    log = get_format(f"log{int(np.log2(size))}").levels()
    optimal = kmeans_1d(x, size, counts).centroids
    return {
        "equal steps to the largest": (amax * even).tolist(),
        "equal steps, best range": (best * even).tolist(),
        "equal shares (quantiles)": quantiles.tolist(),
        "powers of two": [amax * v for v in log],
        "k-means, the optimum": optimal.tolist(),
    }


def _centers(counts: np.ndarray, amax: float) -> np.ndarray:
    n = len(counts)
    return -amax + (np.arange(n) + 0.5) * 2 * amax / n
