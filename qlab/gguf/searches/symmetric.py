"""The search for one scale, x ≈ scale · l with l from -n to n - 1.

For given codes l the best scale is known: minimize Σ w (x - scale l)², and the derivative is zero
at scale = Σ w x l / Σ w l². What is left of the error then is Σ w x² - (Σ w x l)² / Σ w l², so the
better codes are those with the larger second term. Which codes to try? Those that rounding gives
for 19 scales around the one that puts the largest magnitude on the lowest code.

In llama.cpp: ``make_qx_quants`` of ggml-quants.c (MIT licence).

Chapter: k-quants and the importance matrix.
"""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import TINY_GROUP, Array, f32, first_largest, in_order, nearest_int


def symmetric_search(x: Array, n: int, weights: Array | None = None) -> tuple[Array, Array]:
    """Codes and the scale of each group.

    Args:
        x: float32 (groups, size).
        n: half the number of codes.
        weights: float32 (groups, size), what an error in each element costs; default x².

    Returns: codes int32 (groups, size), from 0 to 2n - 1 with n standing for 0, and scale float32
        (groups,). Both are 0 for a group of zeros.
    """
    w = x * x if weights is None else weights
    wx = w * x
    magnitude, peak = first_largest(x)
    zero = magnitude < TINY_GROUP

    def sums(inverse: Array) -> tuple[Array, Array, Array]:
        codes = np.clip(nearest_int(inverse[:, None] * x), -n, n - 1)
        level = codes.astype(np.float32)
        return codes, in_order(wx * level), in_order(w * level * level)

    codes, xl, l2 = sums(f32(-n) / peak)
    scale = np.where(l2 == 0, f32(0), xl / l2)
    best = scale * xl
    for step in range(-9, 10):
        if step == 0:
            continue
        tried, xl, l2 = sums(-(f32(n) + f32(0.1) * f32(step)) / peak)
        better = (l2 > 0) & (xl * xl > best * l2)
        codes = np.where(better[:, None], tried, codes)
        scale = np.where(better, xl / l2, scale)
        best = np.where(better, scale * xl, best)
    return np.where(zero[:, None], 0, codes + n), np.where(zero, f32(0), scale)
