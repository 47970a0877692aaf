"""QuantLinear, a linear layer on quantized weights, and the surgery that puts it into a model.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qlab.core import QTensor, Scheme
from qlab.errors import QlabError


class QuantLinear(nn.Module):
    """y = x Ŵᵀ + b with Ŵ kept as packed codes.

    This is the reference kernel: it dequantizes the whole weight and multiplies, so it is exact and
    slow. It saves memory at rest, not time.

    Buffers: ``packed`` uint8, ``scale``, ``zero_point`` (if asymmetric), ``bias`` (if any).
    """

    def __init__(self, weight: QTensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        if len(weight.shape) != 2:
            raise QlabError(f"QuantLinear needs a matrix, got shape {weight.shape}")
        self.out_features, self.in_features = weight.shape
        self.scheme: Scheme = weight.scheme
        self.dtype_name = weight.dtype
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def qweight(self) -> QTensor:
        """The weight as a QTensor (shares the buffers)."""
        return QTensor(
            self.packed,
            self.scale,
            self.zero_point,
            self.scheme,
            (self.out_features, self.in_features),
            self.dtype_name,
        )

    @property
    def weight(self) -> torch.Tensor:
        """Ŵ, dequantized, (out_features, in_features)."""
        w: torch.Tensor = self.qweight.dequantize()
        return w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, scheme={self.scheme}"


def linear_layers(
    model: nn.Module, skip: tuple[str, ...] = ("lm_head",)
) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every linear layer, in the model's order.

    Counts ``nn.Linear`` and the ``Conv1D`` of GPT-2 in transformers (a linear layer whose weight is
    stored transposed). A layer is skipped if its last name is in ``skip``.
    """
    for name, layer in model.named_modules():
        if name.rsplit(".", 1)[-1] not in skip and is_linear(layer):
            yield name, layer


def is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


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

    Same outputs, faster: for measuring quality, where the bytes do not matter.
    """
    if not any(True for _ in quant_layers(model)):
        return model
    plain = copy.deepcopy(model)
    for name, layer in list(quant_layers(plain)):
        with torch.device("meta"):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight = nn.Parameter(layer.weight, requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias, requires_grad=False)
        replace_layer(plain, name, linear)
    return plain
