"""The record of the case study: rows, and what they are of.

Chapter: The case study, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qlab.errors import QlabError
from qlab.study.lines import Settings
from qlab.study.quality import openings_of
from qlab.study.rows import Row, rows_from

KEPT_STORIES = 4  # continuations of a row that the record keeps
_TOOLS = ("torch", "transformers", "numba", "numpy", "rouge-score", "sacrebleu", "xllamacpp")


def weights_hash(model: Any) -> str:
    """SHA-256 of a model's tensors, in float32, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def record_of(
    source: Any, rows: Sequence[Row], settings: Settings, texts: Sequence[str]
) -> dict[str, Any]:
    """What is written down: ``about`` and ``rows``."""
    return {"about": about(source, settings, texts), "rows": [_kept(row) for row in rows]}


def about(source: Any, settings: Settings, texts: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on, and the openings of the stories that rows keep."""
    versions = {"python": platform.python_version()}
    for tool in ("qlab", *_TOOLS):
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return {
        "model": source.name,
        "weights": weights_hash(source.model),
        "settings": asdict(settings),
        "openings": [first for first, _ in openings_of(texts, KEPT_STORIES)],
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def _kept(row: Row) -> dict[str, Any]:
    """A row without what no page reads."""
    table = asdict(row)
    return {**table, "told": row.told[:KEPT_STORIES]}


def read_record(path: str | Path | None = None) -> tuple[dict[str, Any], list[Row]]:
    """``about`` and the rows of a record; default: that of the storyteller.

    Raises: QlabError for a file that is none.

    Chapter: The case study, whole.
    """
    file = Path(path) if path else resources.files("qlab") / "records" / "case_study.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["about"], rows_from(found["rows"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise QlabError(
            f"no record of a case study at '{file}' ({error}): make one with `make case-study`"
        ) from None
