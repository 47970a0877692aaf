"""Float arithmetic as llama.cpp's C does it, on whole arrays.

A file that must be equal to another program's to the last bit needs the same rounding at every
step. Here each operation is one float32 operation, in the order in which the C states it, and none
is fused with the next. Three habits of the C need a function of their own: how it rounds to an
integer, how it casts, and that it sums from the first element to the last.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
f32 = np.float32

# Adding 1.5 * 2^23 to a float32 leaves its integer part, rounded half to even, in the low bits.
_MAGIC = f32(12582912.0)
TINY_GROUP = f32(1e-15)  # a group whose largest magnitude is below counts as zero


def nearest_int(x: Array) -> Array:
    """The nearest integer, halves to even, by the trick of the C.

    Beyond ±2^22 the trick gives other integers, and for NaN 0; the C has no guard, so neither has
    this.

    Args:
        x: float32.

    Returns: int32 of the same shape.
    """
    shifted = np.asarray(x + _MAGIC, dtype=np.float32)
    return (shifted.view(np.int32) & 0x007FFFFF) - 0x00400000


def truncate(x: Array) -> Array:
    """Towards zero, as a cast in C; what an int32 cannot hold, and NaN, give -2^31 as on x86.

    Args:
        x: float32.

    Returns: int32 of the same shape.
    """
    x = np.asarray(x, dtype=np.float32)
    fits = np.abs(x) < f32(2147483648.0)
    return np.where(fits, np.where(fits, x, 0).astype(np.int32), np.int32(-(2**31)))


def round_away(x: Array) -> Array:
    """The nearest integer, halves away from zero (C's ``roundf``), as float32."""
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= f32(0.5), whole + np.copysign(f32(1), x), whole)


def in_order(terms: Array) -> Array:
    """Sum over the last axis from 0, first to last, each addition rounded to float32.

    ``np.sum`` adds pairwise: more exact, and other bits.
    """
    if terms.shape[-1] == 0:
        return np.zeros(terms.shape[:-1], np.float32)
    return np.cumsum(terms, axis=-1, dtype=np.float32)[..., -1] + f32(0)  # -0 becomes 0


def to_half(x: Array) -> Array:
    """The bits of float16, uint16; halves to even, too large becomes infinity."""
    return np.asarray(x, dtype=np.float32).astype(np.float16).view(np.uint16)


def from_half(bits: Array) -> Array:
    """float32 of the bits of float16."""
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


def through_half(x: Array) -> Array:
    """x as it is after it was stored as float16: float32."""
    return from_half(to_half(x))


def first_largest(x: Array) -> tuple[Array, Array]:
    """The largest magnitude along the last axis, and the value that has it first.

    NaN is never larger than anything.

    Returns: (magnitude, value), each float32 (...,).
    """
    size = np.abs(x)
    size = np.where(np.isnan(size), f32(-1), size)
    at = np.argmax(size, axis=-1)[..., None]
    largest = np.take_along_axis(size, at, -1)[..., 0]
    value = np.take_along_axis(x, at, -1)[..., 0]
    none = largest <= 0
    return np.where(none, f32(0), largest), np.where(none, f32(0), value)


def first_smallest(x: Array) -> Array:
    """The smallest value along the last axis; of 0 and -0 the one that comes first."""
    return np.take_along_axis(x, np.argmin(x, axis=-1)[..., None], -1)[..., 0]


def first_highest(x: Array) -> Array:
    """The largest value along the last axis; of 0 and -0 the one that comes first."""
    return np.take_along_axis(x, np.argmax(x, axis=-1)[..., None], -1)[..., 0]


def reciprocal(x: Array) -> Array:
    """1 / x, and 0 where x is 0."""
    return np.where(x == 0, f32(0), f32(1) / x)


def importance_weights(x: Array, importance: Array, energy: Array) -> Array:
    """What an error in x costs: importance · sqrt(energy + x²).

    ``importance`` is the mean square of the inputs that this column meets. The root makes large
    weights count more than their column alone would say, and ``energy``, a mean square of the
    weights around, keeps small ones from counting for nothing.
    """
    return importance * np.sqrt(energy + x * x)
