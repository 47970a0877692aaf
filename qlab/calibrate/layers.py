"""Which modules of a model are linear layers.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


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
    """Whether ``layer`` computes x Wᵀ + b."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
