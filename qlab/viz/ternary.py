"""Figure: which weights become -1, 0 and 1, as the scale grows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# γ in units of the mean magnitude, and the bins of the histogram in the same unit.
FACTORS = tuple(round(0.25 * 2 ** (i / 4), 3) for i in range(17))
EDGES = np.linspace(-4, 4, 65)


def ternary_facts(weight: Any, factor: float) -> dict[str, Any]:
    """What becomes of ``weight`` with γ = factor · mean |W|.

    Returns: ``shares`` of -1, 0 and 1; ``entropy`` of these, in bits a code; ``sqnr`` in dB with
        the scale γ; ``best`` in dB with the scale of least squared error for the same codes.
    """
    w = to_numpy(weight).astype(np.float64).ravel()
    gamma = factor * np.abs(w).mean()
    codes = np.clip(np.round(w / gamma), -1, 1)
    shares = [float((codes == c).mean()) for c in (-1, 0, 1)]
    entropy = -sum(p * math.log2(p) for p in shares if p > 0)
    power, used = float((w * w).sum()), float((codes * codes).sum())
    error = float(((w - gamma * codes) ** 2).sum())
    least = power - float((w * codes).sum()) ** 2 / used if used else power
    return {
        "shares": [round(p, 5) for p in shares],
        "entropy": round(entropy + 0.0, 4),
        "sqnr": round(10 * math.log10(power / error), 3) + 0.0,
        "best": round(10 * math.log10(power / least), 3) + 0.0,
    }


def ternary_scale(weight: Any, name: str = "weights") -> Picture:
    """A histogram of the weights by the code that they get; γ to choose.

    Args:
        weight: NumPy array or torch tensor of any shape, not all zero.
        name: what the weights are, for the caption.

    Raises: QlabError for weights that are all zero, or not finite.

    Chapter: Down to 1.58 bits.
    """
    w = to_numpy(weight).astype(np.float64).ravel()
    mean = float(np.abs(w).mean()) if w.size else 0.0
    if not math.isfinite(mean) or mean == 0:
        raise QlabError("ternary_scale: the weights are all zero, or not finite")
    counts, _ = np.histogram(np.clip(w / mean, EDGES[0], EDGES[-1]), EDGES)
    steps = [ternary_facts(w, factor) for factor in FACTORS]
    rows = [
        (
            f"{factor:g}",
            f"{100 * step['shares'][1]:.0f}%",
            f"{step['entropy']:.2f}",
            f"{step['sqnr']:.1f} dB",
            f"{step['best']:.1f} dB",
        )
        for factor, step in zip(FACTORS, steps, strict=True)
    ]
    return figure(
        "ternary",
        {
            "factors": list(FACTORS),
            "edges": [round(float(e), 4) for e in EDGES],
            "counts": [round(float(c) / w.size, 6) for c in counts],
            "steps": steps,
            "start": FACTORS.index(1.0),
        },
        alt=f"A histogram of {name}, colored by the code -1, 0 or 1 that each weight gets.",
        caption="Which weights become 0? Move γ. The unit of both is the mean magnitude; BitNet's "
        f"choice is 1. Data: {name}.",
        fallback=table(
            ("γ (mean magnitudes)", "zeros", "entropy (bits)", "SQNR", "with the best scale"), rows
        ),
    )
