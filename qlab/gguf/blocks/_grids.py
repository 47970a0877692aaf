"""What the grid types share: a code is the number of a point in a table of 4 or 8 magnitudes.

The tables are constants of the format, kept by the package ``gguf``; here they are only read. What
a quantizer needs beside them, the neighbours of the combinations that are not in the table, is
computed from them.

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from qlab.errors import MissingExtraError
from qlab.gguf.arithmetic import Array, f32, in_order, nearest_int


@cache
def grid(name: str) -> Array:
    """The points of a type: float32 (points, 4 or 8). Raises: MissingExtraError without gguf."""
    try:
        from gguf import quants
    except ImportError:
        raise MissingExtraError("gguf", "gguf", f"the table of {name}") from None
    owner = getattr(quants, "IQ1_S" if name == "IQ1_M" else name)
    owner.init_grid()
    points: Array = owner.grid[0, 0].astype(np.float32)
    points.setflags(write=False)
    return points


# How many rings of neighbours a quantizer looks at, where rounding gives no point of the table: the
# points at the smallest distance, at the second smallest, and so on.
RINGS = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1_S": 3, "IQ3_XXS": 2, "IQ3_S": 3}


@dataclass(frozen=True)
class Grid:
    """The table of a type as its quantizer sees it: levels 0, 1, 2 ... instead of magnitudes.

    A *combination* is any choice of levels, a point of the table or not. Its number is
    Σ level[i] · levels^i.

    Attributes:
        levels: how many there are, 3 or 8.
        points: uint8 (points, size), the levels of each point.
        place: int32 (combinations,), which point has these levels, -1 if none.
        near: uint16, one list of points after the other: for each combination that is no point the
            nearest ones, by distance and then by number.
        first: int32 (combinations + 1,), where each list begins; empty for the points themselves.
    """

    levels: int
    points: Array
    place: Array
    near: Array
    first: Array

    @property
    def size(self) -> int:
        """Weights of a point."""
        return int(self.points.shape[1])

    def number(self, levels: Array) -> Array:
        """The number of a combination: int (..., size) to int64 (...,)."""
        return (levels * self.levels ** np.arange(self.size)).sum(axis=-1)


@cache
def quantizer_grid(name: str) -> Grid:
    """The table of a type with its neighbours."""
    points = grid(name)
    values = np.unique(points)
    table = np.searchsorted(values, points)
    levels, size = len(values), points.shape[1]
    every = np.arange(levels**size)
    combinations = every[:, None] // levels ** np.arange(size) % levels
    # Distances in steps of one level: small integers, exact in float32.
    distance = (combinations**2).sum(1)[:, None] + (table**2).sum(1)
    distance = distance.astype(np.float32)
    distance -= f32(2) * combinations.astype(np.float32) @ table.T.astype(np.float32)
    ring = distance.min(axis=1)
    place = np.where(ring == 0, distance.argmin(axis=1), -1).astype(np.int32)
    for _ in range(RINGS["IQ1_S" if name == "IQ1_M" else name] - 1):
        ring = np.where(distance > ring[:, None], distance, np.inf).min(axis=1)
    whose, point = np.nonzero((distance <= ring[:, None]) & (place < 0)[:, None])
    order = np.lexsort((point, distance[whose, point], whose))
    first = np.searchsorted(whose, np.arange(len(every) + 1)).astype(np.int32)
    found = Grid(levels, table.astype(np.uint8), place, point[order].astype(np.uint16), first)
    for array in (found.points, found.place, found.near, found.first):
        array.setflags(write=False)
    return found


def _even_signs() -> Array:
    """Eight signs in seven bits: the eighth makes the number of minus signs even. uint8 (128,)."""
    seven = np.arange(128, dtype=np.uint8)
    parity = np.unpackbits(seven[:, None], axis=1).sum(axis=1) & 1
    return seven | (parity << 7).astype(np.uint8)


EVEN_SIGNS = _even_signs()


def signs(bits: Array) -> Array:
    """-1 where a bit is 1, else 1, the lowest bit first: uint8 (...) to float32 (..., 8)."""
    minus = np.unpackbits(np.ascontiguousarray(bits)[..., None], axis=-1, bitorder="little")
    return np.where(minus == 1, f32(-1), f32(1))


def split_signs(x: Array, weights: Array, even: bool) -> tuple[Array, Array]:
    """Magnitudes and sign bits.

    ``even``: only seven of eight signs are stored, and the number of minus signs must be even.
    Where it is odd, the sign is flipped that costs least, w x²; its magnitude is then negative, and
    the search sees that a small value is best there.

    Args:
        x, weights: float32 (..., n), n a multiple of 8.

    Returns: float32 (..., n), and uint8 (..., n / 8), with seven bits each if ``even``.
    """
    minus = (x < 0).reshape(*x.shape[:-1], -1, 8)
    if even:
        cost = (weights * x * x).reshape(minus.shape)
        unknown = np.isnan(cost[..., 0])  # nothing is smaller than NaN, so the first stays
        cheapest = np.where(unknown, 0, np.where(np.isnan(cost), np.inf, cost).argmin(axis=-1))
        odd = minus.sum(axis=-1) % 2 == 1
        minus = minus ^ (odd[..., None] & (cheapest[..., None] == np.arange(8)))
    bits = np.packbits(minus, axis=-1, bitorder="little")[..., 0]
    return np.where(minus.reshape(x.shape), -x, x), bits & 127 if even else bits


def sub_scales(scales: Array, levels: int) -> tuple[Array, Array]:
    """Scales of the groups of a block as d · (2 s + 1), with s from 0 to ``levels`` - 1.

    Args:
        scales: float32 (blocks, groups), not negative.

    Returns: d float32 (blocks,), and s int32 (blocks, groups). Both are 0 for a block of zeros.
    """
    largest = scales.max(axis=-1)
    d = largest / f32(2 * levels - 1)
    inverse = f32(1) / d
    s = np.clip(nearest_int(f32(0.5) * (inverse[:, None] * scales - f32(1))), 0, levels - 1)
    return d, np.where(largest[:, None] == 0, 0, s)


def energy(x: Array, times: int) -> Array:
    """``times`` the mean square of each block: float32 (..., 256) to (...,)."""
    return f32(times) * in_order(x * x) / f32(x.shape[-1])


def pack_sevens(sign: Array, s: Array) -> Array:
    """Seven bits of each of four bytes, and then four bits s, as one word.

    Args:
        sign: uint8 (blocks, 8, 4), below 128.
        s: int (blocks, 8), below 16.

    Returns: uint8 (blocks, 8, 4), the bytes of the words, the lowest first.
    """
    shifts = np.array([0, 7, 14, 21], np.uint32)
    word = (sign.astype(np.uint32) << shifts).sum(axis=-1, dtype=np.uint32)
    word |= s.astype(np.uint32) << np.uint32(28)
    return word.astype("<u4")[..., None].view(np.uint8)


def words(data: Array, dtype: str) -> Array:
    """Bytes (blocks, n) as little-endian words (blocks, n / size)."""
    return np.ascontiguousarray(data).view(dtype)


def nibbles(data: Array) -> Array:
    """Four-bit numbers, the low one of each byte first: (blocks, n) to (blocks, 2n) float32."""
    both = np.stack([data & 15, data >> 4], axis=-1)
    return both.reshape(len(data), -1).astype(np.float32)


def pack_pairs(codes: Array) -> Array:
    """The other way round: int (blocks, 2n) to uint8 (blocks, n)."""
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
