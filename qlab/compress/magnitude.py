"""Magnitude pruning: the smallest weights go.

    score of w_ij = |w_ij|

It needs no data. It is the best one can do if all inputs were equally large and had nothing to do
with each other.

Source: Han, Pool, Tran and Dally 2015 (arXiv 1506.02626), section 3. Chapter: Pruning, low rank,
distillation: what quantization is combined with.
"""

from __future__ import annotations

from typing import Any

import torch

from qlab.compress.masks import Target, checked_weight


def magnitude(
    weight: torch.Tensor, stats: Any, target: Target, within: str = "layer"
) -> torch.Tensor:
    """Set the smallest weights to zero.

    Args:
        weight: torch (out_features, in_features), any real floating dtype.
        stats: not looked at.
        target: how many go.
        within: ``layer`` compares all weights of the layer, ``row`` those of one output.

    Returns: the weight in its dtype, the others as they were.

    Raises: QlabError for NaN, infinity or a pattern that does not divide the width.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    w = checked_weight(weight)
    gone = target.lowest(w.abs(), within)
    return weight.detach().masked_fill(gone.to(weight.device), 0)
