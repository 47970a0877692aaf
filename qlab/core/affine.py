"""The affine map between real numbers and integer codes, and its parameters from a range.

    codes = clip(round(x / scale) + zero_point, qmin, qmax)        x̂ = (codes - zero_point) · scale

``scale`` > 0 is in units of x per step; ``zero_point`` is the integer code of exactly 0; ``round``
is half to even. Source: Jacob et al. 2018 (arXiv 1712.05877), section 2.1, where scale is S and
zero_point is Z. Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import numpy as np

from qlab.core._array import Array, namespace
from qlab.core.integers import IntFormat
from qlab.core.rounding import round_to_integer

# Smallest normal float32. A scale below it would lose its own precision or vanish.
TINY = 1.1754943508222875e-38


def affine_params(
    minimum: Array, maximum: Array, fmt: IntFormat, symmetric: bool, full: bool = False
) -> tuple[Array, Array | None]:
    """scale and zero_point that cover [minimum, maximum].

    Args:
        minimum, maximum: float32, one value a block, finite.
        fmt: integer format.
        symmetric: one range [-amax, amax] and no zero point.
        full: symmetric with the most negative code in use.

    Returns:
        scale: float32, the shape of ``minimum``, positive. Symmetric: amax / qmax. Full: amax /
            ((qmax - qmin) / 2), such as amax / 7.5 for int4; then -amax becomes code -8 and amax,
            halfway to a code 8 that is not there, code 7: still no error above half a step. (This
            is the symmetric scale of torchao and of compressed-tensors.)
        zero_point: int32, the same shape, or None when symmetric.

    Degenerate input is defined: a block of zeros gets scale 1 (so that nothing divides by zero);
    a range so small that the scale would be subnormal gets the smallest normal scale; the range of
    an asymmetric block is widened to include 0, so that 0 is always exactly representable.
    """
    xp = namespace(minimum, maximum)
    qmin, qmax = fmt.range(symmetric, full)
    if symmetric:
        amax = xp.maximum(xp.abs(minimum), xp.abs(maximum))
        steps = (qmax - qmin) / 2 if full else float(max(qmax, -qmin))
        return _positive(amax / steps, amax), None
    low = xp.minimum(minimum, xp.zeros_like(minimum))
    high = xp.maximum(maximum, xp.zeros_like(maximum))
    steps = float(qmax - qmin)
    # high - low can overflow float32 when both are huge; dividing first cannot.
    with np.errstate(over="ignore"):  # NumPy warns, torch does not
        span = high - low
    scale = xp.where(xp.isfinite(span), span / steps, high / steps - low / steps)
    scale = _positive(scale, xp.maximum(high, -low))
    zero_point = xp.clip(qmin - xp.round(low / scale), float(qmin), float(qmax))
    return scale, xp.astype(zero_point, xp.int32)


def _positive(scale: Array, amax: Array) -> Array:
    xp = namespace(scale)
    scale = xp.where(scale < TINY, xp.full_like(scale, TINY), scale)
    return xp.where(amax == 0, xp.ones_like(scale), scale)


def affine_quantize(
    x: Array,
    scale: Array,
    zero_point: Array | None,
    fmt: IntFormat,
    symmetric: bool,
    full: bool = False,
    noise: Array | None = None,
) -> Array:
    """codes of ``x``; scale and zero_point broadcast against x. int8 (uint8 if unsigned).

    ``noise``: uniform random numbers in [0, 1) of x's shape, for stochastic rounding.
    """
    xp = namespace(x, scale)
    qmin, qmax = fmt.range(symmetric, full)
    y = x / scale
    if zero_point is None:
        return fmt.encode(y, qmin, qmax, noise=noise)
    # Round before the shift, as the equation says: round(y + z) would break ties otherwise.
    y = round_to_integer(y, noise) + xp.astype(zero_point, xp.float32)
    return fmt.encode(y, qmin, qmax)


def affine_dequantize(codes: Array, scale: Array, zero_point: Array | None) -> Array:
    """x̂ = (codes - zero_point) · scale, float32."""
    xp = namespace(codes, scale)
    y = xp.astype(codes, xp.float32)
    if zero_point is not None:
        y = y - xp.astype(zero_point, xp.float32)
    return y * scale
