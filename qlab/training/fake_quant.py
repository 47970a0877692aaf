"""Fake quantization: a tensor takes the values that its codes stand for, and stays trainable.

    forward    x̂ = (clip(round(x / s) + z, qmin, qmax) - z) · s
    backward   ∂L/∂x = ∂L/∂x̂ · m,    m = 1, or 1 where the code was not clipped and 0 elsewhere

Rounding has the derivative 0 almost everywhere, so nothing would be learned. The straight-through
estimator passes the gradient over it as if it were the identity. What is clipped no longer depends
on x, and with the clip mask (``clip=True``) it gets no gradient.

Sources: Bengio, Léonard and Courville 2013, arXiv 1308.3432, section 4 (straight through); Jacob et
al. 2018, arXiv 1712.05877, section 3 (training with simulated quantization).

Chapter: Quantization-aware training.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from qlab.activations import ActivationQuant
from qlab.core import IntFormat, QTensor, Scheme, from_params, quantize, scales
from qlab.core import granularity as gran
from qlab.core._array import dtype_name, to_float32
from qlab.core.learned import LearnedFormat
from qlab.core.qtensor import whole_blocks
from qlab.core.rounding import round_to_integer
from qlab.errors import QlabError


def fake_quantize(
    x: torch.Tensor,
    scheme: str | Scheme,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    *,
    clip: bool = True,
) -> torch.Tensor:
    """x̂ of ``x``, with the gradient of the straight-through estimator.

    The values are those of ``qlab.quantize(x, scheme).dequantize()``, bit for bit; where ``scale``
    is given, those of ``qlab.core.from_params``.

    Args:
        x: any shape and floating dtype; computed in float32.
        scheme: such as ``"int4-channel"``; any granularity of weights or activations.
        scale: float32, one a block, fixed beforehand; None: from the range of each block of ``x``.
        zero_point: int32, the shape of ``scale``, for asymmetric schemes with a fixed scale.
        clip: whether what is clipped gets no gradient (torch.fake_quantize does so).

    Returns: the shape and dtype of ``x``.

    Raises: QlabError for a scheme that cannot be trained, NaN or infinity (with its position),
        blocks that do not divide the shape, an asymmetric scheme with a scale and no zero point.

    Chapter: Quantization-aware training.
    """
    scheme = trainable(scheme)
    q = quantized(x, scheme, scale, zero_point)
    passes = inside(x.detach(), q) if clip else None
    result: torch.Tensor = StraightThrough.apply(x, q.dequantize(), passes)
    return result


class StraightThrough(torch.autograd.Function):
    """The value of ``x_hat``, the gradient of ``x`` where ``passes`` says so (None: everywhere).

    An autograd function, because ``x + (x_hat - x).detach()`` rounds twice and so is not x_hat.

    Source: Bengio, Léonard and Courville 2013, arXiv 1308.3432, section 4.
    Chapter: Quantization-aware training.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, x_hat: torch.Tensor, passes: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.passes = passes
        return x_hat.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        return grad if ctx.passes is None else grad * ctx.passes, None, None


def quantized(
    x: torch.Tensor,
    scheme: Scheme,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
) -> QTensor:
    """The QTensor of ``x`` by round-to-nearest: with these parameters, or those of its own range.

    Raises: as ``fake_quantize``.
    """
    x = x.detach()
    if scale is None:
        return quantize(x, scheme)
    if not scheme.symmetric and zero_point is None:
        raise QlabError(f"scheme '{scheme}' with a scale of its own needs a zero_point too")
    return from_params(
        whole_blocks(to_float32(x), scheme, pad=False),
        scale.detach(),
        None if zero_point is None else zero_point.detach(),
        scheme,
        dtype=dtype_name(x),
    )


def inside(x: torch.Tensor, q: QTensor) -> torch.Tensor:
    """Which elements of ``x`` were not clipped when it became ``q``: bool, the shape of ``x``.

    Integers: the rounded code lies in [qmin, qmax], as in torch.fake_quantize. Other formats:
    x / scale lies between the first and the last level.
    """
    low, high = code_range(q.scheme)
    y = scaled(x, q)
    if isinstance(q.scheme.format, IntFormat):
        y = round_to_integer(y)
    if q.zero_point is not None:
        block = q.scheme.granularity.block_shape(tuple(x.shape))
        y = y + gran.expand(q.zero_point.float(), block)
    return ((y >= low) & (y <= high)).reshape(x.shape)


