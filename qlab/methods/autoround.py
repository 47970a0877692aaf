"""AutoRound: learn for each weight whether it is rounded up or down, by signed gradient descent.

    Ŵ = s · (clip(⌊W / s + V⌉ + z, qmin, qmax) - z),     s and z from [β · min W, α · max W]

V moves what is rounded by up to half a step, so it decides between the two nearest codes; α and β
in [0, 1] shrink the range of each group. All three start as round-to-nearest has them (V = 0,
α = β = 1) and follow the sign of the gradient of the output's error,

    V <- V - lr_t · sign(∂L / ∂V),     L = ‖X Ŵᵀ - X Wᵀ‖²,     lr_t = lr · (1 - t / steps),

with the rounding passed over as if it were the identity (straight-through). With lr = 1 / steps the
steps add up to about 1/2: V can just reach its limit. What was best on the way is kept.

The paper minimizes the error of a whole decoder block; here each layer is learned by itself, on the
inputs that the quantized layers before it make. So Xᵀ X is all that L needs of the data, and by
default each step uses all calibration tokens at once; ``batch`` draws some for each step, as the
paper does.

Source: Cheng et al. 2023, arXiv 2309.05516, section 3, equations 3 to 6 and algorithm 1.

Chapter: Learned rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qlab.core import QTensor, Scheme, from_codes, quantize, scales
from qlab.core import granularity as gran
from qlab.core._array import dtype_name, to_float32
from qlab.core.integers import IntFormat
from qlab.core.qtensor import block_range, whole_blocks
from qlab.errors import QlabError
from qlab.methods.inverse_hessian import checked_hessian
from qlab.methods.registry import register


@dataclass(frozen=True)
class AutoRoundOptions:
    """How AutoRound goes about it.

    Attributes:
        steps: of signed gradient descent; 0 is round-to-nearest.
        lr: length of the first step, in steps of the grid for V; None: 1 / steps, the paper's.
        range_lr: the same for α and β; None: as ``lr``.
        batch: input rows drawn for each step; None: all calibration tokens, by their Hessian.
        ranges: learn α and β too.
        seed: of the draws.
        pad: fill the weight with zeros to whole groups where the group size does not divide it.
    """

    steps: int = 200
    lr: float | None = None
    range_lr: float | None = None
    batch: int | None = None
    ranges: bool = True
    seed: int = 0
    pad: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise QlabError(f"steps {self.steps}: take 0 or more (usual: 200)")
        for name in ("lr", "range_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise QlabError(f"{name} {value}: it is positive, or None for the default")
        if self.batch is not None and self.batch < 1:
            raise QlabError(f"batch {self.batch}: draw 1 row or more, or None for all tokens")


@dataclass(frozen=True)
class Learned:
    """What is learned.

    Attributes:
        v: float32, the shape of the weight (whole blocks), in [-1/2, 1/2].
        alpha, beta: float32, one a block, in [0, 1]: factors of the largest and smallest weight.
    """

    v: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor

    def clone(self) -> Learned:
        """A copy without gradients."""
        return Learned(*(t.detach().clone() for t in (self.v, self.alpha, self.beta)))


def _needs(options: Any) -> tuple[str, ...]:
    return ("hessian",) if options.batch is None else ("hessian", "sample")


@register(
    "autoround",
    options=AutoRoundOptions,
    needs_calibration=True,
    needs=_needs,
    source="Cheng et al. 2023, arXiv 2309.05516, section 3, equations 3 to 6 and algorithm 1",
    chapter="learned-rounding",
)
def autoround(
    weight: torch.Tensor, stats: Any, scheme: Scheme | str, options: AutoRoundOptions | None = None
) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) by learned rounding.

    Never worse than round-to-nearest: if the learned codes have a larger error over all calibration
    tokens, round-to-nearest's are returned.

    Args:
        weight: torch, any real floating dtype.
        stats: has ``hessian``, float32 (in_features, in_features), and, with ``batch``, ``sample``,
            float32 (rows, in_features), such as ``qlab.calibrate.LayerInputs``.
        scheme: integers, any granularity.

    Raises: QlabError for a scheme of other formats, groups that do not divide the width (unless
        ``pad``), NaN, a Hessian of another shape or of zeros.

    Chapter: Learned rounding.
    """
    scheme, options = Scheme.parse(scheme), options or AutoRoundOptions()
    w, hessian, grid = _prepare(weight, stats, scheme, options)
    learned, _ = _descend(grid, hessian, stats, options)
    stored, zero, codes = grid.codes(learned)
    found = from_codes(
        codes.to(weight.device),
        stored.to(weight.device),
        None if zero is None else zero.to(weight.device),
        scheme,
        shape=tuple(int(n) for n in weight.shape),
        dtype=dtype_name(weight),
        tensor_scale=None if grid.shared is None else grid.shared.to(weight.device),
    )
    plain = quantize(weight, scheme, pad=options.pad)
    return found if _error(found, w, hessian) < _error(plain, w, hessian) else plain


def learn(
    weight: torch.Tensor, stats: Any, scheme: Scheme | str, options: AutoRoundOptions | None = None
) -> tuple[Learned, list[float]]:
    """What is learned, and the loss before each step; arguments and errors as ``autoround``.

    The loss is the sum of the squared output errors over outputs, its mean over tokens, times 2.

    Chapter: Learned rounding.
    """
    scheme, options = Scheme.parse(scheme), options or AutoRoundOptions()
    _, hessian, grid = _prepare(weight, stats, scheme, options)
    return _descend(grid, hessian, stats, options)


