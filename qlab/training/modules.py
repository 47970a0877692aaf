"""FakeQuantLinear: a linear layer that computes with fake-quantized weights, and learns.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from qlab.errors import QlabError
from qlab.nn import QuantLinear
from qlab.training.fake_quant import Quantizer, StraightThrough


class FakeQuantLinear(nn.Module):
    """y = x̂ Ŵᵀ + b; the parameter is W, in full precision, and gradients reach it.

    Without a quantizer of the input, training, evaluation and the converted layer compute the same
    numbers. With one, the converted layer multiplies integer codes (``qlab.nn.QuantLinear``), which
    rounds sums otherwise than floating point does: evaluation takes its very numbers, with the
    gradient of the floating-point product; training takes the product alone, which is faster.

    Args:
        weight: (out_features, in_features), becomes a parameter as it is.
        bias: (out_features,) or None.
        quantizer: of the weight.
        inputs: of the input, or None.
        name: in its model, for messages.

    Parameters: ``weight``, ``bias``, and what the quantizers learn (``quantizer.*``, ``inputs.*``).

    Chapter: Quantization-aware training.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        quantizer: Quantizer,
        inputs: Quantizer | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise QlabError(f"FakeQuantLinear needs a matrix, got shape {tuple(weight.shape)}")
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.quantizer, self.inputs, self.name = quantizer, inputs, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x.

        Raises: QlabError naming the layer, for NaN or infinity in its weight or input.
        """
        try:
            if self.inputs is None:
                return nn.functional.linear(x, self.fake_weight().to(x.dtype), self._bias(x))
            exact = None if self.training else self.convert()(x.detach())
            if exact is not None and not torch.is_grad_enabled():
                return exact
            x_hat = self.inputs(x.reshape(-1, self.in_features)).reshape(x.shape)
            y = nn.functional.linear(x_hat, self.fake_weight().to(x.dtype), self._bias(x))
            return y if exact is None else StraightThrough.apply(y, exact, None)
        except QlabError as error:
            raise QlabError(f"layer '{self.name}': {error}") from None

    def fake_weight(self) -> torch.Tensor:
        """Ŵ, with gradients to the weight and to what its quantizer learns."""
        w_hat: torch.Tensor = self.quantizer(self.weight)
        return w_hat

    @torch.no_grad()
    def convert(self) -> QuantLinear:
        """The same layer on packed codes."""
        activations = None if self.inputs is None else self.inputs.activation_quant()
        return QuantLinear(self.quantizer.qtensor(self.weight), self.bias, activations)

    def _bias(self, x: torch.Tensor) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


def fake_layers(model: nn.Module) -> Iterator[tuple[str, FakeQuantLinear]]:
    """(name, layer) of every FakeQuantLinear, in the model's order."""
    for name, layer in model.named_modules():
        if isinstance(layer, FakeQuantLinear):
            yield name, layer
