"""The reference kernel: dequantize and multiply, in float64. The oracle of all other kernels.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.core import QTensor
from qlab.core._array import to_numpy


def dense(weight: Any) -> np.ndarray:
    """Ŵ as float64 (out_features, in_features), of a QTensor or a float matrix."""
    values = weight.dequantize() if isinstance(weight, QTensor) else weight
    if hasattr(values, "detach"):
        values = values.detach().float()
    return to_numpy(values).astype(np.float64)


def multiply(weight: Any, x: Any) -> np.ndarray:
    """x Ŵᵀ in float64: (out_features,) of a vector, (tokens, out_features) of a matrix.

    Args:
        weight: a QTensor or a float matrix (out_features, in_features).
        x: (in_features,) or (tokens, in_features), NumPy or torch.

    Chapter: A CPU kernel in Numba.
    """
    return dense(x) @ dense(weight).T


def quantized_inputs(x: np.ndarray, block: int = 32) -> np.ndarray:
    """x̂, what int8 inputs with one scale for ``block`` inputs stand for.

    Args:
        x: float32 (..., in_features).
        block: inputs that share a scale; in_features for one scale a token (W8A8).

    Returns: float64, the shape of x. The codes are round(x · (127 / amax)), half to even, and the
    scale is amax / 127, both in float32.

    Chapter: A CPU kernel in Numba.
    """
    x = np.asarray(x, np.float32)
    count = x.shape[-1]
    blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -count % block)])
    blocks = blocks.reshape(*x.shape[:-1], -1, block)
    amax = np.abs(blocks).max(axis=-1, keepdims=True)
    safe = np.where(amax < np.float32(1e-35), np.float32(1), amax)
    codes = np.rint(blocks * (np.float32(127) / safe))
    codes = np.where(amax < np.float32(1e-35), 0, codes)
    values = codes.astype(np.float64) * (amax / np.float32(127))
    return values.reshape(*x.shape[:-1], -1)[..., :count]
