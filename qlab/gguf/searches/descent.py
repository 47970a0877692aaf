"""Coordinate descent for Q3_K: from the codes that rounding gives, move one code at a time.

The weights are x²: a weight that is large costs more when it is wrong. A code is moved when
(Σ w x l)² / Σ w l² grows, at most five times through the group.

In llama.cpp: ``make_q3_quants`` of ggml-quants.c (MIT licence).

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import TINY_GROUP, Array, f32, first_largest, in_order, nearest_int


def descent_search(x: Array, n: int) -> tuple[Array, Array]:
    """Codes and the scale of each group, x ≈ scale · (code - n).

    Args:
        x: float32 (groups, size).
        n: half the number of codes.

    Returns: codes int32 (groups, size) from 0 to 2n - 1, and scale float32 (groups,).
    """
    magnitude, peak = first_largest(x)
    zero = magnitude < TINY_GROUP
    codes = np.clip(nearest_int((f32(-n) / peak)[:, None] * x), -n, n - 1)
    w = x * x
    level = codes.astype(np.float32)
    xl, l2 = in_order(w * x * level), in_order(w * level * level)
    for _ in range(5):
        for i in range(x.shape[1]):
            wi, xi, old = w[:, i], x[:, i], codes[:, i].astype(np.float32)
            xl_without = xl - wi * xi * old
            l2_without = l2 - wi * old * old
            code = np.clip(nearest_int(xi * l2_without / xl_without), -n, n - 1)
            new = code.astype(np.float32)
            xl_with = xl_without + wi * xi * new
            l2_with = l2_without + wi * new * new
            better = (xl_without > 0) & (code != codes[:, i]) & (l2_with > 0)
            better &= xl_with * xl_with * l2 > xl * xl * l2_with
            codes[:, i] = np.where(better, code, codes[:, i])
            xl = np.where(better, xl_with, xl)
            l2 = np.where(better, l2_with, l2)
    scale = np.where(l2 > 0, xl / l2, f32(0))
    return np.where(zero[:, None], 0, codes + n), np.where(zero, f32(0), scale)
