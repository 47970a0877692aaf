"""What the k-quants share: super-blocks of 256, sub-blocks with small integer scales."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import (
    Array,
    f32,
    importance_weights,
    in_order,
    nearest_int,
    through_half,
)
from qlab.gguf.searches import affine_search, positive_search

SUPER = 256


def sub_blocks(x: Array, size: int) -> Array:
    """(rows, blocks, 256) to (rows · blocks, 256 / size, size)."""
    return x.reshape(-1, SUPER // size, size)


def mean_square(x: Array) -> Array:
    """Of each super-block (..., 256): float32 (...,)."""
    return in_order(x * x) / f32(SUPER)


def for_each_row(importance: Array, rows: int, size: int) -> Array:
    """The imatrix row (blocks, 256) repeated, as sub-blocks (rows · blocks, 256 / size, size)."""
    return sub_blocks(np.broadcast_to(importance, (rows, *importance.shape)), size)


def requantize(x: Array, scale: Array, minimum: Array, codes: Array, low: int, high: int) -> Array:
    """Codes for the scales as they were stored; sub-blocks whose scale is 0 keep theirs.

    Args:
        x: float32 (..., size).
        scale, minimum: float32 (...,); x ≈ scale · code - minimum.
        codes: the codes that the search left.
        low, high: the range of codes.
    """
    fresh = np.clip(nearest_int((x + minimum[..., None]) / scale[..., None]), low, high)
    return np.where((scale == 0)[..., None], codes, fresh)


def affine_scales(
    x: Array,
    importance: Array | None,
    *,
    size: int,
    n: int,
    levels: int,
    plain: tuple[float, float, int],
    absolute: bool = False,
    energy_factor: int = 2,
) -> tuple[Array, Array, Array, Array, Array]:
    """Scales and minima of sub-blocks, and both as integers of a super-block's two scales.

    Args:
        x: float32 (rows, blocks, 256).
        importance: float32 (blocks, 256) or None.
        size: weights in a sub-block.
        n: the largest code of a weight.
        levels: the largest integer for a scale or minimum.
        plain: start, width and steps of the search without importance.
        absolute: weigh absolute errors without importance.
        energy_factor: times the mean square of the super-block, in the weights with importance.

    Returns: codes int32 (B, 256 / size, size), integer scales and minima uint8 (B, 256 / size), and
        d and dmin float32 (B,), not yet rounded to float16.
    """
    groups = sub_blocks(x, size)
    count, subs, _ = groups.shape
    if importance is None:
        if absolute:
            weights = np.abs(groups)
        else:
            rms = np.sqrt(in_order(groups * groups) / f32(size))
            weights = rms[..., None] + np.abs(groups)
        search = plain
    else:
        energy = f32(energy_factor) * in_order((x * x).reshape(-1, SUPER)) / f32(SUPER)
        rows = x.shape[0]
        columns = for_each_row(importance, rows, size)
        weights = importance_weights(groups, columns, energy[:, None, None])
        search, absolute = (-0.9, 0.05, 36), False
    codes, scales, minima = affine_search(
        groups.reshape(-1, size),
        n,
        weights.reshape(-1, size),
        *search,
        absolute,
        guarded=importance is not None,
    )
    codes = codes.reshape(groups.shape)
    scales, minima = scales.reshape(count, subs), minima.reshape(count, subs)
    if importance is not None:
        total = in_order(weights)
        int_scales, d = positive_search(scales, levels, total)
        int_minima, dmin = positive_search(minima, levels, total)
        return codes, int_scales.astype(np.uint8), int_minima.astype(np.uint8), d, dmin
    integers, steps = [], []
    for values in (scales, minima):
        largest = np.fmax.reduce(values, axis=-1)
        largest = np.where(largest > 0, largest, f32(0))
        inverse = np.where(largest > 0, f32(levels) / largest, f32(0))
        as_byte = nearest_int(inverse[:, None] * values).astype(np.uint8)
        integers.append(np.where((largest > 0)[:, None], as_byte, np.uint8(0)))
        steps.append(largest / f32(levels))
    return codes, integers[0], integers[1], steps[0], steps[1]


def pack_six_bits(scales: Array, minima: Array) -> Array:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3, in their low six bits. Bytes 8-11 hold the
    low four bits of scales 4-7 (low) and minima 4-7 (high); the upper two bits of these lie in the
    upper two bits of bytes 0-3 and 4-7.
    """
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    first = s[:, :4] | s[:, 4:] >> 4 << 6
    second = m[:, :4] | m[:, 4:] >> 4 << 6
    third = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=-1)


def unpack_six_bits(packed: Array) -> tuple[Array, Array]:
    """The other way round: scales and minima, uint8 (blocks, 8)."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return scales, minima


def pack_crumbs(codes: Array) -> Array:
    """256 two-bit codes in 64 bytes: byte m of each 32 has codes m, m + 32, m + 64, m + 96."""
    q = codes.reshape(-1, 2, 4, 32)
    packed = q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6
    return packed.reshape(-1, 64).astype(np.uint8)


def unpack_crumbs(packed: Array) -> Array:
    """The other way round: uint8 (blocks, 256)."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (packed.reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 256)


def pack_k_nibbles(codes: Array) -> Array:
    """256 four-bit codes in 128 bytes: byte m of each 32 has code m (low) and m + 32 (high)."""
    q = codes.reshape(-1, 4, 2, 32)
    return (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128).astype(np.uint8)


def unpack_k_nibbles(packed: Array) -> Array:
    """The other way round: uint8 (blocks, 256)."""
    q = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(-1, 256)


def pack_planes(bits: Array) -> Array:
    """One bit of 256 codes in 32 bytes: bit b of byte m belongs to code 32 b + m."""
    planes = bits.reshape(-1, 8, 32).astype(np.uint8)
    return np.packbits(planes, axis=1, bitorder="little")[:, 0]


def unpack_planes(packed: Array) -> Array:
    """The other way round: 0 or 1, uint8 (blocks, 256)."""
    return np.unpackbits(packed.reshape(-1, 1, 32), axis=1, bitorder="little").reshape(-1, 256)


def stored(d: Array, integers: Array) -> Array:
    """What a reader gets back for the sub-blocks' scales: float16(d) · integers, float32."""
    return through_half(d)[:, None] * integers.astype(np.float32)
