"""Where a training went wrong: the first layer whose output is not finite.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qlab.errors import QlabError


def finite(x: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(torch.isfinite(x).all())


@torch.no_grad()
def first_bad(model: nn.Module, ids: torch.Tensor) -> str:
    """What in the model is not finite first, on this batch: a parameter or the output of a layer.

    Args:
        ids: int64 (rows, length).
    """
    for name, p in model.named_parameters():
        if not finite(p):
            return f"parameter '{name}'"
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            # A layer inside another ends before it, so the first one is the innermost.
            parts = output if isinstance(output, tuple) else (output,)
            bad = (
                isinstance(p, torch.Tensor) and p.is_floating_point() and not finite(p)
                for p in parts
            )
            if not found and any(bad):
                found.append(name)

        return look

    # hook(name) makes a function for each name; a bare closure would see only the last.
    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if name]
    try:
        model(input_ids=ids)
    except QlabError as error:  # a FakeQuantLinear refuses and names itself
        return str(error)
    finally:
        for handle in handles:
            handle.remove()
    return f"output of layer '{found[0]}'" if found else "loss"


def bad_gradient(model: nn.Module) -> str:
    """The parameter nearest to the loss whose gradient is not finite; the ones before inherit it.

    Returns: its name, or "".
    """
    bad = [
        name for name, p in model.named_parameters() if p.grad is not None and not finite(p.grad)
    ]
    return bad[-1] if bad else ""
