"""What every format can say of itself. The families are in integers, floats and codebooks."""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from functools import cached_property

from qlab.core._array import Array, namespace


class Format(ABC):
    """What a code can stand for.

    A format maps real numbers that were already divided by their scale to codes, and back.

    Attributes:
        name: the word a scheme begins with.
        bits: bits stored for each code.
        signed: whether it has negative levels.
        affine: whether a zero point may be added to its codes (the integers).
        symmetric_only: whether an asymmetric scheme of it makes no sense.
    """

    name: str
    bits: int
    signed: bool = True
    affine: bool = False

    @abstractmethod
    def levels(self) -> list[float]:
        """Every finite value that a code stands for at scale 1, ascending, each once."""

    @abstractmethod
    def encode(self, y: Array, *, noise: Array | None = None) -> Array:
        """Codes of ``y`` (float32, at scale 1): the nearest level, or a random neighbour.

        Args:
            y: float32 of any shape.
            noise: uniform random numbers in [0, 1) of y's shape. With them the rounding is
                stochastic: up or down at random, so that the mean is y (``qlab.core.rounding``).
        """

    @abstractmethod
    def decode(self, codes: Array) -> Array:
        """float32 values that the codes stand for at scale 1."""

    def to_stored(self, codes: Array) -> Array:
        """The codes as they are packed: unsigned, below ``2 ** bits``."""
        return codes

    def from_stored(self, stored: Array) -> Array:
        """The inverse of ``to_stored``."""
        return stored

    @cached_property
    def _levels(self) -> list[float]:
        return self.levels()

    @property
    def min(self) -> float:
        """The smallest level."""
        return self._levels[0]

    @property
    def max(self) -> float:
        """The largest level."""
        return self._levels[-1]

    @property
    def ideal_bits(self) -> float:
        """log2 of the number of levels: the fewest bits that could hold a code, log2 3 = 1.585 for
        ternary, which takes 2 as stored."""
        return math.log2(len(self._levels))

    def step(self, value: float) -> float:
        """The gap between the two levels around ``value``, at scale 1.

        At a level it is the distance to the next one away from zero; at the first and the last
        level, which have none, the gap that ends there; beyond them it is infinite.
        """
        levels = self._levels
        if not levels[0] <= value <= levels[-1]:
            return math.inf
        if value >= 0:
            above = bisect.bisect_right(levels, value)
        else:
            above = bisect.bisect_left(levels, value)
        above = min(max(above, 1), len(levels) - 1)
        return levels[above] - levels[above - 1]

    def __str__(self) -> str:
        return self.name


def clip_to_levels(y: Array, fmt: Format) -> Array:
    """``y`` clipped to the range of the format."""
    xp = namespace(y)
    return xp.clip(y, fmt.min, fmt.max)
