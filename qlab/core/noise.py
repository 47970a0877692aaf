"""The error that a quantizer makes, computed instead of measured.

For a signal whose distribution is known, the mean squared error of a quantizer is an integral. This
file has it in two forms:

- the *model*: rounding is uniform noise of power scale² / 12 inside the range, and what lies
  beyond the range is cut to its edge (``rounding_noise``, ``granular_noise``, ``overload_noise``,
  ``model_error``);
- *exactly*: the integral over the cell of each level, in closed form (``level_error``,
  ``gaussian_error``, ``laplacian_error``).

Distributions have mean 0. ``gaussian``: lengths are in standard deviations σ. ``laplacian``:
density exp(-|x| / b) / (2 b), lengths are in units of b (its standard deviation is √2 b).

Quantizers of b bits that reach up to ``clip``:

- ``restricted``: 2^b - 1 levels k · scale, |k| <= 2^(b-1) - 1; clip is the largest level. What
  qlab calls symmetric.
- ``full``: 2^b levels k · scale, -2^(b-1) <= k < 2^(b-1); clip is minus the smallest level.
- ``midrise``: 2^b levels (k + 1/2) · scale; clip is the outer edge of the last cell, half a step
  beyond the largest level. No level is 0.
- ``aciq``: not a quantizer but the model, with scale = 2 clip / 2^b.

Sources: Bennett 1948, "Spectra of quantized signals" (the model); Max 1960, "Quantizing for minimum
distortion" (the exact optimum); Banner et al. 2019, arXiv 1810.05723, section 3 (ACIQ).
Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qlab.errors import QlabError

Vector = Any  # a NumPy array of float64, one axis

DISTRIBUTIONS = ("gaussian", "laplacian")
QUANTIZERS = ("restricted", "full", "midrise", "aciq")
# Variance in the units of the distribution: σ² for the Gaussian, 2 b² for the Laplacian.
VARIANCE = {"gaussian": 1.0, "laplacian": 2.0}


def rounding_noise(scale: Any) -> Any:
    """scale² / 12: the mean square of an error that is uniform on [-scale / 2, scale / 2].

    Args:
        scale: units of x per step; a number or an array.

    Returns: units of x squared, the kind of ``scale``. Source: Bennett 1948.
    Chapter: The mathematics of quantization.
    """
    return scale * scale / 12


def granular_noise(distribution: str, clip: float, scale: float) -> float:
    """Rounding noise of the values inside the range: scale² / 12 · P(|x| <= clip).

    Args:
        distribution: ``gaussian`` or ``laplacian``.
        clip, scale: in σ or b.

    Chapter: The mathematics of quantization.
    """
    inside = 1.0 - 2.0 * float(_tails(distribution, np.array([_positive("clip", clip)]))[0][0])
    return float(rounding_noise(_positive("scale", scale))) * inside


def overload_noise(distribution: str, clip: float) -> float:
    """Clipping noise: 2 ∫ (x - clip)² p(x) dx from clip to infinity.

    Gaussian: 2 [(1 + α²) Q(α) - α φ(α)] with α = clip. Laplacian: 2 exp(-α).

    Args:
        distribution: ``gaussian`` or ``laplacian``.
        clip: in σ or b.

    Returns: in σ² or b². Source: Banner et al. 2019, arXiv 1810.05723, section 3.
    Chapter: The mathematics of quantization.
    """
    clip = _positive("clip", clip)
    u0, u1, u2 = (float(u[0]) for u in _tails(distribution, np.array([clip])))
    # Exact arithmetic is never negative; far out, the difference of the three may round below 0.
    return max(2.0 * (u2 - 2.0 * clip * u1 + clip * clip * u0), 0.0)


def model_error(distribution: str, bits: int, clip: float) -> float:
    """The model of ACIQ: clip² / (3 · 4^bits) + overload.

    Rounding noise of a step 2 clip / 2^bits, counted for every value, plus clipping noise.

    Args:
        distribution: ``gaussian`` or ``laplacian``.
        bits: 1 to 16.
        clip: in σ or b.

    Returns: in σ² or b². Source: Banner et al. 2019, arXiv 1810.05723, equations 5 to 7.
    Chapter: The mathematics of quantization.
    """
    scale = 2.0 * _positive("clip", clip) / 2 ** _bits(bits, 1)
    return float(rounding_noise(scale)) + overload_noise(distribution, clip)


def uniform_levels(bits: int, clip: float, quantizer: str = "restricted") -> Vector:
    """The levels of a b-bit uniform quantizer that reaches up to ``clip``, ascending; float64.

    Args:
        bits: 2 to 16, or 1 to 16 where the quantizer has a level on both sides (``midrise``) or
            uses the most negative code (``full``).
        clip: units of x.
        quantizer: ``restricted``, ``full`` or ``midrise``; the module says what clip means.

    Chapter: The mathematics of quantization.
    """
    _known("quantizer", quantizer, QUANTIZERS[:3])
    clip = _positive("clip", clip)
    half = 2 ** (_bits(bits, 2 if quantizer == "restricted" else 1) - 1)
    if quantizer == "restricted":
        return np.arange(1 - half, half) * (clip / (half - 1))
    if quantizer == "full":
        return np.arange(-half, half) * (clip / half)
    return (np.arange(-half, half) + 0.5) * (clip / half)


def level_error(distribution: str, levels: Sequence[float] | Vector) -> float:
    """Exact mean squared error of rounding to the nearest of ``levels``.

    The integral of (x - level)² p(x) over each cell, in closed form. The levels need not be
    uniform: any codebook will do.

    Args:
        distribution: ``gaussian`` or ``laplacian``.
        levels: ascending, in σ or b; at least one.

    Returns: in σ² or b². Source: Max 1960, equation 1.
    Chapter: The mathematics of quantization.
    """
    at = np.asarray(levels, dtype=np.float64)
    if at.ndim != 1 or at.size == 0 or not np.isfinite(at).all() or not (np.diff(at) > 0).all():
        raise QlabError("levels must be finite, ascending, at least one: sort them, drop doubles")
    # Both distributions are even: the left half of the line is the right half of the mirrored
    # levels. On the right half nothing is lost to 1 - (a number near 1).
    return _right_half(distribution, at) + _right_half(distribution, -at[::-1])


def gaussian_error(
    bits: int, clip: float, std: float = 1.0, quantizer: str = "restricted"
) -> float:
    """Exact mean squared error of a b-bit uniform quantizer on a Gaussian of mean 0.

    Args:
        bits: 2 to 16 (1 to 16 for ``full`` and ``midrise``).
        clip: what the quantizer reaches, in units of x.
        std: standard deviation, in units of x.
        quantizer: ``restricted``, ``full`` or ``midrise``, or ``aciq`` for the model.

    Returns: in units of x squared. Source: Max 1960. Chapter: The mathematics of quantization.
    """
    return _error("gaussian", bits, clip, _positive("std", std), quantizer)


def laplacian_error(bits: int, clip: float, b: float = 1.0, quantizer: str = "restricted") -> float:
    """Exact mean squared error of a b-bit uniform quantizer on a Laplacian of mean 0.

    Args:
        bits: 2 to 16 (1 to 16 for ``full`` and ``midrise``).
        clip: what the quantizer reaches, in units of x.
        b: the mean of \\|x\\|, in units of x; the standard deviation over √2.
        quantizer: ``restricted``, ``full`` or ``midrise``, or ``aciq`` for the model.

    Returns: in units of x squared. Chapter: The mathematics of quantization.
    """
    return _error("laplacian", bits, clip, _positive("b", b), quantizer)


def optimal_clip(distribution: str, bits: int, quantizer: str = "restricted") -> float:
    """The clip with the smallest mean squared error.

    Args:
        distribution: ``gaussian`` or ``laplacian``.
        bits: 2 to 16 (1 to 16 but for ``restricted``).
        quantizer: the exact error of ``restricted``, ``full`` or ``midrise``, or the model
            ``aciq``, whose minima are the published table of Banner et al.

    Returns: in σ or b; precise to about 1e-7.

    Sources: Banner et al. 2019, arXiv 1810.05723 (``aciq``: 2.83, 3.89, 5.03 ... for a Laplacian);
    Max 1960, table II (``midrise``: clip is 2^(bits - 1) times his step).
    Chapter: The mathematics of quantization.
    """
    _known("quantizer", quantizer, QUANTIZERS)

    def error(log_clip: float) -> float:
        return _error(distribution, bits, math.exp(log_clip), 1.0, quantizer)

    # The error falls to one minimum and rises from there (tested); a grid brackets it.
    grid = np.linspace(math.log(0.1), math.log(100.0), 70)
    k = min(range(len(grid)), key=lambda i: error(float(grid[i])))
    return math.exp(_golden(error, float(grid[max(k - 1, 0)]), float(grid[min(k + 1, 69)])))


def sqnr_law(bits: float, loading: float = math.sqrt(3.0)) -> float:
    """Signal to quantization noise ratio of the model without clipping, in dB.

    10 log10(σ² / (scale² / 12)) with scale = 2 clip / 2^bits: 6.02 bits + 4.77 - 20 log10(loading).

    Args:
        bits: number of bits; fractions are allowed.
        loading: clip / σ, σ being the root mean square of the signal. √3 is that of a uniform
            signal over the whole range, for which the law is 6.02 bits.

    Source: Bennett 1948. Chapter: The mathematics of quantization.
    """
    loading = _positive("loading", loading)
    return 20 * math.log10(2) * bits + 10 * math.log10(3) - 20 * math.log10(loading)


def _error(distribution: str, bits: int, clip: float, unit: float, quantizer: str) -> float:
    _known("quantizer", quantizer, QUANTIZERS)
    relative = _positive("clip", clip) / unit
    if quantizer == "aciq":
        return model_error(distribution, bits, relative) * unit**2
    return level_error(distribution, uniform_levels(bits, relative, quantizer)) * unit**2


def _right_half(distribution: str, levels: Vector) -> float:
    """Sum over levels of ∫ (x - level)² p(x) dx over the part of its cell that has x > 0."""
    middles = (levels[1:] + levels[:-1]) / 2
    edges = np.maximum(np.concatenate([[0.0], middles]), 0.0)  # the left edge of each cell
    # A tail minus the next tail is the moment of a cell; beyond the last edge lies nothing.
    m0, m1, m2 = (t - np.append(t[1:], 0.0) for t in _tails(distribution, edges))
    return float(np.sum(m2 - 2 * levels * m1 + levels**2 * m0))


def _tails(distribution: str, a: Vector) -> tuple[Vector, Vector, Vector]:
    """∫ p, ∫ x p and ∫ x² p from a to infinity, for each a >= 0."""
    _known("distribution", distribution, DISTRIBUTIONS)
    if distribution == "laplacian":
        p = np.exp(-a) / 2
        return p, (a + 1) * p, (a * a + 2 * a + 2) * p
    density = np.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    q = np.array([math.erfc(v / math.sqrt(2)) / 2 for v in a.tolist()])
    return q, density, q + a * density


def _golden(f: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a function with one minimum in [low, high], by golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = f(a), f(b)
    while high - low > 1e-9:
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = f(b)
    return (low + high) / 2


def _known(what: str, word: str, choices: Sequence[str]) -> None:
    if word not in choices:
        near = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.3) or choices
        raise QlabError(f"unknown {what} '{word}': did you mean {', '.join(near)}?")


def _bits(bits: int, least: int) -> int:
    if int(bits) != bits or not least <= bits <= 16:
        raise QlabError(f"{bits} bits: this quantizer has a whole number of bits, {least} to 16")
    return int(bits)


def _positive(what: str, value: float) -> float:
    value = float(value)
    if not (value > 0 and math.isfinite(value)):
        raise QlabError(f"{what} is {value}: it must be a positive finite number")
    return value
