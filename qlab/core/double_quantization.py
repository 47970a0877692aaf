"""Double quantization: the scales of a tensor, quantized themselves (QLoRA, bitsandbytes).

A float32 scale for each 64 weights costs half a bit a weight. Their mean is taken off, and what is
left is quantized in blocks of 256 to one byte each, with a table of 256 values, the dynamic map:

    scale  ≈  table[code] · absmax[block] + offset

which costs 8/64 + 32/(64·256) = 0.127 bits a weight.

Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3, "Double Quantization"; the table:
Dettmers et al. 2022 (arXiv 2110.02861), section 2.1, after Dettmers 2015 (arXiv 1511.04561).

Chapter: Beyond the straight line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qlab.core._array import Array, namespace, take
from qlab.core.codebooks import CodebookFormat, float32_grid
from qlab.errors import QlabError

BLOCK = 256
# bitsandbytes' CPU kernel looks a value up on this many evenly spaced points from -1 to 1.
GRID = 1 << 16


@dataclass(frozen=True, eq=False)
class DoubleQuantized:
    """Scales as one byte each.

    Attributes:
        codes: uint8 (n,), entries of the dynamic map.
        absmax: float32 (ceil(n / 256),), the largest magnitude of each block once the offset is
            taken off.
        offset: float32 (), the mean of the scales.
        shape: of the scales.
    """

    codes: Array
    absmax: Array
    offset: Array
    shape: tuple[int, ...]

    def dequantize(self) -> Array:
        """The scales, float32, in their shape."""
        xp = namespace(self.codes)
        n = int(self.codes.shape[0])
        repeated = xp.repeat(self.absmax, BLOCK)[:n]
        return xp.reshape(take(DYNAMIC_MAP.values, self.codes) * repeated + self.offset, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, absmax and offset. (The table is the same for all.)"""
        return int(self.codes.shape[0]) + 4 * int(self.absmax.shape[0]) + 4


def double_quantize(scale: Array, exact: bool = False) -> DoubleQuantized:
    """Quantize scales to a byte each.

    Args:
        scale: float32 of any shape, finite; read in row-major order.
        exact: take the nearest entry of the table. Otherwise do as bitsandbytes' CPU kernel does:
            round the value to one of 65,536 points first, then take the entry nearest to that,
            which is another one for about one value in a thousand.

    The mean is taken in float32 by the library of ``scale``; NumPy and torch add in another order,
    so the last bit of ``offset`` may differ between them. With torch all bytes are those of
    bitsandbytes on the CPU.

    Raises: QlabError if there are no scales, or one is not finite.

    Chapter: Beyond the straight line.
    """
    xp = namespace(scale)
    shape = tuple(int(n) for n in scale.shape)
    flat = xp.reshape(xp.astype(scale, xp.float32), (-1,))
    n = math.prod(shape)
    if n == 0:
        raise QlabError("no scales to quantize: the tensor is empty")
    offset = xp.mean(flat)
    if not bool(xp.isfinite(offset)):
        raise QlabError("the scales hold NaN or infinity (or their sum overflows float32)")
    rest = flat - offset
    short = -n % BLOCK
    if short:
        rest = xp.concat([rest, xp.zeros((short,), dtype=xp.float32, device=rest.device)])
    blocks = xp.reshape(rest, (-1, BLOCK))
    absmax = xp.max(xp.abs(blocks), axis=1)
    nothing = absmax == 0
    y = blocks * xp.expand_dims(1.0 / xp.where(nothing, xp.ones_like(absmax), absmax), axis=1)
    y = xp.clip(y, -1.0, 1.0)
    codes = DYNAMIC_MAP.encode(y) if exact else _encode_on_grid(y)
    codes = xp.where(xp.expand_dims(nothing, axis=1), xp.zeros_like(codes), codes)
    return DoubleQuantized(xp.reshape(codes, (-1,))[:n], absmax, offset, shape)


def _encode_on_grid(y: Array) -> Array:
    xp = namespace(y)
    point = xp.astype((y + 1.0) * ((GRID - 1) / 2) + 0.5, xp.int32)
    points = xp.arange(GRID, dtype=xp.float32, device=y.device) / float(GRID - 1) * 2.0 - 1.0
    codes = DYNAMIC_MAP.encode(points)
    flat = xp.astype(xp.reshape(point, (-1,)), xp.int64)
    return xp.reshape(xp.take(codes, flat, axis=0), tuple(y.shape))


def dynamic_map() -> tuple[float, ...]:
    """The 256 values of the signed dynamic map, ascending, from -0.993 to 1.

    A sign, then a run of zero bits that is the decimal exponent, then a fraction in what bits are
    left: 2^i values between 10^(i-7) and 10^(i-6) for i = 0..6, each in the middle of its step; and
    0 and 1.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.array(float32_grid(0.1, 1.0, 2**i + 1), np.float32)
        middles = np.float32(10 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [float(v) for v in middles] + [-float(v) for v in middles]
    return tuple(sorted(values))


DYNAMIC_MAP = CodebookFormat("dynamic8", 8, dynamic_map())