def scaled(x: torch.Tensor, q: QTensor) -> torch.Tensor:
    """x / scale, float32, in the blocks of ``qlab.core.granularity.to_blocks``."""
    block = q.scheme.granularity.block_shape(tuple(x.shape))
    blocks, _ = gran.to_blocks(x.float(), block)
    y: torch.Tensor = blocks / gran.expand(scales.used(q.scale, q.tensor_scale), block)
    return y


def code_range(scheme: Scheme) -> tuple[float, float]:
    """The first and the last code in use; levels at scale 1 where the format is no integer."""
    fmt = scheme.format
    if isinstance(fmt, IntFormat):
        qmin, qmax = fmt.range(scheme.symmetric, scheme.full)
        return float(qmin), float(qmax)
    return fmt.min, fmt.max


def trainable(scheme: str | Scheme, learned_scale: bool = False) -> Scheme:
    """The scheme, if there is a gradient to train with.

    Args:
        learned_scale: the scale itself is to be learned.

    Raises: QlabError for fitted codebooks and parameters that the whole model shares; for a learned
        scale where there is none.
    """
    scheme = Scheme.parse(scheme)
    if isinstance(scheme.format, LearnedFormat):
        raise QlabError(
            f"scheme '{scheme}' cannot be trained: its codebook is fitted anew to every weight, "
            "and the fit has no gradient; use fixed levels, such as 'int4-channel' or 'nf4-g64'"
        )
    if scheme.granularity.kind == "global":
        raise QlabError(
            f"scheme '{scheme}' cannot be trained: its scale belongs to all layers at once; "
            f"use '{scheme.format.name}-tensor'"
        )
    if learned_scale and scheme.is_cast:
        raise QlabError(
            f"scheme '{scheme}' has no scale to learn: use method 'ste', or a format of 8 bits "
            "and fewer"
        )
    if learned_scale and scheme.has_tensor_scale:
        raise QlabError(
            f"scheme '{scheme}' has scales that depend on one another: use method 'ste'"
        )
    return scheme


class Quantizer(nn.Module):
    """What a FakeQuantLinear does to its weight or its input; one subclass a method.

    Attributes:
        scheme: format and granularity.
        method: the word by which ``prepare`` knows the subclass.
        learns: whether scale or range are parameters.
    """

    method: ClassVar[str] = ""
    learns: ClassVar[bool] = False

    def __init__(self, scheme: str | Scheme) -> None:
        super().__init__()
        self.scheme = trainable(scheme, learned_scale=self.learns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x̂, with a gradient."""
        raise NotImplementedError

    def params(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """scale (float32) and zero_point (int32), or None where they follow from ``x``."""
        raise NotImplementedError

    def qtensor(self, x: torch.Tensor) -> QTensor:
        """The QTensor whose ``dequantize()`` is what ``forward`` returns."""
        return quantized(x, self.scheme, *self.params())

    def activation_quant(self) -> ActivationQuant:
        """The same for ``QuantLinear``, of a quantizer of activations."""
        scale, zero_point = self.params()
        if scale is None:
            return ActivationQuant(self.scheme)
        zero = None if zero_point is None else zero_point.reshape(1, 1).clone()
        return ActivationQuant(self.scheme, scale.detach().reshape(1, 1).clone(), zero)

    def extra_repr(self) -> str:
        return f"{self.scheme}, {self.method}"


class StraightThroughQuantizer(Quantizer):
    """Method ``ste``: nothing is learned but ``x`` itself.

    Without a scale each call takes the range of what it is given. Then nothing is clipped (``full``
    and formats other than integers apart), and the clip mask is off.

    Args:
        scale, zero_point: fixed beforehand, as for activations with a calibrated range.
        clip: whether what is clipped gets no gradient; None: where the scale is fixed.

    Source: Jacob et al. 2018, arXiv 1712.05877, section 3.
    Chapter: Quantization-aware training.
    """

    method = "ste"

    def __init__(
        self,
        scheme: str | Scheme,
        scale: torch.Tensor | None = None,
        zero_point: torch.Tensor | None = None,
        *,
        clip: bool | None = None,
    ) -> None:
        super().__init__(scheme)
        self.clip = scale is not None if clip is None else clip
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def params(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.scale, self.zero_point

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, self.scheme, self.scale, self.zero_point, clip=self.clip)