class _Grid:
    """The weight and its grid, as functions of what is learned."""

    def __init__(self, w: torch.Tensor, scheme: Scheme, in_features: int) -> None:
        self.w, self.scheme, self.in_features = w, scheme, in_features
        self.block = scheme.granularity.block_shape(tuple(w.shape))
        self.low, self.high = block_range(w, self.block)
        self.shared = quantize(w, scheme).tensor_scale if scheme.has_tensor_scale else None
        assert isinstance(scheme.format, IntFormat)
        self.qmin, self.qmax = scheme.format.range(scheme.symmetric, scheme.full)

    def start(self) -> Learned:
        """Round-to-nearest."""
        one = torch.ones_like(self.low)
        return Learned(torch.zeros_like(self.w), one, one.clone())

    def restored(self, learned: Learned) -> torch.Tensor:
        """Ŵ (out_features, in_features), with gradients straight through what rounds."""
        low, high = self.low * learned.beta, self.high * learned.alpha
        scale, zero_point = scales.fit(low, high, self.scheme)
        stored, _ = scales.store(scale.detach(), self.scheme, self.shared)
        scale = _through(scale, scales.used(stored, self.shared))
        s = gran.expand(scale, self.block)
        y = gran.to_blocks(self.w, self.block)[0] / s + gran.to_blocks(learned.v, self.block)[0]
        y = _through(y, y.round())
        if zero_point is None:
            w_hat = y.clamp(self.qmin, self.qmax) * s
        else:
            exact = self.qmin - low.clamp(max=0) / scale
            z = gran.expand(_through(exact, zero_point.float()), self.block)
            w_hat = ((y + z).clamp(self.qmin, self.qmax) - z) * s
        restored: torch.Tensor = w_hat.reshape(self.w.shape)[:, : self.in_features]
        return restored

    def codes(self, learned: Learned) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Scales as they are stored, zero points, and the codes, int8 or uint8."""
        low, high = self.low * learned.beta, self.high * learned.alpha
        scale, zero_point = scales.fit(low, high, self.scheme)
        stored, _ = scales.store(scale, self.scheme, self.shared)
        s = gran.expand(scales.used(stored, self.shared), self.block)
        y = gran.to_blocks(self.w, self.block)[0] / s + gran.to_blocks(learned.v, self.block)[0]
        y = y.round()
        if zero_point is not None:
            y = y + gran.expand(zero_point, self.block).float()
        fmt: Any = self.scheme.format
        codes: torch.Tensor = fmt.encode(y, self.qmin, self.qmax).reshape(self.w.shape)
        return stored, zero_point, codes


def _prepare(
    weight: torch.Tensor, stats: Any, scheme: Scheme, options: AutoRoundOptions
) -> tuple[torch.Tensor, torch.Tensor, _Grid]:
    """The weight in float32, its Hessian, and its grid."""
    if weight.ndim != 2:
        raise QlabError(f"AutoRound takes a weight of 2 axes, got shape {tuple(weight.shape)}")
    if not isinstance(scheme.format, IntFormat):
        raise QlabError(
            f"method 'autoround' rounds to integers, not to '{scheme}': use a scheme such as "
            "'int4-g128', or method 'gptq'"
        )
    w = to_float32(weight.detach(), "weight").cpu()
    in_features = int(w.shape[1])
    checked_hessian(stats.hessian, in_features, getattr(stats, "name", ""))
    hessian = stats.hessian.detach().to("cpu", torch.float32)
    return w, hessian, _Grid(whole_blocks(w, scheme, options.pad), scheme, in_features)


def _descend(
    grid: _Grid, hessian: torch.Tensor, stats: Any, options: AutoRoundOptions
) -> tuple[Learned, list[float]]:
    """Signed gradient descent: the best that was met, and the loss before each step."""
    now = grid.start()
    best, least = now.clone(), float("inf")
    w = grid.w[:, : grid.in_features]
    random = torch.Generator().manual_seed(options.seed)
    first = options.lr or 1 / max(1, options.steps)
    others = options.range_lr or first
    moving = [(now.v, first)]
    if options.ranges:
        moving += [(now.alpha, others), (now.beta, others)]
    for one, _ in moving:
        one.requires_grad_(True)
    losses = []
    for step in range(options.steps):
        w_hat = grid.restored(now)
        delta = (w_hat - w).detach()
        product = hessian  # 2 / tokens · Xᵀ X
        if options.batch is not None:
            rows = stats.sample.to("cpu", torch.float32)
            x = rows[torch.randperm(len(rows), generator=random)[: options.batch]]
            product = x.T @ x * (2 / len(x))
        # L = tr(Δ H Δᵀ), so ∂L/∂Ŵ = 2 Δ H: the rest of the way back is torch's.
        gradient = delta @ product
        losses.append(float((gradient * delta).sum(dtype=torch.float64)))
        if losses[-1] < least:
            best, least = now.clone(), losses[-1]
        with torch.no_grad():
            found = torch.autograd.grad(w_hat, [one for one, _ in moving], 2 * gradient)
            for (one, length), g in zip(moving, found, strict=True):
                one -= length * (1 - step / options.steps) * g.sign()
            now.v.clamp_(-0.5, 0.5)
            now.alpha.clamp_(0, 1)
            now.beta.clamp_(0, 1)
    return best, losses


def _through(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The value of ``rounded`` with the gradient of ``exact``."""
    return exact + (rounded - exact).detach()


def _error(q: QTensor, w: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(Δ H Δᵀ)."""
    delta = q.dequantize().float().cpu() - w
    return float(((delta @ hessian) * delta).sum(dtype=torch.float64))
