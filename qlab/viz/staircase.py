"""Figure: the staircase of the affine map, and where a zero point puts it."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

KINDS = ("unsigned", "signed")
ROUNDINGS = ("nearest", "toward zero")
STEPS = 100  # positions of the scale slider for one unit of x


def code_range(kind: str, bits: int) -> tuple[int, int]:
    """(qmin, qmax) of all codes of ``bits`` bits: unsigned from 0, signed in two's complement."""
    return (0, 2**bits - 1) if kind == "unsigned" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def stair(
    x: Any, scale: float, zero_point: int, qmin: int, qmax: int, rounding: str = "nearest"
) -> Any:
    """x̂ of a number or an array. The script of the figure computes the same; a test compares."""
    y = np.asarray(x, np.float64) / scale
    whole = np.round(y) if rounding == "nearest" else np.trunc(y)
    return (np.clip(whole + zero_point, qmin, qmax) - zero_point) * scale


def worst(
    low: float, high: float, scale: float, zero_point: int, qmin: int, qmax: int, rounding: str
) -> float:
    """Largest |x - x̂| over a fine grid of the data's range [low, high]."""
    x = np.linspace(low, high, 2001)
    return float(np.abs(x - stair(x, scale, zero_point, qmin, qmax, rounding)).max())


def fitted(low: float, high: float, kind: str, bits: int) -> tuple[float, int]:
    """scale and zero_point by the formulas of the chapter, 0 counted into the range."""
    qmin, qmax = code_range(kind, bits)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (qmax - qmin)
    return scale, int(qmin - np.round(low / scale))


def staircase(low: float = -0.65, high: float = 2.15, bits: int = 3) -> Picture:
    """Move scale and zero point until the staircase covers the range of the data.

    Args:
        low, high: the range of the data, units of x; low < high, and 0 inside or at an end.
        bits: number of bits at first, 2 to 5.

    The reader moves the scale, the zero point, the kind of code and the rounding, and sees the
    staircase and the error below it.
    """
    if not low <= 0 <= high or low == high or not np.isfinite([low, high]).all():
        raise QlabError(f"staircase needs low <= 0 <= high, two finite numbers, got {low}, {high}")
    if bits not in range(2, 6):
        raise QlabError(f"staircase has 2 to 5 bits, got {bits}")
    rows = []
    for kind in KINDS:
        for b in range(2, 6):
            scale, zero = fitted(low, high, kind, b)
            qmin, qmax = code_range(kind, b)
            error = worst(low, high, scale, zero, qmin, qmax, "nearest")
            rows.append((f"{kind}, {b} bits", f"{scale:.3g}", zero, f"{error:.3g}"))
    return figure(
        "staircase",
        {"low": low, "high": high, "bits": bits, "steps": STEPS},
        alt="A staircase of x̂ against x beside the straight line x̂ = x, over the range of the "
        "data, and below it the error, with controls for scale, zero point, bits and codes.",
        caption="Which scale and zero point cover the data? The shaded band is the range of the "
        "data. Make the largest error inside it as small as you can; then switch the codes from "
        "unsigned to signed and leave the zero point where it is.",
        fallback=table(("codes", "best scale", "its zero point", "largest error"), rows),
    )
