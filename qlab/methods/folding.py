"""Folding: scale the input of linear layers, and take the scale back where that input is made.

    Y = (X diag(s)⁻¹) · (diag(s) Wᵀ)

The division costs nothing while the model runs: the norm that produces X, or the layer before, is
divided instead. SmoothQuant and AWQ choose s differently and fold it alike.

Source: Xiao et al. 2022, arXiv 2211.10438, section 4, equation 3.

Chapter: Why large models break.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qlab.calibrate.blocks import Block
from qlab.calibrate.layers import is_linear
from qlab.errors import QlabError


@dataclass(frozen=True)
class FoldGroup:
    """Layers of one block that read the same input, and what produces it.

    Attributes:
        source: name within the block of the norm, or of ``up_proj``, that takes the factors 1 / s.
        layers: names within the block of the linear layers that take the factors s.
    """

    source: str
    layers: tuple[str, ...]


def fold_groups(block: Block, down: bool = False) -> list[FoldGroup]:
    """What can be smoothed in a block: each norm with the linear layers that read its output.

    ``down`` adds each ``up_proj`` with its ``down_proj``. These come first: they change the rows
    of ``up_proj``, and so the columns that are weighed against what a norm produces.

    Chapter: Why large models break.
    """
    norms = [FoldGroup(g.norm, g.layers) for g in block.groups() if g.norm is not None]
    return (_gated(block.module) if down else []) + norms


@torch.no_grad()
def fold(block: nn.Module, group: FoldGroup, s: torch.Tensor) -> None:
    """Divide what a group reads by ``s`` (features,) and multiply its weights by it, in place.

    Chapter: Why large models break.
    """
    source: Any = block.get_submodule(group.source)
    rows = s if source.weight.ndim == 1 else s[:, None]  # of a norm, or of up_proj
    source.weight.copy_(source.weight.float() / rows)
    if getattr(source, "bias", None) is not None:
        source.bias.copy_(source.bias.float() / s)
    for name in group.layers:
        layer: Any = block.get_submodule(name)
        columns = s[:, None] if type(layer).__name__ == "Conv1D" else s
        layer.weight.copy_(layer.weight.float() * columns)


def _gated(block: nn.Module) -> list[FoldGroup]:
    """up_proj -> down_proj of each gated feed-forward layer: down_proj reads act(gate) · up."""
    groups = []
    for name, module in block.named_modules():
        parts = [getattr(module, part, None) for part in ("gate_proj", "up_proj", "down_proj")]
        if all(part is not None and is_linear(part) for part in parts):
            prefix = f"{name}." if name else ""
            groups.append(FoldGroup(f"{prefix}up_proj", (f"{prefix}down_proj",)))
    return groups


def check_unchanged(before: torch.Tensor, after: torch.Tensor, name: str) -> None:
    """Raise if a block's output moved by more than rounding explains.

    Allowed is the root of the precision, relative to the largest output: 3e-4 in float32, where
    rounding makes about 1e-6 and a norm that something else reads too changes all.
    """
    allowed = torch.finfo(before.dtype).eps ** 0.5 * float(before.abs().max())
    if not float((after - before).abs().max()) <= allowed:
        raise QlabError(
            f"smoothing changed the output of block '{name}': something else reads its norms too, "
            "as where the norm stands after the layer (opt-350m), or their weight is no plain "
            "factor (Gemma); use 'llm_int8', which changes no norm"
        )
