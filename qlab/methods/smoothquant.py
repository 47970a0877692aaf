"""SmoothQuant: move the range of the activations into the weights, where it does less harm.

    Y = (X diag(s)⁻¹) · (diag(s) Wᵀ),        s_j = max|X_j|^α / max|W_j|^(1-α)

j is an input feature, X_j its values over all calibration tokens, W_j its weights over all layers
that read it. Dividing X by s costs nothing while the model runs: the norm that produces X is
divided instead. So the model computes the same as before, and both sides quantize better.

Source: Xiao et al. 2022, arXiv 2211.10438, section 4, equations 3 and 4.

Chapter: Why large models break.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qlab.calibrate.blocks import BlockRunner
from qlab.core import QTensor, Scheme, quantize
from qlab.errors import QlabError
from qlab.methods.folding import check_unchanged, fold, fold_groups
from qlab.methods.registry import register

# No factor below this: the authors' code has the same floor.
_SMALLEST = 1e-5


@dataclass(frozen=True)
class SmoothQuantOptions:
    """alpha: how much of the range moves, from 0 to 1; 0.5 shares it evenly.

    down: also smooth the input of ``down_proj`` in gated feed-forward layers, by the rows of
    ``up_proj``. The paper smooths what a norm produces and no more.
    """

    alpha: float = 0.5
    down: bool = False


def smoothing_scales(
    x_absmax: torch.Tensor, w_absmax: torch.Tensor, alpha: float = 0.5
) -> torch.Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1-α), float32 (features,).

    Args:
        x_absmax: largest |X_j| over the calibration tokens, float32 (features,).
        w_absmax: largest |W_j| over the layers that read the input, float32 (features,).
        alpha: 0 to 1.

    A feature that is 0 on either side keeps the factor 1: nothing is known of its balance.

    Raises: QlabError for an alpha outside 0 to 1, or features that do not match.

    Source: arXiv 2211.10438, equation 4.

    Chapter: Why large models break.
    """
    _check_alpha(alpha)
    if x_absmax.shape != w_absmax.shape:
        raise QlabError(
            f"{tuple(x_absmax.shape)} activations and {tuple(w_absmax.shape)} weight columns: "
            "there is one of each for a feature"
        )
    x, w = x_absmax.float(), w_absmax.float()
    s = (x.pow(alpha) / w.pow(1 - alpha)).clamp(min=_SMALLEST)
    return torch.where((x == 0) | (w == 0) | ~torch.isfinite(s), torch.ones_like(s), s)


def smooth(
    model: nn.Module,
    calibration: Sequence[torch.Tensor],
    alpha: float = 0.5,
    *,
    down: bool = False,
    progress: bool = False,
) -> nn.Module:
    """An equivalent model in full precision with smoothed activations.

    Args:
        model: a transformers decoder whose norms stand before its linear layers; left as it is.
        calibration: token ids, int64 (1, length) each.
        alpha, down: see ``SmoothQuantOptions``.
        progress: show a bar.

    Returns: a copy with other norms and weights, and the same outputs but for rounding.

    Raises: QlabError for missing calibration, an alpha outside 0 to 1, a model in which no norm
        feeds a linear layer, or one whose outputs would change (norms after the layers).

    Chapter: Why large models break.
    """
    smoothed = copy.deepcopy(model)
    options = SmoothQuantOptions(alpha, down)
    prepare(smoothed, calibration, None, options, progress=progress)
    return smoothed


def prepare(
    model: nn.Module,
    calibration: Sequence[torch.Tensor] | None,
    scheme: Scheme | None,
    options: SmoothQuantOptions,
    *,
    skip: tuple[str, ...] = (),
    progress: bool = False,
) -> Mapping[str, Any]:
    """Smooth ``model`` in place, block by block: what quantize_model does before it quantizes.

    ``scheme`` and ``skip`` make no difference: all readers of a norm are scaled, so that the model
    stays the same, whether they are quantized or not.
    """
    _check_alpha(options.alpha)
    if not calibration:
        raise QlabError(
            "smoothquant needs calibration data, to see the range of each feature: pass "
            "calibration=story.calibration()"
        )
    found = False
    for block in BlockRunner(model, calibration, skip=(), progress=progress):
        groups = fold_groups(block, options.down)
        if not groups:
            continue
        found = True
        inputs = block.gather([group.layers[0] for group in groups], needs=())
        before = block.call(0)
        for group in groups:
            x_absmax = inputs[group.layers[0]].absmax
            w_absmax = column_absmax(block.module, group.layers)
            s = smoothing_scales(x_absmax.to(w_absmax.device), w_absmax, options.alpha)
            fold(block.module, group, s)
        check_unchanged(before, block.call(0), block.name)
    if not found:
        raise QlabError(
            "smoothquant found no norm whose output a linear layer reads: it needs a decoder with "
            "norms before its layers, such as Llama, Qwen, GPT-2 or OPT"
        )
    return {}


@register(
    "smoothquant",
    options=SmoothQuantOptions,
    source="Xiao et al. 2022, arXiv 2211.10438, section 4",
    chapter="outliers",
    needs_calibration=True,
    prepare=prepare,
)
def smoothquant(
    weight: torch.Tensor, stats: Any, scheme: Scheme, options: SmoothQuantOptions | None = None
) -> QTensor:
    """Quantize a smoothed ``weight`` (out_features, in_features) by rounding to nearest.

    Chapter: Why large models break.
    """
    return quantize(weight, scheme)


def column_absmax(block: nn.Module, layers: Sequence[str]) -> torch.Tensor:
    """max|W_j| over some layers with the same input: float32 (features,).

    Chapter: Why large models break.
    """
    largest = []
    for name in layers:
        layer: Any = block.get_submodule(name)
        outputs = 1 if type(layer).__name__ == "Conv1D" else 0
        largest.append(layer.weight.detach().float().abs().amax(dim=outputs))
    return torch.stack(largest).amax(dim=0)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise QlabError(f"alpha {alpha}: take 0 to 1; 0.5 shares the range evenly")
