"""Progress bars: shown where they are asked for, once something takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def bar(items: Iterable[T], doing: str, unit: str, progress: bool) -> Iterable[T]:
    """``items``, with a bar while they are iterated if ``progress``."""
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=doing, unit=unit, delay=2)
