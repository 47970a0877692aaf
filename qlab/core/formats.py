"""Formats: what a code can stand for.

A format maps real numbers that were already divided by their scale to integer codes, and back.
This file holds the integer formats; each other family has a file of its own.

Chapter: Number formats.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from qlab.core._array import Array, namespace
from qlab.errors import QlabError


@dataclass(frozen=True)
class IntFormat:
    """Integers of ``bits`` bits, two's complement when ``signed``.

    Attributes:
        bits: 1 to 8.
        signed: codes run from ``-2**(bits-1)`` to ``2**(bits-1) - 1``, else from 0.
    """

    bits: int
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise QlabError(f"int{self.bits} is not a format: integer formats have 1 to 8 bits")

    @property
    def name(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def range(self, symmetric: bool) -> tuple[int, int]:
        """(qmin, qmax) in use.

        Symmetric quantization uses the restricted range of a signed format, which gives up the
        one most negative code so that x and -x have codes of opposite sign. int1 has only the
        codes -1 and 0, so it keeps both.
        """
        if symmetric and self.signed and self.bits > 1:
            return -self.qmax, self.qmax
        return self.qmin, self.qmax

    def levels(self) -> list[float]:
        """Every value a code can stand for at scale 1, ascending."""
        return [float(q) for q in range(self.qmin, self.qmax + 1)]

    def encode(self, y: Array, qmin: int, qmax: int) -> Array:
        """Codes of the scaled and shifted values ``y``: round half to even, then clip. int8."""
        xp = namespace(y)
        q = xp.clip(xp.round(y), float(qmin), float(qmax))
        return xp.astype(q, xp.int8 if self.signed else xp.uint8)


# name -> constructor. Other files of formats add theirs; `get_format` is the only reader.
_REGISTRY: dict[str, Callable[[], IntFormat]] = {}
for _bits in range(1, 9):
    _REGISTRY[f"int{_bits}"] = lambda b=_bits: IntFormat(b)  # type: ignore[misc]
    _REGISTRY[f"uint{_bits}"] = lambda b=_bits: IntFormat(b, signed=False)  # type: ignore[misc]


def format_names() -> list[str]:
    """Names of all registered formats."""
    return sorted(_REGISTRY)


def get_format(name: str) -> IntFormat:
    """The format of that name.

    Raises: QlabError naming the nearest known formats.
    """
    try:
        return _REGISTRY[name]()
    except KeyError:
        near = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.3) or [
            "int8",
            "int4",
        ]
        raise QlabError(f"unknown format '{name}': did you mean {', '.join(near)}?") from None
