"""Outlier features: how far some inputs of a layer reach beyond the others, measured and made.

Chapter: Why large models break.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import nn

from qlab.calibrate.blocks import BlockRunner
from qlab.errors import QlabError
from qlab.methods.folding import fold, fold_groups
from qlab.methods.llm_int8 import THRESHOLD


@dataclass(frozen=True)
class LayerOutliers:
    """The inputs of one linear layer over the calibration tokens.

    Attributes:
        name: the layer's name in the model.
        absmax: largest |x| of each feature, float32 (features,).
        threshold: what counted as an outlier.
    """

    name: str
    absmax: torch.Tensor
    threshold: float

    @property
    def largest(self) -> float:
        """The largest |x|."""
        return float(self.absmax.max())

    @property
    def median(self) -> float:
        """The median over the features of their largest |x|."""
        return float(self.absmax.median())

    @property
    def ratio(self) -> float:
        """How far the largest feature reaches, in units of a usual one: largest / median."""
        return self.largest / self.median if self.median else float("inf")

    @property
    def count(self) -> int:
        """Features that reach the threshold for some token: what LLM.int8() takes apart."""
        return int((self.absmax >= self.threshold).sum())

    @property
    def share(self) -> float:
        """``count`` as a share of all features."""
        return self.count / len(self.absmax)


def measure_outliers(
    model: nn.Module,
    calibration: Sequence[torch.Tensor],
    threshold: float = THRESHOLD,
    *,
    progress: bool = False,
) -> list[LayerOutliers]:
    """The inputs of every linear layer of the decoder's blocks, in the model's order.

    Args:
        model: a transformers decoder.
        calibration: token ids, int64 (1, length) each.
        threshold: magnitude of an outlier.

    Raises: QlabError for no calibration data, or an input that is not finite.

    Chapter: Why large models break.
    """
    found = []
    for block in BlockRunner(model, calibration, progress=progress):
        names = [name for name, _ in block.linear_layers()]
        inputs = block.gather(names, needs=())
        found += [
            LayerOutliers(block.full_name(name), inputs[name].absmax.clone(), threshold)
            for name in names
        ]
    return found


def inject_outliers(
    model: nn.Module,
    calibration: Sequence[torch.Tensor],
    features: Sequence[int],
    factor: float = 32.0,
) -> nn.Module:
    """A copy that computes the same, whose norms make some features ``factor`` times as large.

    The weights that read these features are divided by the factor. With a power of two nothing is
    rounded, so the outputs are equal bit for bit.

    Args:
        model: a transformers decoder whose norms stand before its linear layers; left as it is.
        calibration: token ids, int64 (1, length) each; one sample shows which layer reads which
            norm.
        features: which features of each block's input, 0 to width - 1.
        factor: above 0.

    Raises: QlabError for a feature that the model does not have, or a factor that is not positive.

    Chapter: Why large models break.
    """
    if not factor > 0:
        raise QlabError(f"factor {factor}: features are multiplied by it, so take more than 0")
    spoiled = copy.deepcopy(model)
    for block in BlockRunner(spoiled, calibration[:1], skip=()):
        for group in fold_groups(block):
            weight = block.module.get_submodule(group.source).weight
            assert isinstance(weight, torch.Tensor)
            if not all(0 <= j < len(weight) for j in features):
                raise QlabError(
                    f"features {list(features)}: norm '{block.full_name(group.source)}' has "
                    f"features 0 to {len(weight) - 1}"
                )
            s = torch.ones(len(weight), device=weight.device)
            s[list(features)] = 1 / factor
            fold(block.module, group, s)
    return spoiled


def recorded() -> dict[str, Any]:
    """What benchmarks/outliers_smollm2.py measured on SmolLM2-135M-Instruct.

    Keys: ``model``, ``weights``, ``versions``, ``date``, ``threshold``, ``alpha``, ``layers`` (one
    entry a linear layer: ``name``, ``features``, ``largest`` |x| and the ``median`` over features
    of their largest, how many features reach the threshold (``above``), which ``feature`` is the
    farthest, the largest |x| at the ``first_token`` and at ``later_tokens``), ``perplexity``
    (configuration -> value), ``columns_apart`` (configurations of LLM.int8() -> the share of
    columns that they kept in high precision), and how many stories and tokens were used.

    Chapter: Why large models break.
    """
    file = resources.files("qlab").joinpath("records", "outliers_smollm2.json")
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record
