"""Floating-point formats from 4 to 32 bits, in bits: sign, exponent, fraction.

A pattern with sign s, exponent field E and fraction field F (of ``mantissa_bits`` = m bits) is

    (-1)^s · 2^(E - bias) · (1 + F / 2^m)      E > 0, normal
    (-1)^s · 2^(1 - bias) · (F / 2^m)          E = 0, subnormal

apart from the patterns that stand for infinity and NaN:

    specials    infinity              NaN
    "ieee"      E all ones, F = 0     E all ones, F > 0                fp32 tf32 bf16 fp16 fp8_e5m2
    "nan"       none                  all ones but the sign                  fp8_e4m3 ("fn")
    "none"      none                  none                                   fp6_* fp4_e2m1

Sources: IEEE 754-2019; FP8: Micikevicius et al. 2022 (arXiv 2209.05433), table 1; FP6, FP4 and
E8M0: Open Compute Project, Microscaling Formats (MX) v1.0, section 5 (Rouhani et al. 2023, arXiv
2310.10537).

Chapter: Number formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qlab.core._array import Array, bit_pattern, from_bit_pattern, namespace, take
from qlab.core._format import Format
from qlab.core.rounding import round_to_integer
from qlab.errors import QlabError

OVERFLOWS = ("saturate", "nan", "inf")


@dataclass(frozen=True)
class FloatFormat(Format):
    """A sign bit, ``exponent_bits`` and ``mantissa_bits``; codes are the bit patterns.

    Attributes:
        name: such as ``fp8_e4m3``.
        exponent_bits, mantissa_bits: widths of the two fields.
        bias: subtracted from the exponent field.
        specials: ``ieee``, ``nan`` or ``none``; see the top of the file.
        overflow: what ``encode`` makes of a number that rounds to beyond the largest level:
            ``saturate`` gives the largest level with its sign, ``nan`` NaN, ``inf`` infinity. The
            default is ``inf`` where the format has one, else ``saturate``. The references disagree
            on fp8_e4m3: torch saturates, ml_dtypes gives NaN.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: str = "none"
    overflow: str = field(default="")

    def __post_init__(self) -> None:
        if not self.overflow:
            default = "inf" if self.specials == "ieee" else "saturate"
            object.__setattr__(self, "overflow", default)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """1 + exponent_bits + mantissa_bits. tf32 has 19, which hardware keeps in 32."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal number and of all subnormal ones: 1 - bias."""
        return 1 - self.bias

    @property
    def infinity(self) -> int | None:
        """The pattern of +infinity, or None."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits if self.has_inf else None

    @property
    def nan(self) -> int | None:
        """The pattern that ``encode`` gives for NaN (without its sign), or None.

        With ``ieee`` the quiet NaN with only the first bit of the fraction set.
        """
        ones = (1 << (self.bits - 1)) - 1
        if self.specials == "ieee":
            return ((1 << self.exponent_bits) - 1) << self.mantissa_bits | 1 << (
                self.mantissa_bits - 1
            )
        return ones if self.specials == "nan" else None

    @property
    def has_inf(self) -> bool:
        return self.specials == "ieee"

    @property
    def max_code(self) -> int:
        """The pattern of the largest finite number."""
        ones = (1 << (self.bits - 1)) - 1
        if self.infinity is not None:
            return self.infinity - 1
        return ones - 1 if self.specials == "nan" else ones

    @property
    def smallest(self) -> float:
        """The smallest positive level, a subnormal: 2^(1 - bias - mantissa_bits)."""
        return math.ldexp(1.0, self.emin - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """2^(1 - bias): below it the levels are evenly spaced."""
        return math.ldexp(1.0, self.emin)

    def value(self, code: int) -> float:
        """What one bit pattern stands for: the definition, for a Python integer."""
        sign = -1.0 if code >> (self.bits - 1) & 1 else 1.0
        magnitude = code & ((1 << (self.bits - 1)) - 1)
        if self.infinity is not None and magnitude >= self.infinity:
            return sign * math.inf if magnitude == self.infinity else math.nan
        if self.specials == "nan" and magnitude == self.nan:
            return math.nan
        exponent = magnitude >> self.mantissa_bits
        fraction = magnitude & ((1 << self.mantissa_bits) - 1)
        if exponent == 0:
            return sign * math.ldexp(fraction, self.emin - self.mantissa_bits)
        whole = (1 << self.mantissa_bits) + fraction
        return sign * math.ldexp(whole, exponent - self.bias - self.mantissa_bits)

    def levels(self) -> list[float]:
        """Every finite value, ascending; both zeros count once.

        Raises: QlabError for fp32, which has 4 billion: ask ``min``, ``max`` and ``step``.
        """
        if self.bits > 20:
            raise QlabError(f"{self.name} has too many levels to list: use min, max and step")
        positive = [self.value(c) for c in range(1, self.max_code + 1)]
        return [-v for v in reversed(positive)] + [0.0] + positive

    @property
    def min(self) -> float:
        return -self.max

    @property
    def max(self) -> float:
        return self.value(self.max_code)

    @property
    def ideal_bits(self) -> float:
        return math.log2(2 * self.max_code + 1)

    def step(self, value: float) -> float:
        """The gap between the levels around ``value``: 2^(max(e, emin) - m) for 2^e <= |value|.

        At a level it is the distance to the next one away from zero; at the largest, the gap that
        ends there; beyond it is infinite.
        """
        if not abs(value) <= self.max:
            return math.inf
        e = math.frexp(value)[1] - 1 if value else self.emin
        return math.ldexp(1.0, max(e, self.emin) - self.mantissa_bits)

    def encode(self, y: Array, overflow: str | None = None, *, noise: Array | None = None) -> Array:
        """Bit patterns of the nearest levels of ``y`` (float32); halfway, the even pattern.

        uint8, uint16 or uint32, the smallest that holds ``bits``. ``-0.0`` keeps its sign. NaN
        becomes the format's NaN; where it has none, zero of the other sign (as in ml_dtypes).
            Infinity overflows like any number that is too large.

        Args:
            y: float32 of any shape.
            overflow: ``saturate``, ``nan`` or ``inf``; by default the format's own rule.
            noise: uniform random numbers in [0, 1): round stochastically.

        Raises: QlabError for a rule whose value the format does not have.
        """
        xp = namespace(y)
        beyond = self._overflow_code(overflow or self.overflow)
        pattern = bit_pattern(y)
        sign = (pattern >> 31) & 1
        magnitude = pattern & 0x7FFFFFFF
        e_field = magnitude >> 23
        # |y| = significand · 2^(e - 23), a whole number below 2^24.
        significand = (magnitude & 0x7FFFFF) | (xp.astype(e_field > 0, xp.int32) << 23)
        e = xp.clip(e_field, min=1) - 127
        # In units of the target's last place |y| is significand / 2^shift; round it there.
        target_e = xp.clip(e, min=self.emin)
        shift = xp.clip(23 - self.mantissa_bits + target_e - e, max=100)
        ulps = xp.astype(significand, xp.float32) * from_bit_pattern((127 - shift) << 23)
        ulps = xp.astype(round_to_integer(ulps, noise), xp.int32)
        # A normal number's ulps include the hidden bit 2^m, hence the -1. A carry out of the
        # fraction raises the exponent by itself, from subnormal to normal and to infinity too.
        code = ((target_e + self.bias - 1) << self.mantissa_bits) + ulps
        code = xp.where((code > self.max_code) | (e_field == 255), beyond, code)
        is_nan = (e_field == 255) & ((magnitude & 0x7FFFFF) > 0)
        if self.nan is None:
            code, sign = xp.where(is_nan, 0, code), xp.where(is_nan, 1 - sign, sign)
        else:
            code = xp.where(is_nan, self.nan, code)
        return self._narrow(code | (sign << (self.bits - 1)), xp)

    def decode(self, codes: Array) -> Array:
        """float32 values of the bit patterns; exact, float32 has all of them."""
        if self.bits <= 8:
            return take(self._table, codes)
        xp = namespace(codes)
        codes = _widen(codes, xp)
        if self.exponent_bits == 8:  # the first bits of a float32
            return from_bit_pattern(codes << (32 - self.bits))
        sign, magnitude = codes >> (self.bits - 1), codes & ((1 << (self.bits - 1)) - 1)
        e, m = magnitude >> self.mantissa_bits, self.mantissa_bits
        fraction = magnitude & ((1 << m) - 1)
        normal = from_bit_pattern(((e + 127 - self.bias) << 23) | (fraction << (23 - m)))
        value = xp.where(e == 0, xp.astype(fraction, xp.float32) * self.smallest, normal)
        if self.infinity is not None:
            special = from_bit_pattern((fraction << (23 - m)) | 0x7F800000)
            value = xp.where(magnitude >= self.infinity, special, value)
        return xp.where(sign > 0, -value, value)

    @cached_property
    def _table(self) -> tuple[float, ...]:
        return tuple(self.value(c) for c in range(1 << self.bits))

    def _overflow_code(self, rule: str) -> int:
        code = {"saturate": self.max_code, "nan": self.nan, "inf": self.infinity}.get(rule)
        if rule not in OVERFLOWS:
            raise QlabError(f"unknown overflow rule '{rule}': choose one of {', '.join(OVERFLOWS)}")
        if code is None:
            raise QlabError(f"{self.name} has no {rule}: choose overflow='saturate'")
        return code

    def _narrow(self, code: Array, xp: Any) -> Array:
        """int32 patterns in the smallest unsigned type that holds ``bits``."""
        if self.bits <= 8:
            return xp.astype(code, xp.uint8)
        if self.bits <= 16:
            return xp.astype(code, xp.uint16)
        return xp.astype(xp.astype(code, xp.int64) & 0xFFFFFFFF, xp.uint32)


@dataclass(frozen=True)
class PowerOfTwoFormat(FloatFormat):
    """e8m0: eight bits of exponent, no sign, no fraction, no zero. What MX scales are stored in.

    Pattern c stands for 2^(c - 127), from 2^-127 to 2^127; 255 is NaN. ``encode`` rounds to nearest
    on the linear axis, so that 1.5 · 2^k is halfway, and halves go up (as ml_dtypes and torch do).
    Only between 2^-127 and 2^-126, float32's subnormals, everything goes up (as in both of them).
    What is below 2^-127 becomes 2^-127, zero too; what rounds to beyond 2^127 is NaN, or 2^127 with
    ``overflow="saturate"``; negative numbers are NaN. ml_dtypes makes NaN of zero, torch ignores
    the sign.

    How an MX *scale* is chosen is another question: the standard rounds it down
    (``qlab.core.affine.power_of_two``).
    """

    name: str = "e8m0"
    exponent_bits: int = 8
    mantissa_bits: int = 0
    bias: int = 127
    specials: str = "nan"
    overflow: str = "nan"
    signed = False

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 8

    @property
    def nan(self) -> int | None:
        return 255

    @property
    def max_code(self) -> int:
        return 254

    @property
    def smallest(self) -> float:
        return 2.0**-127

    def value(self, code: int) -> float:
        return math.nan if code == 255 else math.ldexp(1.0, code - 127)

    def levels(self) -> list[float]:
        return [self.value(c) for c in range(255)]

    @property
    def min(self) -> float:
        return self.value(0)

    @property
    def ideal_bits(self) -> float:
        return math.log2(255)

    def step(self, value: float) -> float:
        if not self.min <= value <= self.max:
            return math.inf
        e = min(math.frexp(value)[1] - 1, 126)
        return math.ldexp(1.0, e)

    def encode(self, y: Array, overflow: str | None = None, *, noise: Array | None = None) -> Array:
        """Exponents of the nearest powers of two, uint8. See the class for the rules."""
        xp = namespace(y)
        beyond = self._overflow_code(overflow or self.overflow)
        pattern = bit_pattern(y)
        magnitude = pattern & 0x7FFFFFFF
        code, fraction = magnitude >> 23, magnitude & 0x7FFFFF
        if noise is None:
            up = fraction >= 1 << 22
        else:
            up = noise * float(1 << 23) < xp.astype(fraction, xp.float32)
        # A float32 subnormal is below 2^-126: only its part above 2^-127 counts.
        if noise is None:
            up = xp.where(code == 0, fraction > 1 << 22, up)
        else:
            part = (xp.astype(fraction, xp.float32) - float(1 << 22)) / float(1 << 22)
            up = xp.where(code == 0, noise < part, up)
        code = code + xp.astype(up, xp.int32)
        code = xp.where(code > self.max_code, beyond, code)
        is_nan = (magnitude > 0x7F800000) | ((pattern < 0) & (magnitude > 0))
        return xp.astype(xp.where(is_nan, 255, code), xp.uint8)


def _widen(codes: Array, xp: Any) -> Array:
    """Patterns as int32, keeping their 32 bits."""
    return xp.astype(xp.astype(codes, xp.int64), xp.int32)


FP32 = FloatFormat("fp32", 8, 23, 127, "ieee")
TF32 = FloatFormat("tf32", 8, 10, 127, "ieee")
BF16 = FloatFormat("bf16", 8, 7, 127, "ieee")
FP16 = FloatFormat("fp16", 5, 10, 15, "ieee")
FP8_E4M3 = FloatFormat("fp8_e4m3", 4, 3, 7, "nan")
FP8_E5M2 = FloatFormat("fp8_e5m2", 5, 2, 15, "ieee")
FP6_E2M3 = FloatFormat("fp6_e2m3", 2, 3, 1)
FP6_E3M2 = FloatFormat("fp6_e3m2", 3, 2, 3)
FP4_E2M1 = FloatFormat("fp4_e2m1", 2, 1, 1)
E8M0 = PowerOfTwoFormat()
FLOATS = (FP32, TF32, BF16, FP16, FP8_E4M3, FP8_E5M2, FP6_E2M3, FP6_E3M2, FP4_E2M1, E8M0)
