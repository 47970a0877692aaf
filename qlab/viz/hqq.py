"""Figure: how HQQ moves the zero point of one group, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.methods.hqq import HqqOptions, half_quadratic, shrink
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

BITS = (4, 3, 2)
STEPS = 20
LARGEST = 256  # weights of a group


def half_quadratic_steps(group: Any, name: str = "weight") -> Picture:
    """The weights of a group, their errors and what HQQ keeps of these, at each iteration.

    Args:
        group: 2 to 256 finite numbers, not all equal.
        name: what a number is, for the axis.

    β can be the library's, or ten and a hundred times what starts to keep errors of half a step.

    Raises: QlabError for other numbers.

    Chapter: Methods without data.
    """
    w = to_numpy(group).astype(np.float64).reshape(-1)
    if not 2 <= w.size <= LARGEST or not np.isfinite(w).all() or np.ptp(w) <= 1e-3:
        raise QlabError(
            f"half_quadratic_steps takes 2 to {LARGEST} finite numbers that are not all alike"
        )
    unit = 10.0 ** np.floor(np.log10(np.ptp(w)) - 4)
    w = np.round(w / unit) * unit  # five digits are enough, and short to embed
    runs, rows = [], []
    for bits in BITS:
        step = float(np.ptp(w)) / (2**bits - 1)
        for beta in betas(step):
            zeros, scale = trace(w, bits, beta)
            runs.append({"bits": bits, "beta": beta, "scale": scale, "zeros": zeros})
            first, last = (state(w, bits, scale, z, beta) for z in (zeros[0], zeros[-1]))
            rows.append(
                (
                    bits,
                    f"{beta:.3g}",
                    f"{first['absolute'] / scale:.4f}",
                    f"{last['absolute'] / scale:.4f}",
                    last["kept"],
                )
            )
    return figure(
        "hqq",
        {"weights": w.tolist(), "runs": runs, "name": name, "p": HqqOptions().lp_norm},
        alt=f"The error of each {name} of a group against its value, with the part that shrinkage "
        "keeps, and below it the mean error at each iteration of HQQ.",
        caption="What does an iteration do? Each dot is a weight with its rounding error; the thin "
        "vertical lines are the levels. Shrinkage puts the large errors aside (diamonds). The mean "
        "of what is left, the horizontal line, is then taken out by moving all levels. Move the "
        "slider, then choose another β.",
        fallback=table(
            ("bits", "β", "mean |error| (steps) at first", "at the end", "errors put aside"), rows
        ),
    )


def betas(step: float, p: float = 0.7) -> list[float]:
    """The library's β, and those whose shrinkage starts at a half and at a quarter of the errors'
    largest, half a step."""
    return [10.0, *(float(f"{(step * part) ** (p - 2):.2g}") for part in (0.25, 0.125))]


def trace(w: np.ndarray, bits: int, beta: float) -> tuple[list[float], float]:
    """z at the start and after each of 20 iterations, and the scale; in float64."""
    options = HqqOptions(beta=beta, iterations=STEPS, early_stop=False)
    found = half_quadratic(w[None], bits, options)
    return [float(z[0, 0]) for z in found.zeros], float(found.scale[0, 0])


def state(w: np.ndarray, bits: int, scale: float, zero: float, beta: float) -> dict[str, Any]:
    """What the figure shows for one z. Its script computes the same; a test compares the two."""
    codes = np.clip(np.round(w / scale + zero), 0, 2**bits - 1)
    rest = w - (codes - zero) * scale
    aside = shrink(rest, beta, HqqOptions().lp_norm)
    return {
        "codes": codes.astype(int).tolist(),
        "absolute": float(np.abs(rest).mean()),
        "square": float((rest**2).mean()),
        "left": float((rest - aside).mean()),
        "kept": int((aside != 0).sum()),
    }
