"""Figure: which weights of a small layer go, what that costs, and how many bits are left."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qlab.compress.magnitude import magnitude
from qlab.compress.masks import Target
from qlab.compress.sparsegpt import SparsegptOptions, sparsegpt
from qlab.compress.wanda import wanda
from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.methods.inverse_hessian import checked_hessian, inverse_factor
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

LARGEST = (12, 24)  # rows and columns that can still be told apart on a phone
WAYS = ("magnitude", "wanda", "sparsegpt")


def prune_small(weight: Any, stats: Any, way: str, target: Target) -> tuple[Any, float]:
    """A pruned small weight, and the relative error of its outputs, tr(ΔHΔᵀ) / tr(WHWᵀ).

    Args:
        weight: torch float32 (rows, columns).
        stats: has ``hessian``, float32 (columns, columns).
        way: ``magnitude`` of all weights, ``wanda``, or ``sparsegpt`` in one block.
    """
    if way == "sparsegpt":
        options = SparsegptOptions(block_size=int(weight.shape[1]))
        pruned: Any = sparsegpt(weight, stats, target, options)
    else:
        pruned = (magnitude if way == "magnitude" else wanda)(weight, stats, target)
    w, h = weight.double(), stats.hessian.double()
    d = pruned.double() - w
    return pruned, float(((d @ h) * d).sum() / ((w @ h) * w).sum())


def pruning(weight: Any, hessian: Any) -> Picture:
    """Take weights away from a small layer: which go, the error of its outputs, bits per weight.

    Args:
        weight: (rows, columns), at most 12 x 24 and columns a multiple of 4, finite.
        hessian: (columns, columns) of the inputs, 2/tokens · XᵀX.

    Raises: QlabError for other shapes or numbers.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    w, h = (to_numpy(a).astype(np.float64) for a in (weight, hessian))
    if w.ndim != 2 or not (0 < w.shape[0] <= LARGEST[0] and 0 < w.shape[1] <= LARGEST[1]):
        raise QlabError(
            f"pruning shows at most {LARGEST[0]} x {LARGEST[1]} weights, got {w.shape}: pass a "
            "part of the layer"
        )
    if w.shape[1] % 4 or h.shape != (w.shape[1],) * 2 or not np.isfinite(w).all() or not w.any():
        raise QlabError(
            "pruning needs finite weights that are not all zero, a multiple of 4 columns, and a "
            f"Hessian of ({w.shape[1]}, {w.shape[1]})"
        )
    # What the page computes with and what Python computes with: the same short numbers.
    w, h = _short(w, 4), _short(h, 6)
    stats = _Stats(torch.from_numpy(h).float())
    u, _ = inverse_factor(checked_hessian(stats.hessian, w.shape[1]), 0.01)
    w32 = torch.from_numpy(w).float()
    rows = []
    for target in (Target(0.25), Target(0.5), Target(0.75), Target.parse(pattern="2:4")):
        errors = (prune_small(w32, stats, way, target)[1] for way in WAYS)
        rows.append((str(target), *(f"{e:.2%}" for e in errors)))
    return figure(
        "pruning",
        {
            "weight": w.tolist(),
            "hessian": h.tolist(),
            "factor": _short(to_numpy(u).astype(np.float64), 7).tolist(),
        },
        alt="A small weight matrix. Weights that are pruned are crossed out; the others are "
        "colored by their size. Above each column a bar shows the size of its input. Below, the "
        "error of the outputs against the share of weights pruned, for three ways to choose.",
        caption="Which weights can go? Choose who decides, then move the share. Watch the columns "
        "with large inputs.",
        fallback=table(("weights that go", *WAYS), rows),
    )


class _Stats:
    """Just the Hessian of a layer's inputs."""

    name = ""

    def __init__(self, hessian: torch.Tensor) -> None:
        self.hessian = hessian


def _short(a: np.ndarray, digits: int) -> np.ndarray:
    """Rounded to some digits, as they are written into the page."""
    return np.array([float(f"{v:.{digits}g}") for v in a.ravel()]).reshape(a.shape)
