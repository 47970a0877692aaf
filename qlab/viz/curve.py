"""Figure: what fewer bits cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture


def quant_curve(
    rows: Sequence[Mapping[str, Any]], measures: Mapping[str, str], x: str = "bits"
) -> Picture:
    """A measure against bits per weight, the measure chosen by the reader.

    Args:
        rows: each has ``name``, ``group`` (rows of a group are joined by a line), ``x`` and a value
            (or None) for each measure.
        measures: key -> label with its unit, such as ``{"perplexity": "perplexity"}``.
        x: key of the horizontal axis.
    """
    keys = ("name", "group", x, *measures)
    kept = [{k: row.get(k) for k in keys} for row in rows]
    shown = [[r["name"], *(_short(r[k]) for k in measures)] for r in kept]
    return figure(
        "curve",
        {"rows": kept, "measures": list(measures.items()), "x": x},
        alt="Line chart of a chosen measure against bits per weight for each way of quantizing.",
        caption="What do fewer bits cost? Choose the measure; point at a mark, or move to it with "
        "the arrow keys, to read its value.",
        fallback=table(("configuration", *measures.values()), shown),
    )


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"
