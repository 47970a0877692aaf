"""search_clip: the scale with the least squared error, exactly, for each block of a tensor.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.calibrate.schemes import levels_in_use, range_params, read_scheme
from qlab.core import Granularity
from qlab.core import granularity as gran
from qlab.core._array import Array, namespace, to_float32, to_numpy
from qlab.core.affine import TINY
from qlab.core.qtensor import block_range
from qlab.errors import QlabError


def search_clip(w: Array, fmt: str | Any, granularity: str | Granularity | None = None) -> Array:
    """The symmetric scale of least squared error of each block: no other scale does better.

    The error as a function of the scale is a chain of parabolas. All of them are visited, so the
    result is the global minimum, up to rounding in float64 and of the result to float32. Of scales
    that are equally good (a row of one value) it is the smallest.

    Args:
        w: NumPy or torch, any real floating dtype, whole blocks.
        fmt: a format (``"int4"``, ``"nf4"``, ...), or a scheme (``"int4-g128"``).
        granularity: ``"tensor"``, ``"channel"``, ``"g128"``, ...; None takes the scheme's, or
            ``channel``.

    Returns: float32 in the library of ``w``, shape = blocks along each axis, positive: what
        ``qlab.core.from_params`` takes. A block of zeros gets 1.

    Raises: QlabError for blocks that do not divide the shape, NaN, infinity, or an asymmetric
        scheme.
    Source: the objective is that of Choukroun et al. 2019 (arXiv 1902.06822, section 3), who
        search a grid.
    Chapter: The mathematics of quantization.
    """
    scheme, named = read_scheme(fmt)
    if not scheme.symmetric and scheme.format.affine:
        raise QlabError("search_clip finds symmetric scales: use search_range for zero points")
    x = to_float32(w, "w")
    block = _block(x, granularity or named)
    scale = best_scales(_rows(x, block), levels_in_use(scheme))
    return _shaped(scale, x, block)


def search_range(
    w: Array, fmt: str | Any, granularity: str | Granularity | None = None
) -> tuple[Array, Array]:
    """The scale and the zero point of least squared error of each block, integer formats only.

    For each zero point the scale is exact, as in ``search_clip``. Up to 5 bits all zero points are
    tried, so the pair is the global minimum; beyond, those up to 2 codes from the min-max one.

    Arguments and errors as in ``search_clip``. Returns: scale float32 and zero_point int32.
    Chapter: The mathematics of quantization.
    """
    from qlab.kernels.cpu.clip import search_affine

    scheme, named = read_scheme(fmt, symmetric=False)
    fmt = scheme.format
    x = to_float32(w, "w")
    block = _block(x, granularity or named)
    low, high = block_range(x, block)
    _, first = range_params(low, high, scheme)
    rows = np.sort(_rows(x, block), axis=1)
    window = 1 << fmt.bits if fmt.bits <= 5 else 2
    start = to_numpy(first).reshape(-1).astype(np.int64)
    scale, zero = search_affine(rows, fmt.qmin, fmt.qmax, start, window)
    xp = namespace(x)
    zero = xp.reshape(xp.asarray(zero.astype(np.int32), device=x.device), tuple(first.shape))
    return _shaped(scale, x, block), zero


def best_scales(rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The scale of least squared error of each row, 0 where every scale is as good.

    Args:
        rows: float32 (rows, n), finite.
        levels: float64, ascending: the values of the format at scale 1.

    Returns: float64 (rows,).
    """
    from qlab.kernels.cpu.clip import search_scales

    if rows.shape[1] == 0:
        return np.zeros(len(rows))
    t = (levels[1:] + levels[:-1]) / 2
    mirrored = np.array_equal(levels, -levels[::-1])
    sides = [(t, levels, t > 0)]
    if not mirrored:
        sides.append((-t[::-1], -levels[::-1], -t[::-1] > 0))
    # For each side: thresholds, and what passing them adds to the level and to its square.
    streams = []
    base, top = np.zeros(2), np.zeros(2)
    for side, (thresholds, values, keep) in enumerate(sides):
        streams.append(
            (
                thresholds[keep],
                np.diff(values)[keep],
                np.diff(values**2)[keep],
                np.full(keep.sum(), side),
            )
        )
        # A threshold at 0 itself belongs to neither side: positive values are above it.
        base[side] = values[np.sum(thresholds <= 0)]
        top[side] = values[-1]
    t, dl, dq, side = (np.concatenate(part) for part in zip(*streams, strict=True))
    # NumPy's sort is the quickest there is, and the kernel needs magnitudes in order.
    ordered = np.sort(np.abs(rows) if mirrored else rows, axis=1)
    return np.asarray(search_scales(ordered, t, dl, dq, side.astype(np.int64), base, top))


def _block(x: Array, granularity: str | Granularity | None) -> tuple[int, ...]:
    if isinstance(granularity, str):
        parsed = Granularity.parse(granularity)
        if parsed is None:
            raise QlabError(
                f"unknown granularity '{granularity}': tensor, channel, token, g128 or b16x32"
            )
        granularity = parsed
    granularity = granularity or Granularity("channel")
    granularity.check_divides(tuple(x.shape))
    return granularity.block_shape(tuple(x.shape))


def _rows(x: Array, block: tuple[int, ...]) -> np.ndarray:
    """float32 (blocks, elements of a block), on the CPU."""
    blocks, inside = gran.to_blocks(to_numpy(x), block)
    outside = tuple(range(0, blocks.ndim, 2))
    count = int(np.prod(blocks.shape[::2]))
    size = int(np.prod(blocks.shape[1::2]))
    return np.ascontiguousarray(blocks.transpose(outside + inside).reshape(count, size))


def _shaped(scale: np.ndarray, x: Array, block: tuple[int, ...]) -> Array:
    """float32 scales in the library of x; 1 where no scale is better than another."""
    xp = namespace(x)
    clean = np.where(scale > 0, np.maximum(scale, TINY), 1.0).astype(np.float32)
    shape = tuple(s // b if b else 0 for s, b in zip(x.shape, block, strict=True))
    return xp.reshape(xp.asarray(clean, device=x.device), shape)
