"""Figure: the error of one sub-block over all scales and minima, and what the search finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.gguf.arithmetic import Array, f32, importance_weights
from qlab.gguf.searches import affine_search
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

SUPER, SUB, TOP = 256, 32, 15
# start, width and steps of the search: without and with an importance matrix
PLAIN, INFORMED = (-1.0, 0.1, 20), (-0.9, 0.05, 36)


def search_landscape(
    block: Any, importance: Any = None, name: str = "a super-block of 256 weights"
) -> Picture:
    """The error of a sub-block as a map over scale and minimum, with the tries of the search.

    Args:
        block: 256 finite weights, a super-block of Q4_K.
        importance: 256 numbers, the imatrix row of these columns, or None. No number is below zero,
            and some of each 32 are above.
        name: what the block is.

    Raises: QlabError for other numbers, or a sub-block without a weight below zero.

    Chapter: k-quants and the importance matrix.
    """
    w = to_numpy(block).astype(np.float64).reshape(-1)
    subs = w.reshape(-1, SUB) if w.size == SUPER else w[None]
    # The axis of the minimum is in units of the smallest weight, so that has to be below zero.
    if w.size != SUPER or not np.isfinite(w).all() or (subs.min(axis=1) > -1e-6).any():
        raise QlabError(
            f"search_landscape takes {SUPER} finite weights, some of each {SUB} below zero"
        )
    if importance is not None:
        importance = to_numpy(importance).astype(np.float64).reshape(-1)
        if importance.size != SUPER or not np.isfinite(importance).all() or importance.min() < 0:
            raise QlabError(f"search_landscape takes an importance of {SUPER} numbers from 0 up")
        if (importance.reshape(-1, SUB).max(1) == 0).any():
            raise QlabError(f"search_landscape: some of each {SUB} importances must be above 0")
    w = _short(w)
    names, costs = costs_of(w, importance)
    paths = [
        [_trace(group, cost, INFORMED if which == 2 else PLAIN) for group, cost in pairs]
        for which, pairs in enumerate(zip(w.reshape(-1, SUB), c, strict=True) for c in costs)
    ]
    rows = []
    for label, cost, found in zip(names, costs, paths, strict=True):
        for sub, path in enumerate(found):
            first, last = (
                state(w[sub * SUB : (sub + 1) * SUB], cost[sub], *path[k]) for k in (0, -1)
            )
            rows.append(
                (
                    sub + 1,
                    label,
                    f"{last['weighted'] / first['weighted']:.2f}",
                    f"{last['plain'] / first['plain']:.2f}",
                )
            )
    return figure(
        "kquants",
        {
            "weights": w.tolist(),
            "names": names,
            "costs": [c.reshape(-1).tolist() for c in costs],
            "paths": paths,
            "name": name,
        },
        alt=f"A map of the weighted error of 32 weights of {name} over the scale and the minimum, "
        "with the pairs that the search found and its choice, and the error of each weight below.",
        caption="Can you beat the search? Each point of the map is a pair of scale and minimum; "
        "the stronger its color, the smaller the weighted error. The search walks from the range "
        "(circle) to its choice (diamond). Click a point or move the sliders for a "
        "pair of your own (cross), and change what an error costs. Codes are rounded anew for "
        "each pair.",
        fallback=table(
            ("sub-block", "an error costs", "weighted error / range's", "plain error / range's"),
            rows,
        ),
    )


def costs_of(w: Array, importance: Array | None) -> tuple[list[str], list[Array]]:
    """What an error costs, float64 (8, 32) each: nothing special, Q4_K's guess, the imatrix."""
    x = w.astype(np.float32).reshape(-1, SUB)
    rms = np.sqrt((x * x).mean(-1, keepdims=True))
    names = ["the same for all", "the guess: rms + |w|"]
    costs = [np.ones_like(x), rms + np.abs(x)]
    if importance is not None:
        energy = f32(2) * (x * x).mean()
        rows = importance.astype(np.float32).reshape(-1, SUB)
        names.append("importance matrix")
        costs.append(importance_weights(x, rows, energy))
    return names, [_short(c / c.mean()) for c in costs]


def state(w: Array, cost: Array, scale: float, low: float) -> dict[str, Any]:
    """What the figure shows for one pair. Its script computes the same; a test compares the two."""
    codes = np.clip(np.round((w - low) / scale), 0, TOP)
    gap = scale * codes + low - w
    return {
        "codes": codes.astype(int).tolist(),
        "plain": float((gap**2).mean()),
        "weighted": float((cost * gap**2).sum() / cost.sum()),
    }


def _trace(x: Array, cost: Array, search: tuple[float, float, int]) -> list[list[float]]:
    """Scale and minimum of the range, and the best after each try: the search, cut short."""
    start, width, steps = search
    group, weights = (a.astype(np.float32)[None] for a in (x, cost))
    found = []
    for last in range(-1, steps + 1):
        _, scale, minus = affine_search(group, TOP, weights, start, width, last)
        found.append([float(f"{v:.6g}") for v in (float(scale[0]), -float(minus[0]))])
    return found


def _short(x: Array) -> Array:
    """Five digits, which is enough here and short to embed."""
    size = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(x), 1e-30))) - 4)
    return np.round(np.round(x.astype(np.float64) / size) * size, 12)
