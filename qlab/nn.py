"""QuantLinear, a linear layer on quantized weights, and the surgery that puts it into a model.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qlab.activations import ActivationQuant, integer_codes, integer_linear
from qlab.calibrate.layers import linear_layers as linear_layers  # re-exported
from qlab.core import QTensor, Scheme
from qlab.core.parts import PARTS, from_parts, parts_of
from qlab.errors import QlabError


class QuantLinear(nn.Module):
    """y = x Ŵᵀ + b with Ŵ kept as packed codes.

    This is the reference kernel: it dequantizes the whole weight and multiplies, so it is exact and
    slow. It saves memory at rest, not time.

    With ``activations`` the input is quantized too. Where the codes of both are integers, they are
    multiplied as integers (``integer_linear``); else both are dequantized and multiplied.

    Buffers: ``packed`` uint8, ``scale`` (or, where the scales are quantized too, ``scale_codes``
    uint8, ``scale_absmax`` and ``scale_offset``), ``zero_point`` (if asymmetric), ``tensor_scale``
    (of schemes that have one), ``bias`` (if any), ``input_scale`` and
    ``input_zero_point`` (if the input has a static range).
    """

    def __init__(
        self,
        weight: QTensor,
        bias: torch.Tensor | None = None,
        activations: ActivationQuant | None = None,
    ) -> None:
        super().__init__()
        if len(weight.shape) != 2:
            raise QlabError(f"QuantLinear needs a matrix, got shape {weight.shape}")
        self.out_features, self.in_features = weight.shape
        self.scheme: Scheme = weight.scheme
        self.dtype_name = weight.dtype
        parts = parts_of(weight)
        for part in PARTS:
            self.register_buffer(part, parts.get(part))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.input_scheme = None if activations is None else activations.scheme
        self.register_buffer("input_scale", None if activations is None else activations.scale)
        self.register_buffer(
            "input_zero_point", None if activations is None else activations.zero_point
        )

    @property
    def activations(self) -> ActivationQuant | None:
        """How the input is quantized (shares the buffers); None where it is not."""
        if self.input_scheme is None:
            return None
        return ActivationQuant(self.input_scheme, self.input_scale, self.input_zero_point)

    @property
    def qweight(self) -> QTensor:
        """The weight as a QTensor (shares the buffers)."""
        parts = {part: getattr(self, part) for part in PARTS}
        shape = (self.out_features, self.in_features)
        return from_parts(parts, self.scheme, shape, self.dtype_name)

    @property
    def weight(self) -> torch.Tensor:
        """Ŵ, dequantized, (out_features, in_features)."""
        w: torch.Tensor = self.qweight.dequantize()
        return w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.activations is None:
            return nn.functional.linear(x, self.weight.to(x.dtype), bias)
        q = self.activations.quantize(x.reshape(-1, self.in_features))
        if integer_codes(q.scheme) and integer_codes(self.scheme):
            y = integer_linear(q, self.qweight)
        else:
            y = q.dequantize().float() @ self.weight.float().T
        y = y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)
        return y if bias is None else y + bias

    def extra_repr(self) -> str:
        inputs = "" if self.activations is None else f", activations={self.activations}"
        return f"{self.in_features}, {self.out_features}, scheme={self.scheme}{inputs}"


def weight_of(layer: Any) -> torch.Tensor:
    """The weight as (out_features, in_features)."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.T.contiguous() if type(layer).__name__ == "Conv1D" else weight


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` where the module ``name`` is."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, layer)


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """(name, layer) of every QuantLinear, in the model's order."""
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            yield name, layer


def dequantize_model(model: nn.Module) -> nn.Module:
    """A copy in which every QuantLinear is an ordinary linear layer with the weight Ŵ.

    Same outputs, faster: for measuring quality, where the bytes do not matter. A layer whose input
    is quantized too stays as it is.
    """
    if not any(True for _ in quant_layers(model)):
        return model
    plain = copy.deepcopy(model)
    for name, layer in list(quant_layers(plain)):
        if layer.activations is not None:
            continue
        replace_layer(plain, name, plain_layer(layer.qweight, layer.bias))
    return plain


def plain_layer(weight: QTensor | torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """An ordinary linear layer with a weight (out_features, in_features), or with Ŵ."""
    dense = weight.dequantize() if isinstance(weight, QTensor) else weight.contiguous()
    out_features, in_features = dense.shape
    with torch.device("meta"):
        linear = nn.Linear(in_features, out_features, bias=bias is not None)
    linear.weight = nn.Parameter(dense, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
