"""Figure: quality against cost for every configuration, and the front that none other beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture


def pareto(
    points: Sequence[Mapping[str, Any]],
    measures: Mapping[str, tuple[str, bool]],
    costs: Mapping[str, tuple[str, bool]],
) -> Picture:
    """Choose a measure, a cost and a budget; read which configuration is best within it.

    Args:
        points: each has ``name``, ``family``, and for each measure [value, low, high] or None,
            for each cost a number or None.
        measures: key -> (label with its unit, whether more is better).
        costs: the same; the reader may spend so much.

    Raises: QlabError for no points, names that stand twice, or a number that is not finite.

    Chapter: The case study, whole.
    """
    if not points or not measures or not costs:
        raise QlabError("pareto needs at least one point, one measure and one cost")
    names = [p["name"] for p in points]
    if len(set(names)) < len(names):
        raise QlabError("pareto: two points have the same name")
    rows = []
    for point in points:
        values = {k: _numbers(point["name"], k, point.get(k), 3) for k in measures}
        spent = {k: _numbers(point["name"], k, point.get(k), 1) for k in costs}
        rows.append({"name": point["name"], "family": point["family"], **values, **spent})
    rows = [r for r in rows if any(r[k] for k in measures) and any(r[k] for k in costs)]
    if not rows:
        raise QlabError("pareto: no point has both a measure and a cost")
    (measure, (label, more)), (cost, (cost_label, cost_more)) = (
        next(iter(measures.items())),
        next(iter(costs.items())),
    )
    shown = [r for r in rows if r[measure] and r[cost]]
    best = on_front(
        [(r[cost][0], r[measure][0]) for r in shown], more_cost=cost_more, more_value=more
    )
    return figure(
        "pareto",
        {
            "rows": rows,
            "measures": [[k, text, up] for k, (text, up) in measures.items()],
            "costs": [[k, text, up] for k, (text, up) in costs.items()],
        },
        alt="Points of a chosen measure of quality against a chosen cost, a point for each "
        "configuration; those that no other beats in both are joined by a line.",
        caption="What is the best that a budget buys? Choose quality, cost and budget. The line "
        "joins what no other configuration beats in both. Point at a mark, or go through them with "
        "the arrow keys, to read it.",
        fallback=table(
            ("on the front", cost_label, label, "95% of resamples"),
            [
                (r["name"], f"{r[cost][0]:.4g}", f"{r[measure][0]:.4g}",
                 f"{r[measure][1]:.4g} to {r[measure][2]:.4g}")
                for r in (shown[i] for i in best)
            ],
        ),
    )  # fmt: skip


def on_front(
    points: Sequence[tuple[float, float]], *, more_cost: bool = False, more_value: bool = False
) -> list[int]:
    """Indices of the points (cost, value) that no other beats, cheapest first.

    Args:
        more_cost: a higher cost is the cheaper one, as of a speed.
        more_value: a higher value is the better one.
    """
    signed = [
        (-c if more_cost else c, -v if more_value else v, i) for i, (c, v) in enumerate(points)
    ]
    found, best = [], math.inf
    for _, value, index in sorted(signed):
        if value < best:
            best = value
            found.append(index)
    return found


def _numbers(name: str, key: str, value: Any, count: int) -> list[float] | None:
    """What the script reads: a list of numbers with six digits, or None."""
    if value is None:
        return None
    numbers = list(value) if count > 1 else [value]
    if len(numbers) != count or not all(math.isfinite(v) for v in numbers):
        raise QlabError(f"pareto: {key} of '{name}' is {value}: give {count} finite numbers")
    return [float(f"{v:.6g}") for v in numbers]
