"""Figure: a budget of bytes, and which layer gets which bits within it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from qlab.core import Scheme
from qlab.errors import QlabError
from qlab.evaluate.allocation import Allocation
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture


def bit_budget(
    points: Sequence[Allocation],
    measured: Sequence[float],
    uniform: Mapping[str, tuple[int, float]],
    start: int | None = None,
) -> Picture:
    """The frontier of bit allocation, with the budget to choose.

    Args:
        points: allocations of the same layers, from the smallest to the largest; each layer has a
            scheme. Names are those of the model: a number is the block, the last part the layer.
        measured: KL divergence of the model with each allocation, in nats.
        uniform: scheme -> (bytes, measured KL) with that scheme for all layers.
        start: the point that is shown first; None: the middle one.

    Raises: QlabError for no points, other lengths, layers that do not fit a grid of block and name,
        or a divergence that is not positive and finite.

    Chapter: Sensitivity and mixed precision.
    """
    if not points or len(points) != len(measured):
        raise QlabError(
            f"bit_budget has {len(points)} allocations and {len(measured)} divergences: measure "
            "each of at least one"
        )
    names = list(points[0].schemes)
    values = [*measured, *(p.cost for p in points), *(kl for _, kl in uniform.values())]
    if any(not (math.isfinite(v) and v > 0) for v in values):
        raise QlabError("bit_budget draws logarithms: every divergence must be positive and finite")
    if any(list(p.schemes) != names for p in points):
        raise QlabError("bit_budget: the allocations are of different layers")
    used = {word for p in points for word in p.schemes.values()}
    schemes = sorted(used, key=lambda word: (Scheme.parse(word).format.bits, word))
    places = [_place(name) for name in names]
    rows, columns = (list(dict.fromkeys(p[i] for p in places)) for i in (0, 1))
    if len(set(places)) < len(places):
        raise QlabError("bit_budget: two layers have the same block and last name")
    data = {
        "schemes": [{"name": w, "bits": Scheme.parse(w).format.bits} for w in schemes],
        "rows": rows,
        "columns": columns,
        "layers": [{"row": rows.index(r), "column": columns.index(c)} for r, c in places],
        "points": [
            {
                "nbytes": p.nbytes,
                "predicted": float(f"{p.cost:.4g}"),
                "measured": float(f"{kl:.4g}"),
                "schemes": [schemes.index(word) for word in p.schemes.values()],
            }
            for p, kl in zip(points, measured, strict=True)
        ],
        "uniform": [
            {"scheme": word, "nbytes": nbytes, "measured": float(f"{kl:.4g}")}
            for word, (nbytes, kl) in uniform.items()
        ],
        "start": len(points) // 2 if start is None else start,
    }
    return figure(
        "bitbudget",
        data,
        alt="A grid of the model's layers with the bits of each, for a chosen budget; a plot of "
        "the divergence, predicted and measured, against the size, with points for the same bits "
        "everywhere.",
        caption="Who gets the bits? Move the budget. The grid shows the bits of each layer in the "
        "best allocation, the plot what the model loses.",
        fallback=table(
            ("size (MB)", "KL predicted (nats)", "KL measured (nats)", "layers in each scheme"),
            [
                (
                    f"{p.nbytes / 1e6:.2f}",
                    f"{p.cost:.3g}",
                    f"{kl:.3g}",
                    ", ".join(
                        f"{list(p.schemes.values()).count(w)} {w}"
                        for w in schemes
                        if w in p.schemes.values()
                    ),
                )
                for p, kl in zip(points, measured, strict=True)
            ],
        ),
    )


def _place(name: str) -> tuple[str, str]:
    """(block, short name) of a layer."""
    number = re.search(r"\.(\d+)\.", name)
    return (f"block {number[1]}" if number else "", name.rpartition(".")[2].removesuffix("_proj"))


def learned_rounding(runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Picture:
    """Runs of signed gradient descent, step by step.

    Args:
        runs: name -> (loss before each step, share of codes that are not the nearest ones). The
            first loss is that of rounding to nearest; all runs have as many steps.

    Raises: QlabError for no runs, other lengths, or values that are not finite.

    Chapter: Learned rounding.
    """
    lengths = {len(part) for run in runs.values() for part in run}
    if len(lengths) != 1 or not min(lengths):
        raise QlabError("learned_rounding needs runs of one length: name -> (losses, shares)")
    if any(not math.isfinite(v) for run in runs.values() for part in run for v in part) or any(
        losses[0] <= 0 for losses, _ in runs.values()
    ):
        raise QlabError("learned_rounding draws finite losses, the first of them positive")
    data = [
        {
            "name": name,
            "loss": [round(v / losses[0], 4) for v in losses],
            "changed": [round(v, 4) for v in changed],
        }
        for name, (losses, changed) in runs.items()
    ]
    return figure(
        "learnedrounding",
        {"runs": data, "steps": lengths.pop(), "start": len(data) // 2},
        alt="Plot of the error of a layer's output against the step of signed gradient descent for "
        "first steps of different length.",
        caption="How long should a step be? Choose the first step, then go through the steps.",
        fallback=table(
            ("first step", "least error (nearest = 1)", "codes changed at the end"),
            [
                (name, f"{min(losses) / losses[0]:.3f}", f"{100 * changed[-1]:.1f}%")
                for name, (losses, changed) in runs.items()
            ],
        ),
    )
