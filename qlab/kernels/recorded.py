"""What the benchmarks measured, as the book shows it.

``benchmarks/record.py`` writes the record from the files in ``benchmarks/results``.

Chapter: Why it is fast, or isn't.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def _read() -> dict[str, Any]:
    file = resources.files("qlab") / "records" / "benchmarks.json"
    return json.loads(file.read_text(encoding="utf-8"))


def kernels() -> dict[str, Any]:
    """One packed matrix times one vector, against other libraries.

    Returns: ``cpu``, ``threads``, ``date``, ``bandwidth`` (bytes a second) and ``rows``; each row
    has ``scheme``, ``rows``, ``columns``, and by contestant ``bytes`` and the fastest ``hot`` and
    ``cold`` runs in milliseconds. Ours is ``qlab``.

    Chapter: Why it is fast, or isn't.
    """
    return _read()["kernels"]


def engine() -> dict[str, Any]:
    """Whole models, against llama.cpp on the same file and threads.

    Returns: ``cpu``, ``threads``, ``date`` and ``rows``; each row has ``model``, ``what`` (decode
    or prefill), and tokens a second: ``qlab`` and ``peer``, the faster of llama.cpp's two ways.

    Chapter: Why it is fast, or isn't.
    """
    return _read()["engine"]
