"""How far training has carried a model from the one that it began with.

    weights   ‖W' - W‖ / ‖W‖        over all layers that were trained, W' the trained parameters
    codes     the share of weights that are rounded to another level than before
    outputs   ‖H' - H‖ / ‖H‖        H: the last hidden states of the same tokens

Two ways to live with few bits can be told apart by them: repair keeps most of the old model, and
moves a few weights so that errors cancel; rebuilding leaves the old model behind.

Source: the question is that of Liu et al., "ParetoQ: Scaling Laws in Extremely Low-bit LLM
Quantization", 2025 (arXiv 2502.02631), which measures such a distance between weights.

Chapter: Down to 1.58 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from qlab.core import from_params
from qlab.errors import QlabError
from qlab.nn import linear_layers, weight_of
from qlab.training.modules import fake_layers


def weight_change(before: Any, after: Any) -> float:
    """‖W' - W‖ / ‖W‖ over the layers of ``after`` that are fake-quantized.

    Args:
        before: the model that ``after`` was prepared from.
        after: as ``prepare`` made it, trained.

    Raises: QlabError if ``after`` has no fake-quantized layers, or ``before`` lacks one of them.

    Chapter: Down to 1.58 bits.
    """
    trained = {name: layer.weight.detach() for name, layer in fake_layers(after)}
    if not trained:
        raise QlabError("the model has no fake-quantized layers: call qlab.training.prepare first")
    old = {name: weight_of(layer) for name, layer in linear_layers(before) if name in trained}
    if missing := trained.keys() - old.keys():
        raise QlabError(f"layer '{min(missing)}' is not in the model to compare with")
    return _relative([(old[name], new) for name, new in trained.items()])


def rounding_error(model: Any, fake: Any) -> float:
    """‖Ŵ - W‖ / ‖W‖: what rounding alone does to the weights, before any training.

    Args:
        model: in full precision.
        fake: as ``prepare`` made it from ``model``; trained or not, its quantizers are given the
            weights of ``model``.

    Chapter: Down to 1.58 bits.
    """
    old = {name: weight_of(layer) for name, layer in linear_layers(model)}
    with torch.no_grad():
        pairs = [(old[name], layer.quantizer(old[name])) for name, layer in fake_layers(fake)]
    return _relative(pairs)


@torch.no_grad()
def codes_change(model: Any, fake: Any) -> float:
    """The share of weights whose rounded value lies at another level than before training.

    Levels are those that the quantizers give the old weights. Where training moved the range of a
    row, the new values are counted at the nearest old level.

    Args:
        model: in full precision, as ``fake`` was prepared from it.
        fake: trained.

    Chapter: Down to 1.58 bits.
    """
    old = {name: weight_of(layer) for name, layer in linear_layers(model)}
    changed, count = 0, 0
    for name, layer in fake_layers(fake):
        before = layer.quantizer.qtensor(old[name])
        after = layer.quantizer.qtensor(layer.weight).dequantize()
        now = from_params(after, before.scale, before.zero_point, before.scheme)
        changed += int((torch.as_tensor(now.codes) != torch.as_tensor(before.codes)).sum())
        count += after.numel()
    return changed / count


@torch.no_grad()
def output_change(before: Any, after: Any, rows: Sequence[torch.Tensor]) -> float:
    """‖H' - H‖ / ‖H‖, H the hidden states that reach ``lm_head``.

    Args:
        before, after: transformers decoders of the same width.
        rows: int64 (batch, length) each, token ids.

    Raises: QlabError without rows.

    Chapter: Down to 1.58 bits.
    """
    if not rows:
        raise QlabError("no tokens to compare hidden states on: give at least one row")

    def hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model(ids, output_hidden_states=True).hidden_states[-1]
        return states

    modes = before.training, after.training
    try:
        before.eval(), after.eval()
        return _relative([(hidden(before, ids), hidden(after, ids)) for ids in rows])
    finally:
        before.train(modes[0]), after.train(modes[1])


def _relative(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """‖new - old‖ / ‖old‖ over all pairs (old, new), summed in float64."""
    moved = sum(float((new.double() - old.double()).square().sum()) for old, new in pairs)
    return math.sqrt(moved / sum(float(old.double().square().sum()) for old, _ in pairs))
