"""Figure: the roofline of a machine, with measured points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture


def roofline(points: Sequence[dict[str, Any]], bandwidth: float, peak: float) -> Picture:
    """Performance against arithmetic intensity, with the two limits of the machine.

    Args:
        points: measured; each has ``label``, ``intensity`` (operations a byte) and ``performance``
            (operations a second).
        bandwidth: bytes a second.
        peak: operations a second.
    """
    kept = [{k: p[k] for k in ("label", "intensity", "performance")} for p in points]
    rows = [(p["label"], f"{p['intensity']:.2f}", f"{p['performance'] / 1e9:.1f}") for p in kept]
    return figure(
        "roofline",
        {"points": kept, "bandwidth": bandwidth, "peak": peak},
        alt="Roofline: a slope, the memory limit, meets a flat roof, the arithmetic limit. "
        "Measured products climb the slope as more vectors are treated at once.",
        caption="Where does a product wait? Move the number of vectors and the bits of a weight: "
        "the ring shows what the machine could reach at best. Dots are measured.",
        fallback=table(("product", "operations a byte", "billion operations a second"), rows),
    )
