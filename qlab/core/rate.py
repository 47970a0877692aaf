"""Rate and distortion: how small an error any quantizer can reach with R bits a value.

Rates are in bits a value, distortions are mean squared errors. For a Gaussian source of variance
σ² Shannon's bound is

    D(R) = σ² · 2^(-2R),        R(D) = ½ log2(σ² / D).

6.02 dB a bit. No quantizer lies below, whatever its codebook, dimension or entropy coding.

Sources: Shannon 1959 (Coding theorems for a discrete source with a fidelity criterion); Cover and
Thomas 2006, chapter 10; Gersho and Gray 1992. Chapter: Beyond the straight line.
"""

from __future__ import annotations

import math

import numpy as np

from qlab.core._array import Array, check_finite, to_numpy
from qlab.errors import QlabError

# Normalized second moment of the best known cell in each dimension: its mean squared error a
# coordinate at volume 1. Conway and Sloane 1999 (Sphere packings, lattices and groups), table 2.3.
CELLS = {1: 1 / 12, 2: 5 / (36 * math.sqrt(3)), 3: 0.078543, 4: 0.076603, 8: 0.071682, 24: 0.065771}
# What a sphere of very many dimensions reaches: 1/(2πe).
SPHERE = 1 / (2 * math.pi * math.e)


def gaussian_distortion(rate: float, variance: float = 1.0) -> float:
    """D(R) of a Gaussian source: the least mean squared error at ``rate`` bits a value."""
    if rate < 0:
        raise QlabError(f"rate {rate}: bits a value are not negative")
    return variance * math.exp2(-2.0 * rate)


def gaussian_rate(distortion: float, variance: float = 1.0) -> float:
    """R(D) of a Gaussian source: the fewest bits a value for this mean squared error."""
    if distortion <= 0:
        raise QlabError(f"distortion {distortion}: a mean squared error above 0 is needed")
    return max(0.0, 0.5 * math.log2(variance / distortion))


def shannon_lower_bound(entropy: float, rate: float) -> float:
    """Shannon's lower bound of the distortion for any source of independent values.

    Args:
        entropy: differential entropy in bits, ½ log2(2πe σ²) for a Gaussian.
        rate: bits a value.
    """
    return SPHERE * math.exp2(2.0 * (entropy - rate))


def gaussian_entropy(variance: float = 1.0) -> float:
    """Differential entropy of a Gaussian, bits. No density of that variance has more."""
    return 0.5 * math.log2(2 * math.pi * math.e * variance)


def differential_entropy(x: Array) -> float:
    """Differential entropy of the density that ``x`` was drawn from, in bits.

    Vasicek's estimate from spacings (1976, Journal of the Royal Statistical Society B 38), with
    m = √n: the mean of log2(n / (2m) · (x[i+m] - x[i-m])) over the sorted values. Values that
    repeat (a source with steps) make it minus infinity.

    Raises: QlabError for fewer than 16 values, NaN or infinity.
    """
    check_finite(x, "x")
    values = np.sort(to_numpy(x).astype(np.float64).reshape(-1))
    n = len(values)
    if n < 16:
        raise QlabError(f"{n} values are too few to estimate an entropy: give at least 16")
    m = round(math.sqrt(n))
    index = np.arange(n)
    gap = values[np.minimum(index + m, n - 1)] - values[np.maximum(index - m, 0)]
    # At both ends fewer than 2m spacings are inside.
    inside = np.minimum(index + m, n - 1) - np.maximum(index - m, 0)
    with np.errstate(divide="ignore"):
        return float(np.mean(np.log2(gap * n / inside)))


def code_entropy(codes: Array) -> float:
    """Entropy of the codes in bits: what an ideal entropy coder needs for one, at least."""
    flat = to_numpy(codes).reshape(-1)
    _, counts = np.unique(flat, return_counts=True)
    share = counts / max(1, len(flat))
    return float(-np.sum(share * np.log2(share)))


def high_rate_gap(dim: int, entropy_coded: bool = False) -> float:
    """Distortion over the Gaussian bound at high rate, for the best known cells of ``dim``.

    With codes of fixed length (Zador 1982; dim 1 is Panter and Dite 1951, √3π/2 = 4.35 dB):

        G · 2π · ((dim + 2) / dim)^((dim + 2) / 2)

    With entropy coding only the shape of the cell costs, G · 2πe: for dim 1 πe/6 = 1.53 dB, or
    0.255 bit (Gish and Pierce 1968).

    Raises: QlabError for a dimension whose best cell is not in ``CELLS``.
    """
    if dim not in CELLS:
        raise QlabError(f"no cell of {dim} dimensions is tabulated: use one of {sorted(CELLS)}")
    if entropy_coded:
        return CELLS[dim] / SPHERE
    return CELLS[dim] * 2 * math.pi * math.pow((dim + 2) / dim, (dim + 2) / 2)


def decibels(ratio: float) -> float:
    """10 log10 of a ratio of mean squares; 1 bit is 6.02 dB."""
    return 10 * math.log10(ratio)
