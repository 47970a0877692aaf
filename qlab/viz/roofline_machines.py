"""Figure: where a product lies under the roofline of a machine, and what fewer bits gain there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlab.kernels.roofline import (
    H100,
    LAPTOP,
    SCHEMES,
    Machine,
    last_gain,
    seconds,
    speedup,
)
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

MATRICES = (
    ("a layer of 1024 x 1024", 1024, 1024),
    ("7B, attention: 4096 x 4096", 4096, 4096),
    ("7B, up: 11008 x 4096", 11008, 4096),
    ("70B, up: 28672 x 8192", 28672, 8192),
)
BATCHES = tuple(2**i for i in range(12))
GAIN = 1.1  # what counts as a gain


def roofline_machines(here: Machine, points: Sequence[dict[str, Any]] = ()) -> Picture:
    """The roofline of three machines, with machine, weights, matrix and batch to choose.

    Args:
        here: this machine as it was measured.
        points: products measured on it; each has ``label``, ``intensity`` (operations a byte) and
            ``performance`` (operations a second).

    Chapter: Why it is fast, or isn't.
    """
    machines = (here, LAPTOP, H100)
    rows, inputs = MATRICES[1][1:]
    lines = []
    for machine in machines:
        for scheme in SCHEMES[1:]:
            last = last_gain(machine, scheme, rows, inputs, GAIN)
            lines.append(
                (
                    machine.name,
                    scheme.name,
                    f"{seconds(machine, scheme, rows, inputs) * 1e6:.3g}",
                    f"{speedup(machine, scheme, rows, inputs):.2f}",
                    "any" if last is None else last or "none",
                )
            )
    header = ("machine", "weights", "microseconds", "times as fast as 16 bits", "largest batch")
    return figure(
        "rooflinemachines",
        {
            "machines": [list(m) for m in machines],
            "schemes": [[s.name, s.bits, s.integers, s.extra] for s in SCHEMES],
            "matrices": [list(m) for m in MATRICES],
            "batches": BATCHES,
            "gain": GAIN,
            "points": [{k: p[k] for k in ("label", "intensity", "performance")} for p in points],
            "start": {"machine": 0, "scheme": 3, "matrix": 1, "batch": 0},
        },
        alt="Rooflines on logarithmic axes: a slope, the memory, meets two flat roofs, the "
        "arithmetic on floats and on int8. A dot, the chosen weights, and a ring, weights of 16 "
        "bits, climb the slope and stop at their roofs as more vectors are multiplied at once.",
        caption="Up to which batch do fewer bits pay? Choose a machine and weights, then move the "
        "number of vectors until dot and ring stand under the same roof. All numbers are "
        "predictions from the ceilings; small crosses are products measured here.",
        fallback=table(header, lines),
    )
