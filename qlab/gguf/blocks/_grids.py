"""What the grid types share: a code is the number of a point in a table of 4 or 8 magnitudes.

The tables are constants of the format, kept by the package ``gguf``; here they are only read.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from qlab.errors import MissingExtraError
from qlab.gguf.arithmetic import Array, f32


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


def words(data: Array, dtype: str) -> Array:
    """Bytes (blocks, n) as little-endian words (blocks, n / size)."""
    return np.ascontiguousarray(data).view(dtype)


def nibbles(data: Array) -> Array:
    """Four-bit numbers, the low one of each byte first: (blocks, n) to (blocks, 2n) float32."""
    both = np.stack([data & 15, data >> 4], axis=-1)
    return both.reshape(len(data), -1).astype(np.float32)
