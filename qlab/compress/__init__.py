"""What quantization is combined with: fewer weights, thinner matrices, smaller models.

    small, report = prune_model(model, "wanda", 0.5, calibration=story.calibration())
    small, report = prune_model(model, "sparsegpt", pattern="2:4", scheme="int4-g128", ...)
    small, report = low_rank_model(model, 0.8, "whitened", calibration=story.calibration())
    small, report = correct_model(model, quantized, rank=16)

Each algorithm has a file of its own: ``magnitude``, ``wanda``, ``sparsegpt``, ``low_rank``,
``distill``; ``sparse`` stores what is left of a matrix.

Chapter: Pruning, low rank, distillation: what quantization is combined with.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public name -> module that defines it. All of them need torch.
_LAZY = {
    "LowRankLinear": "qlab.compress.low_rank",
    "SparseTensor": "qlab.compress.sparse",
    "Target": "qlab.compress.masks",
    "correct_model": "qlab.compress.low_rank_models",
    "low_rank_correction": "qlab.compress.low_rank",
    "low_rank_model": "qlab.compress.low_rank_models",
    "prune_model": "qlab.compress.prune",
    "shallow_student": "qlab.compress.distill",
    "teacher_cache": "qlab.compress.distill",
    "to_sparse": "qlab.compress.sparse",
}

__all__ = [
    "LowRankLinear",
    "SparseTensor",
    "Target",
    "correct_model",
    "low_rank_correction",
    "low_rank_model",
    "prune_model",
    "shallow_student",
    "teacher_cache",
    "to_sparse",
]

if TYPE_CHECKING:
    from qlab.compress.distill import shallow_student, teacher_cache
    from qlab.compress.low_rank import LowRankLinear, low_rank_correction
    from qlab.compress.low_rank_models import correct_model, low_rank_model
    from qlab.compress.masks import Target
    from qlab.compress.prune import prune_model
    from qlab.compress.sparse import SparseTensor, to_sparse


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qlab.compress' has no attribute {name!r}")
