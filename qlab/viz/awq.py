"""Figure: how the ratio of AWQ's scales moves the error between important and other columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qlab.core import Scheme
from qlab.errors import QlabError
from qlab.methods.awq import awq_scales, scaled_rounding
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

BITS = (4, 3, 2)
RATIOS = tuple(i / 20 for i in range(20))
BINS = 32  # the columns, by the size of their inputs


def scale_ratio(
    weight: torch.Tensor, x: torch.Tensor, group_size: int = 128, name: str = "weight"
) -> Picture:
    """Move the ratio; see the error of the columns with large inputs fall and that of others rise.

    Args:
        weight: (out_features, in_features), at least 32 columns; rounded in asymmetric groups.
        x: inputs (tokens, in_features).
        group_size: of the groups.
        name: of the layer.

    Raises: QlabError for shapes that do not match, too few columns, or inputs of zeros.

    Chapter: AWQ.
    """
    if weight.ndim != 2 or x.shape[-1] != weight.shape[-1] or weight.shape[-1] < BINS:
        raise QlabError(
            f"scale_ratio takes a weight (outputs, inputs) with {BINS} inputs or more, and x "
            f"(tokens, inputs); got {tuple(weight.shape)} and {tuple(x.shape)}"
        )
    x = x.detach().float().reshape(-1, x.shape[-1])
    if not bool(torch.isfinite(x).all()) or not bool((x != 0).any()):
        raise QlabError("scale_ratio needs finite inputs that are not all zero")
    runs, rows = [], []
    for bits in BITS:
        parts, totals = errors(weight.detach(), x, bits, group_size)
        best = int(np.argmin(totals))
        runs.append({"bits": bits, "parts": _short(parts), "totals": _short(totals)})
        first, then = parts[0], parts[best]
        top = BINS // 8
        rows.append(
            (
                bits,
                RATIOS[best],
                f"{totals[best] / totals[0]:.3f}",
                f"{then[:top].sum() / first[:top].sum():.3f}",
                f"{then[top:].sum() / first[top:].sum():.3f}",
            )
        )
    return figure(
        "awq",
        {"runs": runs, "ratios": RATIOS, "name": name, "columns": int(weight.shape[1])},
        alt=f"The output error of {name} against the ratio of the scales, with the shares of the "
        "columns with the largest inputs and of the others; below it the share of each "
        f"{BINS}th of the columns.",
        caption="Who pays? Above: the error of the output against the ratio. Below: what each part "
        "of the columns adds to it, from those with the largest inputs on the left to those with "
        "the smallest on the right; the outline is ratio 0, plain rounding. Move the ratio, then "
        "choose other bits.",
        fallback=table(
            (
                "bits",
                "best ratio",
                "output error / ratio 0",
                "of the most important eighth / ratio 0",
                "of the others / ratio 0",
            ),
            rows,
        ),
    )


def errors(
    weight: torch.Tensor, x: torch.Tensor, bits: int, group_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared error of the outputs at each ratio: by parts of the columns, and in all.

    Returns:
        parts: float64 (ratios, BINS). Column j adds mean x_j² · Σ_i (ŵ_ij - w_ij)², the error that
            it would make alone; columns are sorted by mean |x_j|, largest first.
        totals: float64 (ratios,): of all columns together, where errors of several columns may
            partly cancel or add up.
    """
    scheme = Scheme.parse(f"int{bits}-asym-g{group_size}")
    mean_abs, power = x.abs().mean(0), x.double().square().mean(0)
    order = mean_abs.argsort(descending=True, stable=True)
    parts, totals = [], []
    for ratio in RATIOS:
        delta = scaled_rounding(weight, awq_scales(mean_abs, ratio), scheme) - weight.float()
        alone = power * delta.double().square().sum(0) / weight.shape[0]
        parts.append([float(p.sum()) for p in alone[order].tensor_split(BINS)])
        totals.append(float((x @ delta.T).double().square().mean()))
    return np.array(parts), np.array(totals)


def _short(values: np.ndarray) -> Any:
    """Four digits are enough to draw, and short to embed."""
    return np.vectorize(lambda v: float(f"{v:.4g}"))(values).tolist()
