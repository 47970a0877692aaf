"""Formats: what a code can stand for.

A format maps real numbers that were already divided by their scale to codes, and back. Each family
has a file of its own: ``integers``, ``floats``, ``codebooks``, and ``learned``, whose levels are
fitted to a tensor. This one finds them by name.

Chapter: Number formats.
"""

from __future__ import annotations

import difflib

from qlab.core._format import Format
from qlab.core.codebooks import CODEBOOKS, CodebookFormat
from qlab.core.floats import FLOATS, FloatFormat
from qlab.core.integers import BinaryFormat, IntFormat, TernaryFormat
from qlab.core.learned import LearnedFormat, learned_format
from qlab.errors import QlabError

__all__ = [
    "BinaryFormat",
    "CodebookFormat",
    "FloatFormat",
    "Format",
    "IntFormat",
    "LearnedFormat",
    "TernaryFormat",
    "find_format",
    "format_names",
    "get_format",
]

_INTEGERS: tuple[Format, ...] = (
    *(IntFormat(bits, signed) for bits in range(1, 9) for signed in (True, False)),
    TernaryFormat(),
    BinaryFormat(),
)
_REGISTRY: dict[str, Format] = {f.name: f for f in (*_INTEGERS, *FLOATS, *CODEBOOKS)}


def format_names() -> list[str]:
    """Names of all formats with fixed levels (learned ones are any ``kmeans<bits>`` ...)."""
    return sorted(_REGISTRY)


def find_format(name: str) -> Format | None:
    """The format of that name, or None."""
    return _REGISTRY.get(name) or learned_format(name)


def get_format(name: str) -> Format:
    """The format of that name.

    Raises: QlabError naming the nearest known formats.
    """
    if (fmt := find_format(name)) is not None:
        return fmt
    near = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.3) or ["int8", "int4"]
    raise QlabError(f"unknown format '{name}': did you mean {', '.join(near)}?")
