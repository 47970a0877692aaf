"""PACT: learn where to clip.

    y = clip(x, 0, α),     ŷ = round(y · (2^k - 1) / α) · α / (2^k - 1)

    ∂ŷ/∂α = 1 if x >= α, else 0          ∂ŷ/∂x = 1 if 0 <= x < α, else 0

The paper clips activations after a ReLU, which have no negative values: an unsigned scheme, such as
``uint4-tensor``. For signed numbers, weights included, the range here is [-α, α], and what is
clipped below moves α with the opposite sign. Unlike LSQ, the rounding error of what is not clipped
says nothing to α. The paper adds a penalty on α², which keeps it from growing: ``range_decay`` of
``TrainOptions``.

Source: Choi et al. 2018, arXiv 1805.06085, section 3, equations 1 to 3.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qlab.core import Scheme
from qlab.core import granularity as gran
from qlab.core.affine import TINY
from qlab.core.integers import IntFormat
from qlab.errors import QlabError
from qlab.training.fake_quant import Quantizer, code_range, quantized


def pact_quantize(x: torch.Tensor, alpha: torch.Tensor, scheme: str | Scheme) -> torch.Tensor:
    """x̂ with gradients for ``x`` and ``alpha``.

    Args:
        x: any shape and floating dtype; computed in float32.
        alpha: float32, positive, one a block: where the range ends.
        scheme: symmetric or unsigned integers.

    Raises: as ``fake_quantize``; and for a scheme whose range is neither [-α, α] nor [0, α].

    Chapter: Quantization-aware training.
    """
    result: torch.Tensor = _LearnedClip.apply(x, alpha, checked(scheme))
    return result


class _LearnedClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, alpha: torch.Tensor, scheme: Scheme) -> torch.Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.scheme = scheme
        return quantized(x, scheme, *alpha_params(alpha, scheme)).dequantize()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        x, alpha = ctx.saved_tensors
        block = ctx.scheme.granularity.block_shape(tuple(x.shape))
        v, axes = gran.to_blocks(x.float(), block)
        g, _ = gran.to_blocks(grad.float(), block)
        a = gran.expand(alpha, block)
        above = (v >= a).float()
        if ctx.scheme.symmetric:
            below, passes = (v <= -a).float(), v.abs() < a
        else:
            below, passes = torch.zeros_like(above), (v >= 0) & (v < a)
        grad_alpha = (g * (above - below)).sum(axes)
        return (g * passes).reshape(x.shape).to(x.dtype), grad_alpha, None


def alpha_params(alpha: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor | None]:
    """scale and zero_point of the range that ends at ``alpha``."""
    low, high = code_range(scheme)
    if scheme.symmetric:
        return alpha.detach() / (high if not scheme.full else (high - low) / 2), None
    scale = alpha.detach() / (high - low)
    return scale, torch.full_like(scale, low, dtype=torch.int32)


def checked(scheme: str | Scheme) -> Scheme:
    """The scheme, if PACT can clip it."""
    scheme = Scheme.parse(scheme)
    fmt = scheme.format
    if not isinstance(fmt, IntFormat) or (fmt.signed and not scheme.symmetric):
        raise QlabError(
            f"scheme '{scheme}': PACT learns one end of a range, [-α, α] of symmetric integers or "
            "[0, α] of unsigned ones; use method 'range' or 'lsq'"
        )
    return scheme


class PACT(Quantizer):
    """Method ``pact``: α is a parameter, one a block.

    Args:
        scale: where α starts, in steps: the scale of a range that reaches to α.
        zero_point: ignored; the range begins at 0 or at -α.

    Chapter: Quantization-aware training.
    """

    method = "pact"
    learns = True

    def __init__(
        self,
        scheme: str | Scheme,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None = None,
        *,
        count: int = 1,
    ) -> None:
        super().__init__(checked(scheme))
        one, _ = alpha_params(torch.ones(()), self.scheme)
        self.alpha = nn.Parameter(scale.detach().float() / one)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pact_quantize(x, self._positive(), self.scheme)

    def params(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return alpha_params(self._positive(), self.scheme)

    def _positive(self) -> torch.Tensor:
        return self.alpha.abs().clamp_min(TINY)
