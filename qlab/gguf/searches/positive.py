"""The search for the scale of scales: x ≈ scale · l with x ≥ 0 and l from 0 to n.

First nine scales around max / n are tried. Then single codes are moved, one after the other, as
long as (Σ w x l)² / Σ w l² grows, which is what the best scale for the codes takes off the error.

In llama.cpp: ``make_qp_quants`` of ggml-quants.c (MIT licence).

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import TINY_GROUP, Array, f32, in_order, nearest_int


def positive_search(x: Array, n: int, weights: Array) -> tuple[Array, Array]:
    """Codes and the scale of each group.

    Args:
        x: float32 (groups, size), not negative.
        n: the largest code.
        weights: float32 (groups, size).

    Returns: codes int32 (groups, size) from 0 to n, and scale float32 (groups,).
    """
    w = weights
    largest = np.zeros(len(x), np.float32)
    for i in range(x.shape[1]):
        largest = np.where(largest > x[:, i], largest, x[:, i])
    zero = largest < TINY_GROUP

    def error(inverse: Array, codes: Array) -> Array:
        gap = x - (f32(1) / inverse)[:, None] * codes.astype(np.float32)
        return in_order(w * gap * gap)

    def codes_at(inverse: Array) -> Array:
        return nearest_int(inverse[:, None] * x)

    inverse = f32(n) / largest
    least = error(inverse, codes_at(inverse) & 0xFF)
    for step in range(-4, 5):
        if step == 0:
            continue
        tried = (f32(0.1) * f32(step) + f32(n)) / largest
        found = error(tried, np.minimum(n, codes_at(tried)))
        better = found < least
        least = np.where(better, found, least)
        inverse = np.where(better, tried, inverse)
    codes = np.minimum(n, codes_at(inverse))
    level = codes.astype(np.float32)
    xl, l2 = in_order(w * x * level), in_order(w * level * level)
    codes = codes & 0xFF  # the C keeps them in bytes
    for _ in range(5):
        for i in range(x.shape[1]):
            wi, xi, old = w[:, i], x[:, i], codes[:, i].astype(np.float32)
            xl_without = xl - wi * xi * old
            l2_without = l2 - wi * old * old
            code = np.minimum(n, nearest_int(xi * l2_without / xl_without))
            new = code.astype(np.float32)
            xl_with = xl_without + wi * xi * new
            l2_with = l2_without + wi * new * new
            better = (xl_without > 0) & (l2_without > 0) & (code != codes[:, i])
            better &= xl_with * xl_with * l2 > xl * xl * l2_with
            codes[:, i] = np.where(better, code & 0xFF, codes[:, i])
            xl = np.where(better, xl_with, xl)
            l2 = np.where(better, l2_with, l2)
    scale = np.where(l2 > 0, xl / l2, f32(0))
    return np.where(zero[:, None], 0, codes), np.where(zero, f32(0), scale)
