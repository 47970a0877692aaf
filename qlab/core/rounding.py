"""Rounding: which of its two neighbours a number between two integers becomes.

    round_half_even     the nearer one; halfway, the even one
    round_stochastic    up with probability y - floor(y), so that the mean of many is y

Half to even is the default of IEEE 754: rounding halves always up would shift the mean of data
that falls on halves. Stochastic rounding is the one that keeps the mean of *every* number, at the
price of a larger error: Gupta et al. 2015 (arXiv 1502.02551), section 3.

Rounding that is learned (AdaRound and its heirs) will be another function here: of the number, and
of a parameter for each.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.core._array import Array, namespace
from qlab.errors import QlabError

ROUNDINGS = ("nearest", "stochastic")


def round_half_even(y: Array) -> Array:
    """The nearest integer, as a float; halfway between two, the even one."""
    return namespace(y).round(y)


def round_stochastic(y: Array, noise: Array) -> Array:
    """floor(y), plus 1 where ``noise`` (uniform in [0, 1), the shape of y) is below y - floor(y).

    The expected value is y: floor(y) · (1 - p) + (floor(y) + 1) · p with p = y - floor(y).
    """
    xp = namespace(y, noise)
    down = xp.floor(y)
    return down + xp.astype(noise < y - down, y.dtype)


def round_to_integer(y: Array, noise: Array | None = None) -> Array:
    """Half to even, or stochastic where noise is given."""
    return round_half_even(y) if noise is None else round_stochastic(y, noise)


def generator(rounding: str, seed: int | None) -> np.random.Generator | None:
    """The source of noise for a rounding: None for ``nearest``, else NumPy's PCG64 with that seed.

    NumPy draws it for torch tensors too, so both libraries give the same codes for a seed.

    Raises: QlabError for another rounding.
    """
    if rounding not in ROUNDINGS:
        raise QlabError(f"unknown rounding '{rounding}': choose one of {', '.join(ROUNDINGS)}")
    return None if rounding == "nearest" else np.random.default_rng(seed)


def draw(source: np.random.Generator | None, like: Array) -> Array | None:
    """Uniform float32 noise in [0, 1) of the shape and on the device of ``like``, or None."""
    if source is None:
        return None
    xp: Any = namespace(like)
    noise = source.random(tuple(like.shape), dtype=np.float32)
    return xp.asarray(noise, device=like.device)
