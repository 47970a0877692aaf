"""LoRA: a frozen layer, quantized or not, and a small matrix of low rank that learns.

    y = x Ŵᵀ + b + (α/r) · dropout(x) Aᵀ Bᵀ        A (r, in), B (out, r)

A begins at random and B at zero, so that the model begins as it was. Over a base in NF4 with doubly
quantized scales this is QLoRA.

Source: Hu et al. 2021 (arXiv 2106.09685), section 4; Dettmers et al. 2023 (arXiv 2305.14314),
section 3.

Chapter: Fine-tuning a quantized model: QAF and QLoRA.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qlab.calibrate.layers import is_linear
from qlab.errors import QlabError
from qlab.nn import QuantLinear, replace_layer, weight_of


class FrozenMatmul(torch.autograd.Function):
    """x Ŵᵀ + b for a QuantLinear whose weight does not learn.

    Plain autograd would keep the dequantized Ŵ until the backward pass: as much memory as the
    quantization has saved. Here the codes are kept, and Ŵ is made a second time.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantLinear) -> torch.Tensor:
        ctx.layer = layer
        y: torch.Tensor = layer(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad_y,) = grads
        return grad_y @ ctx.layer.weight.to(grad_y.dtype), None


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained correction of low rank.

    Args:
        base: ``QuantLinear``, ``nn.Linear`` or the ``Conv1D`` of GPT-2; its parameters are frozen.
        rank: r, of the correction.
        alpha: the correction is multiplied by ``alpha / rank``, so that the learning rate need not
            change with the rank.
        dropout: share of the inputs of the correction that is dropped in training.

    Parameters: ``lora_A`` (rank, in_features), uniform within ±1/√in_features; ``lora_B``
        (out_features, rank), zeros. Both float32.

    Raises: QlabError for a layer of another kind, a base with quantized inputs (rounding passes no
        gradient), a rank, alpha or dropout out of range.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """

    def __init__(self, base: Any, rank: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
        super().__init__()
        if not isinstance(base, QuantLinear) and not is_linear(base):
            raise QlabError(f"LoRA goes on a linear layer, not on {type(base).__name__}")
        if isinstance(base, QuantLinear) and base.activations is not None:
            raise QlabError(
                "the layer rounds its inputs, and rounding passes no gradient: quantize the "
                "weights only (activations=None) before adding LoRA"
            )
        if type(base).__name__ == "Conv1D":
            self.in_features, self.out_features = base.weight.shape
        else:
            self.in_features, self.out_features = base.in_features, base.out_features
        largest = min(self.out_features, self.in_features)
        if not 1 <= rank <= largest:
            raise QlabError(
                f"rank {rank} for a weight of {self.out_features} x {self.in_features}: choose one "
                f"from 1 to {largest}"
            )
        if not (math.isfinite(alpha) and alpha > 0):
            raise QlabError(f"alpha is {alpha}: choose a number above 0, such as 2 · rank")
        if not 0 <= dropout < 1:
            raise QlabError(f"dropout is {dropout}: choose a share from 0 to below 1")
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        bound = 1 / math.sqrt(self.in_features)
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        self.train(base.training)  # a model in evaluation mode must not begin to drop inputs

    @property
    def scaling(self) -> float:
        """α/r."""
        return self.alpha / self.rank

    @property
    def delta(self) -> torch.Tensor:
        """What the adapter adds to the weight, (α/r) B A, (out_features, in_features)."""
        return (self.lora_B @ self.lora_A) * self.scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x."""
        if isinstance(self.base, QuantLinear):
            y = FrozenMatmul.apply(x, self.base)  # type: ignore[no-untyped-call]
        else:
            y = self.base(x)
        z = x.to(self.lora_A.dtype)
        if self.dropout:
            z = nn.functional.dropout(z, self.dropout, self.training)
        low = nn.functional.linear(z, self.lora_A)
        out: torch.Tensor = y + (nn.functional.linear(low, self.lora_B) * self.scaling).to(y.dtype)
        return out

    def merged(self) -> nn.Linear:
        """An ordinary linear layer with the weight Ŵ + (α/r) B A, in the dtype of Ŵ."""
        weight = weight_of(self.base)
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.base.bias is not None)
        both = (weight.float() + self.delta.detach().float()).to(weight.dtype)
        if not bool(torch.isfinite(both).all()):
            raise QlabError("the adapter holds NaN or infinity: train again with a lower rate")
        linear.weight = nn.Parameter(both, requires_grad=False)
        if self.base.bias is not None:
            linear.bias = nn.Parameter(self.base.bias.detach().clone(), requires_grad=False)
        return linear

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"


def add_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    *,
    skip: tuple[str, ...] = ("lm_head",),
    seed: int = 0,
) -> nn.Module:
    """A copy of the model with an adapter on linear layers, and everything else frozen.

    Args:
        model: quantized by ``qlab.quantize_model`` or not; left as it is.
        rank, alpha, dropout: of each adapter; see ``LoraLinear``.
        targets: last names of layers, such as ``("q_proj", "v_proj")``, or longer ends of their
            names; None for every linear layer, which QLoRA found to matter more than the rank.
        skip: last names that None leaves out.
        seed: of the adapters' first values.

    Raises: QlabError if a target fits no linear layer, or the model has adapters already.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    if any(True for _ in lora_layers(model)):
        raise QlabError("the model has LoRA adapters already: merge them first, or train these")
    small = copy.deepcopy(model)
    layers = [(n, m) for n, m in small.named_modules() if _adaptable(m)]
    if targets is None:
        chosen = [(n, m) for n, m in layers if n.rpartition(".")[2] not in skip]
    else:
        for target in targets:
            if not any(_ends(n, target) for n, _ in layers):
                last = sorted({n.rpartition(".")[2] for n, _ in layers})
                raise QlabError(
                    f"no linear layer is called '{target}': there are {', '.join(last)}"
                )
        chosen = [(n, m) for n, m in layers if any(_ends(n, t) for t in targets)]
    if not chosen:
        raise QlabError("the model has no linear layers for LoRA to go on")
    small.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in chosen:
            try:
                replace_layer(small, name, LoraLinear(layer, rank, alpha, dropout))
            except QlabError as error:
                raise QlabError(f"layer '{name}': {error}") from None
    return small


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """(name, layer) of every LoraLinear, in the model's order."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            yield name, layer


def merge(model: nn.Module) -> nn.Module:
    """A copy in which each adapter is added to its layer's weight: plain floating-point layers.

    The outputs are those of the model with adapters, up to rounding. A quantized layer without an
    adapter stays quantized. To have all in few bits again, quantize the result: what that costs is
    measured in the chapter.

    Raises: QlabError if the model has no adapters, or one holds NaN.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    names = [name for name, _ in lora_layers(model)]
    if not names:
        raise QlabError("the model has no LoRA adapters to merge")
    whole = copy.deepcopy(model)
    for name in names:
        layer = whole.get_submodule(name)
        assert isinstance(layer, LoraLinear)
        try:
            replace_layer(whole, name, layer.merged())
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
    return whole


def _adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, QuantLinear) or is_linear(layer)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
