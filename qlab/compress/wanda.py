"""Wanda, pruning by weights and activations: a weight counts with the size of its input.

    score of w_ij = |w_ij| · ‖x_j‖₂

x_j are all values of input j on the calibration data. Without weight (i, j) output i changes by
w_ij x_j, whose norm is the score: what pruning this one weight costs. Weights of one row are
compared, since each output has its own unit.

Source: Sun, Liu, Bair and Kolter 2023 (arXiv 2306.11695), section 3. Chapter: Pruning, low rank,
distillation: what quantization is combined with.
"""

from __future__ import annotations

from typing import Any

import torch

from qlab.compress.masks import Target, checked_weight
from qlab.methods.inverse_hessian import checked_hessian


def wanda(weight: torch.Tensor, stats: Any, target: Target, within: str = "row") -> torch.Tensor:
    """Set the weights with the lowest |w| · ‖x‖ to zero.

    Args:
        weight: torch (out_features, in_features), any real floating dtype.
        stats: has ``hessian``, float32 (in_features, in_features), such as
            ``qlab.calibrate.LayerInputs``. Only its diagonal counts: H_jj = 2/tokens · ‖x_j‖², and
            a factor that all scores share changes nothing.
        target: how many go.
        within: ``row`` as in the paper, or ``layer``.

    Returns: the weight in its dtype, the others as they were.

    Raises: QlabError for NaN, a Hessian of another shape or of zeros.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    w = checked_weight(weight)
    gone = target.lowest(scores(w, stats), within)
    return weight.detach().masked_fill(gone.to(weight.device), 0)


def scores(weight: torch.Tensor, stats: Any) -> torch.Tensor:
    """|w| · √H_jj, float64: of two float32 the product is exact, and never overflows."""
    checked_hessian(stats.hessian, int(weight.shape[1]), getattr(stats, "name", ""))
    norm = stats.hessian.diagonal().to("cpu", torch.float32).sqrt()
    found: torch.Tensor = weight.detach().cpu().double().abs() * norm.double()
    return found
