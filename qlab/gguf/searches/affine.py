"""The search for a scale and a minimum, x ≈ scale · l + min with l from 0 to n.

For given codes the best pair solves two linear equations in weighted sums of l, l², x and x l. The
codes to try are those that rounding gives for a row of scales around (max - min) / n; a scale that
is a little too small for the range clips its ends and is often the better one. ``min`` is never
above 0, so that a code exists that is near 0.

In llama.cpp: ``make_qkx2_quants`` and ``make_qkx3_quants`` of ggml-quants.c (MIT licence).

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, first_smallest, in_order, nearest_int


def affine_search(
    x: Array,
    n: int,
    weights: Array,
    start: float,
    width: float,
    steps: int,
    absolute: bool = False,
    guarded: bool = False,
) -> tuple[Array, Array, Array]:
    """Codes, scale and the negated minimum of each group.

    Args:
        x: float32 (groups, size).
        n: the largest code.
        weights: float32 (groups, size), what an error in each element costs.
        start, width, steps: the scales tried are (max - min) / (n + start + width · i) for i from 0
            to ``steps``.
        absolute: weigh absolute errors and not their squares.
        guarded: limit x / scale to the range of codes before it is rounded, and not after. It
            matters beyond ±2^22 only, where ``nearest_int`` fails.

    Returns: codes int32 (groups, size), scale float32 (groups,) and -min float32 (groups,).
    """
    w = weights
    size = x.shape[-1]
    low, high = first_smallest(x), np.max(x, axis=-1)
    sum_w, sum_x = w[:, 0], w[:, 0] * x[:, 0]
    for i in range(1, size):
        sum_w = sum_w + w[:, i]
        sum_x = sum_x + w[:, i] * x[:, i]
    low = np.where(low > 0, f32(0), low)
    flat = high == low

    def codes_at(inverse: Array, low: Array, guarded: bool = guarded) -> Array:
        ideal = inverse[:, None] * (x - low[:, None])
        if guarded:
            ideal = np.where(ideal > 0, np.minimum(ideal, f32(n)), f32(0))
        return np.clip(nearest_int(ideal), 0, n)

    def error(codes: Array, scale: Array, low: Array) -> Array:
        gap = scale[:, None] * codes.astype(np.float32) + low[:, None] - x
        return in_order(w * (np.abs(gap) if absolute else gap * gap))

    inverse = f32(n) / (high - low)
    scale, smallest = f32(1) / inverse, low
    codes = codes_at(inverse, low, False)
    least = error(codes, scale, low)
    for i in range(steps + 1):
        # The range is measured from the best minimum so far, as the C does.
        inverse = (f32(start) + f32(width) * f32(i) + f32(n)) / (high - smallest)
        tried = codes_at(inverse, smallest)
        level = tried.astype(np.float32)
        wl = w * level
        sum_l, sum_l2, sum_xl = in_order(wl), in_order(wl * level), in_order(wl * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        this_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        above = this_low > 0
        this_low = np.where(above, f32(0), this_low)
        this_scale = np.where(above, sum_xl / sum_l2, this_scale)
        found = error(tried, this_scale, this_low)
        better = (det > 0) & (found < least)
        codes = np.where(better[:, None], tried, codes)
        least = np.where(better, found, least)
        scale = np.where(better, this_scale, scale)
        smallest = np.where(better, this_low, smallest)
    codes = np.where(flat[:, None], 0, codes)
    return codes, np.where(flat, f32(0), scale), -np.where(flat, low, smallest)
