"""quantize_model: a model, a method and a scheme in; a model of QuantLinear layers out.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlab.core import Scheme, sqnr
from qlab.errors import QlabError
from qlab.methods import get_method
from qlab.nn import QuantLinear, linear_layers, replace_layer, weight_of


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer.

    Attributes:
        name: its name in the model.
        scheme: the scheme in one word.
        sqnr: of the weight, in dB.
        bits_per_weight: metadata counted.
        seconds: time taken.
    """

    name: str
    scheme: str
    sqnr: float
    bits_per_weight: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """What ``quantize_model`` returns beside the model."""

    method: str
    scheme: str
    layers: tuple[LayerReport, ...]

    @property
    def seconds(self) -> float:
        """Time over all layers."""
        return sum(layer.seconds for layer in self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{self.method} {self.scheme}: {len(self.layers)} layers, {self.seconds:.1f} s"]
        lines += [
            f"{r.name:{width}}  {r.sqnr:6.2f} dB  {r.bits_per_weight:.3f} bits" for r in self.layers
        ]
        return "\n".join(lines)


def quantize_model(
    model: torch.nn.Module,
    method: str = "rtn",
    scheme: str | Scheme = "int4-g128",
    calibration: Sequence[torch.Tensor] | None = None,
    *,
    skip: tuple[str, ...] = ("lm_head",),
    options: Any = None,
    progress: bool = False,
) -> tuple[torch.nn.Module, Report]:
    """Quantize the linear layers of a transformers decoder.

    Args:
        model: any model with ``nn.Linear`` or ``Conv1D`` layers; left as it is.
        method: a name from ``qlab.methods.method_names()``.
        scheme: such as ``"int4-g128"``.
        calibration: token ids, int64 (1, length) each, for methods that need data.
        skip: last names of layers to leave alone.
        options: the method's own options (its frozen dataclass); None for the defaults.
        progress: show a bar.

    Returns: a copy of the model with QuantLinear layers, and a Report.

    Raises: QlabError for an unknown method or scheme, a model without linear layers, a weight that
        cannot be quantized (names the layer), or a missing calibration.
    """
    chosen, scheme = get_method(method), Scheme.parse(scheme)
    if chosen.needs_calibration and not calibration:
        raise QlabError(
            f"method '{method}' needs calibration data: pass calibration=story.calibration(), "
            "or use 'rtn', which needs none"
        )
    small = copy.deepcopy(model)
    layers = list(linear_layers(small, skip))
    if not layers:
        raise QlabError("the model has no linear layers to quantize")
    reports = []
    for name, layer in _bar(layers, progress):
        began = time.perf_counter()
        weight = weight_of(layer)
        try:
            qweight = chosen.quantize(weight, None, scheme, options or chosen.options())
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
        replace_layer(small, name, QuantLinear(qweight, layer.bias))
        seconds = time.perf_counter() - began
        reports.append(
            LayerReport(name, scheme.name, sqnr(weight, qweight), qweight.bits_per_weight, seconds)
        )
    return small, Report(method, scheme.name, tuple(reports))


def _bar(layers: list[Any], progress: bool) -> Any:
    if not progress:
        return layers
    from tqdm import tqdm

    return tqdm(layers, desc="quantizing", unit="layer", delay=2)
