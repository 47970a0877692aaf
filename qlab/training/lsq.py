"""LSQ: the step size is a parameter like any other.

    v̂ = round(clip(v / s, -Q_N, Q_P)) · s

    ∂v̂/∂s = -v/s + round(v/s)   if -Q_N < v/s < Q_P
             -Q_N               if v/s <= -Q_N
              Q_P               if v/s >= Q_P

    ∂v̂/∂v = 1 if -Q_N < v/s < Q_P, else 0

The gradient of s is multiplied by g = 1 / sqrt(N · Q_P), N weights a step size, so that a step size
moves in proportion to its size about as fast as a weight does. s starts at 2 · mean|v| / sqrt(Q_P).

LSQ+ adds an offset; here it is the zero point z, a real number that is rounded in the forward pass:

    x̂ = (clip(round(x / s) + z, qmin, qmax) - z) · s,     ∂x̂/∂z = -s where x is clipped, else 0

Sources: Esser et al. 2020, arXiv 1902.08153, section 2; Bhalgat et al. 2020, arXiv 2004.09576,
section 3.1 (LSQ+).

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from qlab.core import Scheme, scales
from qlab.core import granularity as gran
from qlab.core.affine import TINY
from qlab.training.fake_quant import Quantizer, code_range, inside, quantized, scaled


def lsq_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    scheme: str | Scheme,
    *,
    grad_scale: float = 1.0,
    by_code: bool = False,
) -> torch.Tensor:
    """x̂ with gradients for ``x``, ``scale`` and ``zero_point``.

    Args:
        x: any shape and floating dtype; computed in float32.
        scale: float32, positive, one a block.
        zero_point: float32 of the same shape, rounded here (and clipped to the codes); None where
            the scheme is symmetric.
        grad_scale: g, by which the gradients of scale and zero_point are multiplied.
        by_code: what counts as clipped. False, the paper: x / scale outside of the range. True,
            torch's learnable fake quantization: the rounded code outside. They differ for what
            lies in the last half step before the border.

    Raises: as ``fake_quantize``.

    Chapter: Quantization-aware training.
    """
    result: torch.Tensor = _LearnedStep.apply(
        x, scale, zero_point, Scheme.parse(scheme), grad_scale, by_code
    )
    return result


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        scheme: Scheme,
        grad_scale: float,
        by_code: bool,
    ) -> torch.Tensor:
        zero = None if zero_point is None else rounded(zero_point, scheme)
        q = quantized(x, scheme, scale, zero)
        x_hat = q.dequantize()
        ctx.save_for_backward(x)
        ctx.q, ctx.x_hat, ctx.grad_scale, ctx.by_code = q, x_hat, grad_scale, by_code
        return x_hat

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        q, scheme = ctx.q, ctx.q.scheme
        block = scheme.granularity.block_shape(tuple(x.shape))
        low, high = code_range(scheme)
        y = scaled(x, q)
        if q.zero_point is not None:
            z = gran.expand(q.zero_point.float(), block)
            low, high = low - z, high - z
        if ctx.by_code:
            passes, _ = gran.to_blocks(inside(x, q), block)
        else:
            passes = (y > low) & (y < high)
        used = gran.expand(scales.used(q.scale, q.tensor_scale), block)
        level = gran.to_blocks(ctx.x_hat.float(), block)[0] / used  # round(x / s), or the border
        g, axes = gran.to_blocks(grad.float(), block)
        grad_x = (g * passes).reshape(x.shape).to(x.dtype)
        of_scale = (g * torch.where(passes, level - y, level)).sum(axes) * ctx.grad_scale
        of_zero = None
        if q.zero_point is not None:
            of_zero = -(g * ~passes * used).sum(axes) * ctx.grad_scale
        return grad_x, of_scale, of_zero, None, None, None


def rounded(zero_point: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The code nearest to a real zero point, int32."""
    low, high = code_range(scheme)
    return zero_point.detach().round().clamp(low, high).to(torch.int32)


def first_step_size(v: torch.Tensor, scheme: str | Scheme) -> torch.Tensor:
    """2 · mean|v| / sqrt(Q_P), float32, one a block: where LSQ starts.

    Source: Esser et al. 2020, arXiv 1902.08153, section 2.1.
    """
    scheme = Scheme.parse(scheme)
    block = scheme.granularity.block_shape(tuple(v.shape))
    blocks, axes = gran.to_blocks(v.detach().float().abs(), block)
    step = 2 * blocks.mean(axes) / math.sqrt(code_range(scheme)[1])
    # A block of zeros has no step size; 1 is what qlab.quantize gives it.
    return torch.where(step == 0, torch.ones_like(step), step.clamp_min(TINY))


class LSQ(Quantizer):
    """Method ``lsq``: the scale, and the zero point of asymmetric integers, are parameters.

    Args:
        scale, zero_point: where they start, one a block.
        count: N, elements that share a step size (of an activation: its features).

    Chapter: Quantization-aware training.
    """

    method = "lsq"
    learns = True

    def __init__(
        self,
        scheme: str | Scheme,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None = None,
        *,
        count: int = 1,
    ) -> None:
        super().__init__(scheme)
        self.scale = nn.Parameter(scale.detach().float().clone())
        zero = None if zero_point is None else nn.Parameter(zero_point.detach().float().clone())
        self.register_parameter("zero_point", zero)
        low, high = code_range(self.scheme)
        # Q_P counts the levels above zero; with a zero point they may all lie there.
        self.grad_scale = 1 / math.sqrt(count * (high if self.scheme.symmetric else high - low))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lsq_quantize(
            x, self._positive(), self.zero_point, self.scheme, grad_scale=self.grad_scale
        )

    def params(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        zero = None if self.zero_point is None else rounded(self.zero_point, self.scheme)
        return self._positive().detach(), zero

    def _positive(self) -> torch.Tensor:
        """A step of the optimizer can carry a small scale past 0; its magnitude still counts."""
        return self.scale.abs().clamp_min(TINY)
