"""Figure: the measured error of clipping beside what a Gaussian and a Laplacian promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.core.noise import gaussian_error, laplacian_error
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

BITS = tuple(range(2, 9))
BINS = 20_000  # for the error: dozens a step of 8 bits, if the range is not that of an outlier
SHOWN = 160  # for the drawing,
VIEW = 8.0  # which reaches so many standard deviations at most
POINTS = 60


def curves(values: Any, bits: int, clips: np.ndarray) -> dict[str, list[float]]:
    """Mean squared error over the variance, at each clip (in standard deviations).

    Keys: ``rounding`` and ``clipping``, the two parts as measured on ``values`` (symmetric,
    restricted range, computed from bins), and ``gaussian`` and ``laplacian``, the exact error
    of a distribution with the same variance.
    """
    counts, centers = _histogram(values)
    out: dict[str, list[float]] = {k: [] for k in ("rounding", "clipping", "gaussian", "laplacian")}
    std = np.sqrt((counts * centers**2).sum())
    qmax = 2 ** (bits - 1) - 1
    for clip in clips.tolist():
        scale = clip * std / qmax
        restored = np.clip(np.round(centers / scale), -qmax, qmax) * scale
        squared = (centers - restored) ** 2 * counts / std**2
        inside = np.abs(centers) <= clip * std
        out["rounding"].append(float(squared[inside].sum()))
        out["clipping"].append(float(squared[~inside].sum()))
        out["gaussian"].append(gaussian_error(bits, clip))
        # A Laplacian of variance 1 has b = 1 / sqrt(2).
        out["laplacian"].append(laplacian_error(bits, clip, 2**-0.5))
    return out


def clip_theory(tensors: Mapping[str, Any]) -> Picture:
    """Drag clip and bits over real tensors; see which distribution predicts the measured error.

    Args:
        tensors: name -> values, any shape, about zero mean (the root mean square is taken as the
            standard deviation); each with at least two different magnitudes.
    """
    if not tensors:
        raise QlabError("clip_theory needs at least one tensor: pass {name: values}")
    data, rows = [], []
    for name, values in tensors.items():
        x = to_numpy(values).astype(np.float64).reshape(-1)
        if x.size < 2 or not np.isfinite(x).all() or np.abs(x).min() == np.abs(x).max():
            raise QlabError(f"clip_theory: '{name}' needs two different finite magnitudes or more")
        counts, centers = _histogram(x)
        std = float(np.sqrt((counts * centers**2).sum()))
        reach = float(np.abs(x).max()) / std
        clips = np.geomspace(0.5, max(reach, 1.0), POINTS)
        by_bits = {b: curves(x, b, clips) for b in BITS}
        view = min(reach, VIEW)
        shown = np.histogram(x / std, bins=SHOWN, range=(-view, view))[0] / x.size
        data.append(
            {
                "name": name,
                "reach": round(reach, 4),
                "view": round(view, 4),
                "clips": [_short(c) for c in clips.tolist()],
                "density": [_short(v) for v in shown.tolist()],
                "curves": [
                    {k: [_short(v) for v in c] for k, c in by_bits[b].items()} for b in BITS
                ],
            }
        )
        for b in (8, 4, 2):
            c = by_bits[b]
            total = [r + o for r, o in zip(c["rounding"], c["clipping"], strict=True)]
            best = [clips[int(np.argmin(v))] for v in (total, c["gaussian"], c["laplacian"])]
            rows.append((f"{name}, {b} bits", *(f"{v:.2f}" for v in best)))
    return figure(
        "cliptheory",
        {"tensors": data, "bits": list(BITS)},
        alt="Histogram of a tensor with a movable clipping range; below it the mean squared error "
        "against the range, as measured and as computed for a Gaussian and a Laplacian.",
        caption="Does theory find the best range? Move the range and the bits, and change the "
        "tensor. The marks are the least error: as measured, and as each distribution promises.",
        fallback=table(
            ("tensor", "best clip, measured", "for a Gaussian", "for a Laplacian"), rows
        ),
    )


def _histogram(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Share of the values in each of BINS bins over [-amax, amax], and the centers of the bins."""
    x = to_numpy(values).astype(np.float64).reshape(-1)
    amax = float(np.abs(x).max())
    counts, _ = np.histogram(x, bins=BINS, range=(-amax, amax))
    return counts / x.size, -amax + (np.arange(BINS) + 0.5) * 2 * amax / BINS


def _short(value: float) -> float:
    """Four digits: enough to draw with, and a third of the page."""
    return float(f"{value:.4g}")
