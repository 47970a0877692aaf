"""Figure: the way of a token through the engine, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

_FIELDS = ("name", "formula", "shapes", "times", "bytes", "operations", "seconds")


def token_way(ways: dict[str, Sequence[Any]]) -> Picture:
    """The stages of a token, with bytes, operations and time of each.

    Args:
        ways: title -> stages, as ``qlab.engine.stages.stages`` gives them; the same stages in all.

    Chapter: An engine in one file's worth of Python.
    """
    first = next(iter(ways.values()))
    rows = [
        (s.name, s.formula, s.shapes, f"{s.bytes:,}", f"{s.operations:,}", f"{1e6 * s.seconds:.1f}")
        for s in first
    ]
    return figure(
        "tokenway",
        {
            "ways": [
                {"title": title, "stages": [{k: getattr(s, k) for k in _FIELDS} for s in stages]}
                for title, stages in ways.items()
            ]
        },
        alt="The stages that a token passes from its row of the embedding to its logits, each with "
        "a bar for its share of time, of bytes or of operations.",
        caption="Where do the bytes and the time of a token go? Choose what the bars show, and a "
        "stage to see its numbers. All layers are counted together; times were measured when this "
        "page was made.",
        fallback=table(
            ("stage", "computes", "shapes", "bytes", "operations", "microseconds"), rows
        ),
    )
