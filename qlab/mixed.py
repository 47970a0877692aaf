"""Int8MixedLinear: the layer of LLM.int8(), which takes its input apart while the model runs.

Chapter: Why large models break.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from qlab.activations import ActivationQuant
from qlab.core import QTensor, Scheme
from qlab.errors import QlabError
from qlab.methods.llm_int8 import THRESHOLD, decompose
from qlab.nn import QuantLinear, quant_layers, replace_layer


class Int8MixedLinear(QuantLinear):
    """y = x_O Ŵ_Oᵀ + (the rest as a product of int8 codes) + b.

    The outlier columns O of the input, those with a magnitude of ``threshold`` or more, are
    multiplied in the input's own precision by the dequantized weights, as bitsandbytes does; the
    paper keeps those weights in float16. All other columns are int8 on both sides.

    Attributes:
        threshold: α; 0 for no decomposition.
        outlier_columns: how many columns of the last input stayed in high precision.

    Source: Dettmers et al. 2022, arXiv 2208.07339, equation 8.

    Chapter: Why large models break.
    """

    bias: torch.Tensor | None

    def __init__(
        self, weight: QTensor, bias: torch.Tensor | None = None, threshold: float = THRESHOLD
    ) -> None:
        if weight.scheme.name != "int8-channel":
            raise QlabError(
                f"Int8MixedLinear multiplies int8 codes with a scale for each row: quantize to "
                f"'int8-channel', not '{weight.scheme}'"
            )
        super().__init__(weight, bias, ActivationQuant(Scheme.parse("int8-token")))
        self.threshold = threshold
        self.outlier_columns = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x."""
        rows = x.reshape(-1, self.in_features)
        parts = decompose(rows, self.threshold)
        weight = self.qweight
        codes, scale = weight.codes, weight.scale.flatten()
        # Sums of products of int8 are whole numbers below 2^53: float64 holds the int32 that a
        # processor with integer units would have, on any machine.
        sums = parts.codes.double() @ codes.double().T
        y: torch.Tensor = sums.float() * (parts.absmax[:, None] / 127 * scale)
        self.outlier_columns = len(parts.outliers)
        if self.outlier_columns:
            exact = codes[:, parts.outliers].float() * scale[:, None]
            y += rows[:, parts.outliers].float() @ exact.T
        y = y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}"


def _mixed(layer: QuantLinear, threshold: float) -> Int8MixedLinear:
    bias: Any = layer.bias
    return Int8MixedLinear(layer.qweight, bias, threshold)


def with_outliers_apart(model: nn.Module, threshold: float = THRESHOLD) -> nn.Module:
    """A copy in which every int8-channel layer takes outlier columns apart (LLM.int8()).

    Args:
        model: what ``quantize_model(model, "llm_int8", "int8-channel")`` returned.
        threshold: α, 0 or more; 0 quantizes all columns.

    Raises: QlabError for a model without such layers.

    Chapter: Why large models break.
    """
    mixed = copy.deepcopy(model)
    found = False
    for name, layer in list(quant_layers(mixed)):
        if layer.scheme.name == "int8-channel":
            replace_layer(mixed, name, _mixed(layer, threshold))
            found = True
    if not found:
        raise QlabError(
            "the model has no int8-channel layers: quantize it first, by "
            "quantize_model(model, 'llm_int8', 'int8-channel')"
        )
    return mixed
