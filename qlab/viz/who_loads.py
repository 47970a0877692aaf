"""Figures of the toolbox: who loads what, tools beside qlab, old names and what they are now.

All three show a record or a list that Python gives them; nothing is computed in the page but what
is chosen. Chapters: Who loads what; the chapters on tools; Old names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

NOT_TRIED = "not tried"
# Status of a cell -> what it is called.
WORDS = {
    "agrees": "loads, and agrees",
    "differs": "loads, and says something else",
    "refuses": "refuses",
    NOT_TRIED: NOT_TRIED,
}
MARKS = {"agrees": "yes", "differs": "differs", "refuses": "no", NOT_TRIED: "-"}


def status_of(record: Mapping[str, Any], engine: str, name: str) -> str:
    """A key of ``WORDS``: what an engine made of a file."""
    cell = record["engines"].get(engine, {"cells": {}})["cells"].get(name)
    return NOT_TRIED if cell is None else str(cell["status"])


def who_loads(record: Mapping[str, Any]) -> Picture:
    """ "I have this file, I want to run it there": one cell of the table, and what works instead.

    Args:
        record: qlab/records/who_loads.json.

    Raises: QlabError for a record without files or engines.

    Chapter: Who loads what.
    """
    files, engines = list(record["ours"]), list(record["engines"])
    if not files or not engines:
        raise QlabError("who_loads needs a record with files and engines: run its script")
    cells = []
    for name in files:
        line = []
        for engine in engines:
            cell = record["engines"][engine]["cells"].get(name, {})
            line.append(
                {
                    "status": status_of(record, engine, name),
                    "why": cell.get("why", ""),
                    "perplexity": cell.get("perplexity"),
                    "ours": record["ours"][name],
                }
            )
        cells.append(line)
    rows = [
        (name, *(MARKS[cell["status"]] for cell in line))
        for name, line in zip(files, cells, strict=True)
    ]
    return figure(
        "wholoads",
        {"files": files, "engines": engines, "cells": cells, "words": WORDS},
        alt="Two choices, a file and an engine, and below them what the engine made of the file.",
        caption="I have this file and want to run it there. Does it load, does it say the same as "
        "qlab, and if not, what would?",
        fallback=table(("file", *engines), rows),
    )


def tools_beside(rows: Sequence[tuple[str, float, float, float]], reference: float) -> Picture:
    """Perplexity of tools beside qlab's for the same scheme, as dots on one axis.

    Args:
        rows: (name, the tool's perplexity, qlab's, megabytes of its files).
        reference: perplexity in full precision.

    Raises: QlabError without rows.

    Chapter: GPTQModel, llm-compressor, AutoAWQ, AutoRound, HQQ, Neural Compressor.
    """
    if not rows:
        raise QlabError("tools_beside needs a row: run tools/record_tools.py")
    shown = [(n, f"{a:.2f}", f"{b:.2f}", f"{a / b - 1:+.2%}", f"{m:.1f}") for n, a, b, m in rows]
    head = ("tool and scheme", "its perplexity", "qlab's", "difference", "MB")
    return figure(
        "toolsbeside",
        {"rows": [list(row) for row in rows], "reference": reference},
        alt="For each tool a dot at its perplexity and a ring at that of qlab for the same scheme.",
        caption="How near is each tool to qlab, and how much of the loss is the scheme's? Choose "
        "one, or another order.",
        fallback=table(head, shown),
    )


def old_names(rows: Sequence[Mapping[str, str]]) -> Picture:
    """A field to search for what a reader arrives with.

    Args:
        rows: with the keys ``old``, ``was``, ``now``, ``line`` (code that works today).

    Raises: QlabError for a row that lacks one.

    Chapter: Old names.
    """
    keys = ("old", "was", "now", "line")
    for row in rows:
        missing = [key for key in keys if not row.get(key)]
        if missing:
            raise QlabError(f"the old name {dict(row)} lacks {', '.join(missing)}")
    return figure(
        "oldnames",
        {"rows": [{key: row[key] for key in keys} for row in rows]},
        alt="A field for an old name, and below it what it was, what it is now and a line of code.",
        caption="What did you find in the tutorial? Type a part of it.",
        fallback=table(("old", "now"), [(row["old"], row["now"]) for row in rows]),
    )
