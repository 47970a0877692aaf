"""What of qlab is compared with which production tool, from the registry and the tests' record.

The record is written by tools/record_coverage.py from tests that passed. Nothing here is filled in
by hand.

Chapter: What is checked against what.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qlab.methods.registry import get_method, method_names

_ROW = re.compile(r"Configuration\(\s*\"(?P<name>[^\"]+)\",\s*(?:\"(?P<method>\w+)\"|None)")


@dataclass(frozen=True)
class Coverage:
    """What is known of one subject, such as the method ``gptq``.

    Attributes:
        subject: kind and name.
        oracles: (tool, agreement, number of tests).
        engines: what loaded what qlab wrote of it.
    """

    subject: str
    oracles: tuple[tuple[str, str, int], ...]
    engines: tuple[str, ...]


def read_record() -> dict[str, Any]:
    """The record: ``date``, ``versions`` by tool, and ``rows`` (kind, subject, tool, agreement,
    tests)."""
    file = resources.files("qlab") / "records" / "coverage.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def coverage(kind: str, names: Iterable[str] | None = None) -> list[Coverage]:
    """What the tests have shown of the subjects of a kind.

    Args:
        kind: ``method``, ``format``, ``type`` (of GGUF), ``export`` ...
        names: these, in this order, covered or not; None for those that the record holds.

    Chapter: What is checked against what.
    """
    rows = read_record()["rows"]
    if names is None:
        found = [row[1].removeprefix(f"{kind} ") for row in rows if row[1].startswith(f"{kind} ")]
        names = dict.fromkeys(found)
    result = []
    for name in names:
        mine = [row for row in rows if row[1] == f"{kind} {name}"]
        oracles = tuple((tool, how, n) for what, _, tool, how, n in mine if what == "oracle")
        engines = tuple(dict.fromkeys(row[2] for row in mine if row[0] == "engine"))
        result.append(Coverage(f"{kind} {name}", oracles, engines))
    return result


def method_coverage() -> list[tuple[Any, Coverage]]:
    """Every method of the registry with what is known of it."""
    return [
        (get_method(one.subject.removeprefix("method ")), one)
        for one in coverage("method", method_names())
    ]


def case_study_rows(chapters: Iterable[Path]) -> dict[str, list[str]]:
    """Method -> names of its rows in these chapters (MyST files); missing files have none."""
    found: dict[str, list[str]] = {}
    for chapter in chapters:
        text = chapter.read_text(encoding="utf-8") if chapter.is_file() else ""
        for match in _ROW.finditer(text):
            if match["method"]:
                found.setdefault(match["method"], []).append(match["name"])
    return found
