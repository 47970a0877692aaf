"""Codebook formats: a code is the number of an entry in a fixed table of values.

    nf4         quantiles of the normal distribution (QLoRA)
    fp4_bnb     the 4-bit float of bitsandbytes, which is not fp4_e2m1
    log2..log8  a sign and a power of two (or of a root of two)

All reach from -1 to 1, so the scale of a block is its largest magnitude. A table that is fitted to
the data (k-means) belongs to the tensor, not to a format: ``qlab.core.vectors``.

Chapter: Beyond the straight line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from qlab.core._array import Array, constant, namespace, take
from qlab.core._format import Format
from qlab.errors import QlabError


@dataclass(frozen=True)
class CodebookFormat(Format):
    """A table of ``2 ** bits`` values; code c stands for ``values[c]``.

    ``encode`` takes the nearest value. Halfway between two (in float32) it takes the lower one, as
    bitsandbytes does. A value that stands in the table twice, such as 0 and -0, keeps both codes.

    Attributes:
        name: such as ``nf4``.
        bits: 1 to 8.
        values: float32 values as Python floats, by code.
    """

    name: str
    bits: int
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != 1 << self.bits:
            raise QlabError(
                f"codebook '{self.name}' has {len(self.values)} values: {self.bits} bits need "
                f"{1 << self.bits}"
            )

    def levels(self) -> list[float]:
        return sorted({v + 0.0 for v in self.values})

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """Codes in the order of their values; of equal values the smaller code first."""
        return tuple(sorted(range(len(self.values)), key=lambda c: self.values[c]))

    @cached_property
    def _sorted(self) -> tuple[float, ...]:
        return tuple(self.values[c] for c in self._order)

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        """Midpoints between neighbours, in float32."""
        v = np.asarray(self._sorted, np.float32)
        return tuple(float(b) for b in (v[:-1] + v[1:]) / np.float32(2))

    def encode(self, y: Array, *, noise: Array | None = None) -> Array:
        """Codes, uint8, of the nearest values; stochastic where ``noise`` is given."""
        xp = namespace(y)
        if noise is None:
            place = xp.searchsorted(constant(self._bounds, y), y)
        else:
            v = constant(self._sorted, y)
            y = xp.clip(y, self._sorted[0], self._sorted[-1])
            place = xp.clip(xp.searchsorted(v, y), min=1)  # v[place - 1] < y <= v[place]
            low, high = take(self._sorted, place - 1), take(self._sorted, place)
            place = xp.where(noise * (high - low) < y - low, place, place - 1)
        if self._order == tuple(range(len(self.values))):
            return xp.astype(place, xp.uint8)
        return xp.astype(take(self._order, place), xp.uint8)

    def decode(self, codes: Array) -> Array:
        """values[code], float32."""
        return take(self.values, codes)


def float32_grid(start: float, stop: float, count: int) -> list[np.float32]:
    """``count`` evenly spaced numbers between two float32, the step one too, each rounded once.

    Counts from both ends to the middle, as torch.linspace does. The published tables of NF4 and of
    the dynamic map were made from such grids; a float64 grid moves their last bits.
    """
    first, last = np.float32(start), np.float32(stop)
    step = float((last - first) / np.float32(count - 1))
    # In float64 the product is exact: rounded once, at the end.
    up, down = float(first), float(last)
    return [
        np.float32(up + step * i if i < count // 2 else down - step * (count - 1 - i))
        for i in range(count)
    ]


def normal_float() -> tuple[float, ...]:
    """The 16 values of NF4, by construction.

    Seven negative and eight positive quantiles of the standard normal distribution, and zero: at
    evenly spaced probabilities from 1/2 to 1 - (1/32 + 1/30) / 2 = 0.9677083, divided by the
    largest. Each of the bins between them holds about as many normal weights.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3, equation 4, and appendix E.
    """
    largest = 0.9677083
    quantile = NormalDist().inv_cdf
    negative = [-quantile(float(p)) for p in float32_grid(largest, 0.5, 7 + 1)[:-1]]
    positive = [quantile(float(p)) for p in float32_grid(largest, 0.5, 8 + 1)[:-1]]
    return _normalized([*negative, 0.0, *reversed(positive)])


def bitsandbytes_fp4() -> tuple[float, ...]:
    """The 16 values of bitsandbytes' FP4: sign, two exponent bits, one fraction bit, divided by 12.

    Its exponent field runs the other way and its subnormal is 0.0625, so the values are 0, 0.0625,
    2, 3, 4, 6, 8, 12 (over 12) where fp4_e2m1 has 0, 0.5, 1, 1.5, 2, 3, 4, 6 (over 6).

    Source: bitsandbytes, ``functional.get_4bit_type``.
    """
    half = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
    return _normalized(half + [0.0] + [-v for v in half[1:]])


def logarithmic(bits: int) -> CodebookFormat:
    """``log<bits>``: zero, and a sign with a power of the base, from 1 down.

    Code 0 is zero; code k stands for base^-(k-1), and code 2^(bits-1) + k for its negative. One
    code repeats zero. The base is 2 up to four bits; each bit more takes its square root, which
    halves the steps and keeps the range, about 2^-7.5 to 1:

        log4    1, 1/2, 1/4 ... 1/64        log5    1, 0.707, 0.5 ... 1/128

    Nearest is meant on the linear axis. Miyashita et al. round the logarithm instead, which puts
    the border between two neighbours at their geometric mean: never a smaller error.

    Source: Miyashita et al. 2016 (arXiv 1603.01025), section 3 (base 2) and 5 (base √2).
    """
    if not 2 <= bits <= 8:
        raise QlabError(f"log{bits} is not a format: logarithmic formats have 2 to 8 bits")
    half = 1 << (bits - 1)
    per_octave = 1 << max(bits - 4, 0)
    magnitudes = [float(np.float32(2.0 ** (-k / per_octave))) for k in range(half - 1)]
    values = [0.0, *magnitudes, 0.0, *(-v for v in magnitudes)]
    return CodebookFormat(f"log{bits}", bits, tuple(values))


def _normalized(values: list[float]) -> tuple[float, ...]:
    v = np.asarray(values, np.float32)
    return tuple(float(x) for x in v / np.abs(v).max())


NF4 = CodebookFormat("nf4", 4, normal_float())
FP4_BNB = CodebookFormat("fp4_bnb", 4, bitsandbytes_fp4())
LOGARITHMIC = tuple(logarithmic(bits) for bits in range(2, 9))
CODEBOOKS = (NF4, FP4_BNB, *LOGARITHMIC)
