"""Integer formats: 1 to 8 bits, signed and unsigned; ternary; binary.

Chapter: Number formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlab.core._array import Array, namespace
from qlab.core._format import Format
from qlab.core.rounding import round_to_integer
from qlab.errors import QlabError


@dataclass(frozen=True)
class IntFormat(Format):
    """Integers of ``bits`` bits, two's complement when ``signed``.

    Attributes:
        bits: 1 to 8.
        signed: codes run from ``-2**(bits-1)`` to ``2**(bits-1) - 1``, else from 0.
    """

    bits: int
    signed: bool = True
    affine = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise QlabError(f"int{self.bits} is not a format: integer formats have 1 to 8 bits")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def range(self, symmetric: bool, full: bool = False) -> tuple[int, int]:
        """(qmin, qmax) in use.

        Symmetric quantization uses the restricted range of a signed format, which gives up the
        one most negative code so that x and -x have codes of opposite sign. ``full`` keeps that
        code. int1 has only the codes -1 and 0, so it keeps both.
        """
        if symmetric and self.signed and self.bits > 1 and not full:
            return -self.qmax, self.qmax
        return self.qmin, self.qmax

    def levels(self) -> list[float]:
        """Every value a code can stand for at scale 1, ascending."""
        return [float(q) for q in range(self.qmin, self.qmax + 1)]

    @property
    def min(self) -> float:
        return float(self.qmin)

    @property
    def max(self) -> float:
        return float(self.qmax)

    def encode(
        self,
        y: Array,
        qmin: int | None = None,
        qmax: int | None = None,
        *,
        noise: Array | None = None,
    ) -> Array:
        """Codes of the scaled (and shifted) values ``y``: round, then clip. int8, or uint8.

        Rounds half to even, or stochastically where ``noise`` is given; clips to [qmin, qmax], by
        default the whole range of the format.
        """
        xp = namespace(y)
        low = self.qmin if qmin is None else qmin
        high = self.qmax if qmax is None else qmax
        q = xp.clip(round_to_integer(y, noise), float(low), float(high))
        return xp.astype(q, xp.int8 if self.signed else xp.uint8)

    def decode(self, codes: Array) -> Array:
        """The codes as float32."""
        xp = namespace(codes)
        return xp.astype(codes, xp.float32)

    def to_stored(self, codes: Array) -> Array:
        """code - qmin, uint8."""
        if not self.signed:
            return codes
        xp = namespace(codes)
        return xp.astype(xp.astype(codes, xp.int16) - self.qmin, xp.uint8)

    def from_stored(self, stored: Array) -> Array:
        if not self.signed:
            return stored
        xp = namespace(stored)
        return xp.astype(xp.astype(stored, xp.int16) + self.qmin, xp.int8)


@dataclass(frozen=True)
class TernaryFormat(IntFormat):
    """-1, 0 and 1: the codes of ``int2`` without its most negative one.

    Two bits are stored; three levels need log2 3 = 1.585 (``ideal_bits``), which packing five codes
    into a byte comes near (3^5 = 243 <= 256: 1.6 bits).
    """

    bits: int = 2
    affine = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return "ternary"

    @property
    def qmin(self) -> int:
        return -1

    @property
    def qmax(self) -> int:
        return 1

    def range(self, symmetric: bool, full: bool = False) -> tuple[int, int]:
        return -1, 1


@dataclass(frozen=True)
class BinaryFormat(Format):
    """-1 and +1, one bit: the sign. Zero becomes +1."""

    bits: int = 1
    name = "binary"

    def levels(self) -> list[float]:
        return [-1.0, 1.0]

    def encode(self, y: Array, *, noise: Array | None = None) -> Array:
        """-1 or +1, int8. Stochastic: +1 with probability (y + 1) / 2, y clipped to [-1, 1]."""
        xp = namespace(y)
        up = y >= 0 if noise is None else noise < (y + 1) / 2
        return 2 * xp.astype(up, xp.int8) - 1

    def decode(self, codes: Array) -> Array:
        """The codes as float32."""
        xp = namespace(codes)
        return xp.astype(codes, xp.float32)

    def to_stored(self, codes: Array) -> Array:
        """0 for -1, 1 for +1; uint8."""
        xp = namespace(codes)
        return xp.astype(codes > 0, xp.uint8)

    def from_stored(self, stored: Array) -> Array:
        xp = namespace(stored)
        return 2 * xp.astype(stored, xp.int8) - 1
