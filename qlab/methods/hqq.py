"""HQQ, half-quadratic quantization: move the zero point of each group, without data.

The weights W of a group become codes and come back by a scale s, which stays as the range gives it,
and a zero point z, which is a real number here:

    W_q = clip(round(W/s + z))        W_r = (W_q - z) · s

HQQ looks for the z with the least Σ|W - W_r|^p, p < 1, which forgives a few large errors more than
squares do. Half-quadratic splitting adds a variable W_e, meant to hold the large errors, and makes
two easy problems in turn of a hard one, each with a solution in closed form:

    W_e = argmin |W_e|^p + β/2 (W_e - (W - W_r))²     ≈ shrink(W - W_r)
    z   = argmin Σ (z - (W_q - (W - W_e)/s))²         = mean(W_q - (W - W_e)/s)

Source: Badri and Shaji 2023, "Half-quadratic quantization of large machine learning models", and
the library hqq 0.2.8, ``hqq/core/optimize.py`` and ``quantize.py``, whose order of operations is
kept so that codes, scale and zero point are the same bit for bit. The shrinkage: Chartrand 2012,
"Nonconvex splitting for regularized low-rank + sparse decomposition", section III.

Chapter: Methods without data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qlab.core import QTensor, Scheme, from_codes, from_params
from qlab.core import granularity as gran
from qlab.core._array import Array, dtype_name, namespace, to_float32
from qlab.core.affine import affine_params
from qlab.core.integers import IntFormat
from qlab.core.packing import packed_length
from qlab.core.qtensor import whole_blocks
from qlab.core.scales import store
from qlab.core.scheme import SCALE_DTYPES
from qlab.errors import QlabError
from qlab.methods.registry import register

# The library's limits, kept: a range up to NARROW gets the scale 1, and no scale is below 1/STEEP
# (it computes in half precision on a GPU, where smaller ones would vanish).
NARROW, STEEP = 1e-4, 2e4


@dataclass(frozen=True)
class HqqOptions:
    """Options of ``hqq``; the defaults are those of the library's default solver.

    Attributes:
        lp_norm: p, above 0 and at most 1.
        beta: β, in the units of the weights: errors below about β^(-1/(2-p)) are not shrunk but
            erased, so that W_e is 0 and z plain least squares.
        kappa: factor of β at each iteration. The library lists 1.01, but its default solver does
            not use it; its slower one does.
        iterations: at most.
        early_stop: stop when the mean |W - W_r| of the whole matrix no longer falls.
        round_zero: begin with the zero point of the range rounded to a code. The library's
            ``BaseQuantizeConfig`` asks for it at 4 bits and at no other number of them.
        zero: ``real`` as in the library, or ``integer``: z rounded to a code at the end, for files
            and kernels that have no other.
        pad: fill the tensor with zeros to whole blocks where the group size does not divide it.
    """

    lp_norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.0
    iterations: int = 20
    early_stop: bool = True
    round_zero: bool = False
    zero: str = "real"
    pad: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.lp_norm <= 1:
            raise QlabError(f"lp_norm is {self.lp_norm}: choose one above 0, at most 1")
        if not (self.beta > 0 and self.kappa >= 1 and self.iterations >= 1):
            raise QlabError("beta must be positive, kappa and iterations at least 1")
        if self.zero not in ("real", "integer"):
            raise QlabError(f"zero is '{self.zero}': choose 'real' or 'integer'")


@dataclass(frozen=True, eq=False, repr=False)
class RealZeroTensor(QTensor):
    """A QTensor whose zero points are real numbers. Immutable.

    x̂ = (codes - zero_point) · scale as ever, but no code stands for exactly 0 any more. The zero
    points are stored like the scales: ``zero_point`` is float32, or float16 for ``sfp16``. (With
    m = -zero_point · scale this is x̂ = codes · scale + m, which GGUF's Q4_1 stores.)
    """

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points, the latter two of the same type."""
        bits = 2 * int(np.prod(tuple(self.scale.shape))) * SCALE_DTYPES[self.scheme.scale_word][1]
        return int(np.prod(tuple(self.packed.shape))) + packed_length(bits, 1)


@dataclass(frozen=True, eq=False)
class Solution:
    """What ``half_quadratic`` found, for groups in rows.

    Attributes:
        codes: uint8 (groups, n), from 0 to 2^bits - 1.
        scale: float32 (groups, 1).
        zero: float32 (groups, 1), the real zero point z, on the scale of ``codes``.
        errors: mean |W - W_r| before each update of z.
        zeros: z before each update, and at the end.
    """

    codes: Array
    scale: Array
    zero: Array
    errors: tuple[float, ...]
    zeros: tuple[Array, ...]


def shrink(x: Array, beta: float, lp_norm: float) -> Array:
    """The generalized soft threshold: sign(x) · max(|x| - |x|^(p-1) / β, 0), the shape of x.

    With p = 1 it takes 1/β off every magnitude; with p < 1 more off small ones, and less off large
    ones. It is 0 up to |x| = β^(-1/(2-p)).

    Chapter: Methods without data.
    """
    xp = namespace(x)
    size = xp.abs(x)
    # Powers take long, and weights of usual size lie all below the border: see that first.
    if float(xp.max(size)) < 0.99 * beta ** (-1 / (2 - lp_norm)):
        return xp.zeros_like(x)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0^(p-1) is infinite: shrunk to 0
        less = 1.0 / beta if lp_norm == 1 else (1.0 / beta) * size ** (lp_norm - 1)
        return xp.clip(size - less, min=0.0) * xp.sign(x)


def half_quadratic(
    w: Array, bits: int, options: HqqOptions | None = None, *, with_zero: bool = False
) -> Solution:
    """HQQ's solver for groups in rows.

    Args:
        w: float32 (groups, n), finite.
        bits: 1 to 8.
        with_zero: widen each range to include 0, so that an integer zero point can serve.

    A group whose range is at most 1e-4 gets the scale 1 and becomes its mean (the library's limit).

    Raises: QlabError if a range overflows float32.

    Chapter: Methods without data.
    """
    o = options or HqqOptions()
    xp = namespace(w)
    top = float(2**bits - 1)
    low, high = xp.min(w, axis=1, keepdims=True), xp.max(w, axis=1, keepdims=True)
    if with_zero:
        low, high = xp.clip(low, max=0.0), xp.clip(high, min=0.0)
    with np.errstate(over="ignore", divide="ignore"):
        span = high - low
        if not bool(xp.all(xp.isfinite(span))):
            raise QlabError("the range of a group overflows float32: scale the weights down")
        # As in the library, `inverse` is 1/s, and weights are multiplied by it.
        inverse = xp.where(span <= NARROW, xp.ones_like(span), top / span)
    inverse = xp.clip(inverse, max=STEEP)
    zero = -low * inverse
    if o.round_zero:
        zero = xp.round(zero)
    beta, best = o.beta, float("inf")
    errors, zeros = [], [zero]
    for _ in range(o.iterations):
        codes = xp.clip(xp.round(w * inverse + zero), 0.0, top)
        restored = (codes - zero) / inverse
        rest = w - restored
        zero = xp.mean(codes - (w - shrink(rest, beta, o.lp_norm)) * inverse, axis=1, keepdims=True)
        beta *= o.kappa
        errors.append(float(xp.mean(xp.abs(rest))))
        zeros.append(zero)
        if o.early_stop and not errors[-1] < best:
            break
        best = errors[-1]
    codes = xp.clip(xp.round(w * inverse + zero), 0.0, top)
    codes = xp.astype(codes, xp.uint8)
    return Solution(codes, 1.0 / inverse, zero, tuple(errors), tuple(zeros))


def half_quadratic_scale(
    w: Array, qmin: int, qmax: int, options: HqqOptions | None = None
) -> tuple[Array, tuple[float, ...]]:
    """The same splitting where there is no zero point: the scale is what moves.

    W_r = s · W_q, and the second problem becomes s = argmin Σ (W - W_e - s · W_q)², hence
    s = Σ W_q (W - W_e) / Σ W_q². The library has no symmetric form; this one is qlab's.

    Args:
        w: float32 (groups, n), finite.
        qmin, qmax: the codes in use.

    Returns: scale, float32 (groups, 1), of least mean |W - W_r| that a group met on its way; and
        the mean |W - W_r| before each update, over all groups.

    Chapter: Methods without data.
    """
    o = options or HqqOptions()
    xp = namespace(w)
    amax = xp.max(xp.abs(w), axis=1, keepdims=True)
    scale, _ = affine_params(-amax, amax, IntFormat(8), True)
    scale = scale * (127.0 / max(qmax, 1))
    best_scale, best = scale, None
    beta, errors = o.beta, []
    for _ in range(o.iterations):
        codes = xp.clip(xp.round(w / scale), float(qmin), float(qmax))
        rest = w - codes * scale
        error = xp.mean(xp.abs(rest), axis=1, keepdims=True)
        better = error < (xp.full_like(error, float("inf")) if best is None else best)
        best = error if best is None else xp.where(better, error, best)
        best_scale = xp.where(better, scale, best_scale)
        errors.append(float(xp.mean(error)))
        if o.early_stop and len(errors) > 1 and not errors[-1] < errors[-2]:
            break
        # Codes reach 128, so that sums of their squares stay far from float32's limits.
        power = xp.sum(codes * codes, axis=1, keepdims=True)
        shared = xp.sum(codes * (w - shrink(rest, beta, o.lp_norm)), axis=1, keepdims=True)
        fitted = shared / xp.where(power > 0, power, xp.ones_like(power))
        scale = xp.where(fitted > 0, fitted, scale)
        beta *= o.kappa
    return best_scale, tuple(errors)


@register(
    "hqq",
    options=HqqOptions,
    source="Badri and Shaji 2023, Half-quadratic quantization of large machine learning models",
    chapter="without-data",
)
def hqq(weight: Array, stats: Any, scheme: Scheme, options: HqqOptions | None = None) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) with half-quadratic zero points.

    Args:
        scheme: integers. Asymmetric (``int4-asym-g64``, or ``uint4-g64``) is the library's case,
            with scales and zero points in float32, or float16 for ``-sfp16`` (the codes are then
            the nearest ones for what is stored). In symmetric schemes the scale moves instead.

    Returns: a RealZeroTensor; a QTensor with ``zero="integer"`` or a symmetric scheme.

    Raises: QlabError for another format or type of scales; NaN or infinity in the weight; a zero
        point beyond float16.

    Chapter: Methods without data.
    """
    o = options or HqqOptions()
    if not isinstance(scheme.format, IntFormat) or not scheme.format.affine:
        raise QlabError(
            f"method 'hqq' quantizes to integers, not to {scheme.format.name}: use a scheme such "
            "as 'int4-asym-g64'"
        )
    x = whole_blocks(to_float32(weight, "weight"), scheme, o.pad)
    shape, dtype = tuple(int(s) for s in weight.shape), dtype_name(weight)
    block = scheme.granularity.block_shape(tuple(x.shape))
    if 0 in x.shape:
        raise QlabError(f"weight of shape {shape} is empty: there is nothing to quantize")
    rows, counts = _rows(x, block)
    xp = namespace(x)
    if scheme.symmetric:
        scale, _ = half_quadratic_scale(rows, *scheme.format.range(True, scheme.full), o)
        return from_params(x, xp.reshape(scale, counts), None, scheme, shape=shape, dtype=dtype)
    if scheme.scale_word not in ("sfp32", "sfp16"):
        raise QlabError(
            f"method 'hqq' keeps scales and zero points in float32 or float16, not in "
            f"'{scheme.scale_word}': leave it out, or use 'sfp16'"
        )
    fmt = scheme.format
    found = half_quadratic(rows, fmt.bits, o, with_zero=o.zero == "integer")
    scale, zero = xp.reshape(found.scale, counts), xp.reshape(found.zero, counts)
    if o.zero == "integer":
        whole = xp.clip(xp.round(zero), 0.0, float(fmt.qmax - fmt.qmin))
        whole = xp.astype(whole, xp.int32) + fmt.qmin
        return from_params(x, scale, whole, scheme, shape=shape, dtype=dtype)
    codes = found.codes
    scale, _ = store(scale, scheme)
    if scheme.scale_word == "sfp16":
        if float(xp.max(xp.abs(zero))) > 65504:
            raise QlabError("a zero point is beyond float16: leave out '-sfp16'")
        zero = xp.astype(zero, xp.float16)
        s, z = (xp.reshape(xp.astype(a, xp.float32), (-1, 1)) for a in (scale, zero))
        codes = xp.astype(xp.clip(xp.round(rows / s + z), 0.0, float(2**fmt.bits - 1)), xp.uint8)
    codes = _from_rows(fmt.from_stored(codes), counts, block)
    q = from_codes(codes, scale, zero + fmt.qmin, scheme, shape=shape, dtype=dtype)
    return RealZeroTensor(**{f: getattr(q, f) for f in QTensor.__dataclass_fields__})


def slower(options: HqqOptions | None = None) -> HqqOptions:
    """The options of the library's slower solver: 100 iterations, β grows, no early stop."""
    return replace(options or HqqOptions(), kappa=1.01, iterations=100, early_stop=False)


def _rows(x: Array, block: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """The blocks of ``x`` as rows (groups, n), and the number of blocks along each axis."""
    xp = namespace(x)
    blocks, inner = gran.to_blocks(x, block)
    outer = tuple(range(0, len(blocks.shape), 2))
    counts = tuple(int(blocks.shape[i]) for i in outer)
    return xp.reshape(xp.permute_dims(blocks, outer + inner), (int(np.prod(counts)), -1)), counts


def _from_rows(rows: Array, counts: tuple[int, ...], block: tuple[int, ...]) -> Array:
    """The inverse of ``_rows``."""
    xp = namespace(rows)
    n = len(counts)
    blocks = xp.reshape(rows, counts + tuple(block))
    order = tuple(i for pair in zip(range(n), range(n, 2 * n), strict=True) for i in pair)
    return xp.reshape(
        xp.permute_dims(blocks, order), tuple(c * b for c, b in zip(counts, block, strict=True))
    )
