"""What IQ4_NL and IQ4_XS share: sixteen levels that lie closer together near 0."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import TINY_GROUP, Array, f32, first_largest, in_order

# The levels, part of the format.
LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
# Halfway between neighbours, where the nearest level changes. A tie goes up.
CUTS = (LEVELS[1:] + LEVELS[:-1]) / f32(2)


def nearest_level(x: Array) -> Array:
    """The index of the nearest of ``LEVELS``, int64; of two equally near ones the upper."""
    index = np.searchsorted(CUTS, x, side="right")
    return np.where(np.isnan(x), 15, index)


def level_search(x: Array, weights: Array) -> Array:
    """The scale of each group, x ≈ scale · LEVELS[code].

    Tried are the scale that puts the largest magnitude on the lowest level, and fifteen around it
    that put it on -134 .. -120. For given codes the best scale and what it takes off the error are
    those of ``symmetric_search``.

    In llama.cpp: ``quantize_row_iq4_nl_impl`` of ggml-quants.c (MIT licence).

    Args:
        x, weights: float32 (groups, 32).

    Returns: float32 (groups,), 0 for a group of zeros.
    """
    magnitude, peak = first_largest(x)

    def sums(inverse: Array) -> tuple[Array, Array]:
        q = LEVELS[nearest_level(inverse[:, None] * x)]
        wq = weights * q
        return in_order(wq * x), in_order(wq * q)

    d = -peak / LEVELS[0]
    qx, q2 = sums(f32(1) / d)
    d = np.where(q2 > 0, qx / q2, f32(0))
    best = d * qx
    for step in range(-7, 8):
        qx, q2 = sums((f32(step) + LEVELS[0]) / peak)
        better = (q2 > 0) & (qx * qx > best * q2)
        d = np.where(better, qx / q2, d)
        best = np.where(better, d * qx, best)
    return np.where(magnitude < TINY_GROUP, f32(0), d)


def level_weights(x: Array, importance: Array | None) -> Array:
    """What an error costs: x², or importance · sqrt(2 mean(x²) + x²) over each block of x."""
    square = x * x
    if importance is None:
        return square
    energy = in_order(square) * (f32(2) / f32(x.shape[-1]))
    return importance * np.sqrt(energy[..., None] + square)
