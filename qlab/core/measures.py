"""Error measures: how far x̂ is from x.

All are computed in float64, so that a mean over millions of weights is exact to many digits. An
empty array has no error: ``mse`` and ``max_error`` are 0, ``sqnr`` is infinite.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import math
from typing import Any

from qlab.core._array import Array, is_torch, namespace
from qlab.errors import QlabError


def _pair(x: Array, x_hat: Any) -> tuple[Array, Array]:
    """Both as float64 arrays; a QTensor is dequantized."""
    # Every torch tensor has the method, and would cast float64 to float32: ask quantized ones only.
    if hasattr(x_hat, "dequantize") and (not is_torch(x_hat) or x_hat.is_quantized):
        x_hat = x_hat.dequantize()
    xp = namespace(x, x_hat)
    if tuple(x.shape) != tuple(x_hat.shape):
        raise QlabError(
            f"shapes differ: x {tuple(x.shape)}, x̂ {tuple(x_hat.shape)}; "
            "reshape one, since values are compared one by one"
        )
    if is_torch(x):
        x, x_hat = x.detach(), x_hat.detach()
    return xp.astype(x, xp.float64), xp.astype(x_hat, xp.float64)


def _scaled(a: Array, b: Array) -> tuple[Array, Array]:
    """Both over their largest magnitude, for ratios: squares then neither overflow nor vanish."""
    largest = max(_largest(a), _largest(b))
    if largest == 0 or not math.isfinite(largest):
        return a, b
    return a / largest, b / largest


def _largest(a: Array) -> float:
    xp = namespace(a)
    return float(xp.max(xp.abs(a))) if math.prod(a.shape) else 0.0


def mse(x: Array, x_hat: Any) -> float:
    """Mean squared error, in units of x squared.

    Args:
        x: NumPy array or torch tensor of any shape.
        x_hat: what x became, the same shape, or a QTensor (torch's own will do).

    Raises: QlabError if the shapes differ. Chapter: The mathematics of quantization.
    """
    a, b = _pair(x, x_hat)
    xp = namespace(a)
    return float(xp.mean((a - b) ** 2)) if math.prod(a.shape) else 0.0


def max_error(x: Array, x_hat: Any) -> float:
    """Largest absolute error, in units of x. Arguments as for ``mse``.

    Chapter: The mathematics of quantization.
    """
    a, b = _pair(x, x_hat)
    return _largest(a - b)


def sqnr(x: Array, x_hat: Any) -> float:
    """Signal to quantization noise ratio, in dB: 10 log10(sum x² / sum (x - x̂)²).

    Infinite when nothing was lost, minus infinity when x is zero and x̂ is not. Arguments as for
    ``mse``. Chapter: The mathematics of quantization.
    """
    a, b = _scaled(*_pair(x, x_hat))
    xp = namespace(a)
    signal, noise = float(xp.sum(a**2)), float(xp.sum((a - b) ** 2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def cosine(x: Array, x_hat: Any) -> float:
    """Cosine of the angle between x and x̂ (1: the same direction; 0 if either is zero).

    Arguments as for ``mse``. Chapter: The mathematics of quantization.
    """
    a, b = _pair(x, x_hat)
    a, b = _scaled(a, a)[0], _scaled(b, b)[0]  # each by itself: lengths do not matter here
    xp = namespace(a)
    norm = math.sqrt(float(xp.sum(a**2))) * math.sqrt(float(xp.sum(b**2)))
    return float(xp.sum(a * b)) / norm if norm > 0 else 0.0
