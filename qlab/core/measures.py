"""Error measures: how far x̂ is from x.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import math
from typing import Any

from qlab.core._array import Array, namespace
from qlab.errors import QlabError


def _pair(x: Array, x_hat: Any) -> tuple[Array, Array]:
    """Both as float64 arrays; a QTensor is dequantized."""
    if hasattr(x_hat, "dequantize"):
        x_hat = x_hat.dequantize()
    xp = namespace(x, x_hat)
    if tuple(x.shape) != tuple(x_hat.shape):
        raise QlabError(f"shapes differ: x {tuple(x.shape)}, x̂ {tuple(x_hat.shape)}")
    return xp.astype(x, xp.float64), xp.astype(x_hat, xp.float64)


def mse(x: Array, x_hat: Any) -> float:
    """Mean squared error, in units of x squared."""
    a, b = _pair(x, x_hat)
    xp = namespace(a)
    return float(xp.mean((a - b) ** 2))


def max_error(x: Array, x_hat: Any) -> float:
    """Largest absolute error, in units of x."""
    a, b = _pair(x, x_hat)
    xp = namespace(a)
    return float(xp.max(xp.abs(a - b)))


def sqnr(x: Array, x_hat: Any) -> float:
    """Signal to quantization noise ratio, in dB: 10 log10(sum x² / sum (x - x̂)²).

    Infinite when nothing was lost, minus infinity when x is zero and x̂ is not.
    """
    a, b = _pair(x, x_hat)
    xp = namespace(a)
    signal, noise = float(xp.sum(a**2)), float(xp.sum((a - b) ** 2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def cosine(x: Array, x_hat: Any) -> float:
    """Cosine of the angle between x and x̂ (1: the same direction; 0 if either is zero)."""
    a, b = _pair(x, x_hat)
    xp = namespace(a)
    norm = math.sqrt(float(xp.sum(a**2))) * math.sqrt(float(xp.sum(b**2)))
    return float(xp.sum(a * b)) / norm if norm > 0 else 0.0
