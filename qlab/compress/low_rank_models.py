"""low_rank_model and correct_model: whole models in thin factors, or corrected by them.

Block by block, as in ``quantize_model``: the factors of a layer are fitted to the inputs that the
layers before it make now.

Chapter: Pruning, low rank, distillation: what quantization is combined with.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from qlab.blockwise import output_error
from qlab.calibrate import BlockRunner, LayerInputs
from qlab.compress.low_rank import LowRankLinear, factor, low_rank_correction, rank_for
from qlab.core import Scheme, quantize
from qlab.errors import QlabError
from qlab.nn import (
    QuantLinear,
    linear_layers,
    plain_layer,
    quant_layers,
    replace_layer,
    weight_of,
)
from qlab.report import LayerReport, bits_per_weight


@dataclass(frozen=True)
class LowRankReport:
    """What ``low_rank_model`` and ``correct_model`` return beside the model.

    Attributes:
        method: how the factors were found.
        scheme: of the factors, or of what they correct, or "".
        layers: what happened to each layer; those kept as they are do not appear.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """

    method: str
    scheme: str
    layers: tuple[LayerReport, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all these layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """For each weight that there was before."""
        return bits_per_weight(self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        kept = f" {self.scheme}" if self.scheme else ""
        lines = [
            f"{self.method}{kept}: {len(self.layers)} layers, {self.bits_per_weight:.3f} bits for "
            "each weight before"
        ]
        for r in self.layers:
            error = "" if r.error is None else f"  output error {r.error:.2e}"
            lines.append(f"{r.name:{width}}  rank {r.rank:4}{error}")
        return "\n".join(lines)


def low_rank_model(
    model: torch.nn.Module,
    ratio: float = 0.8,
    method: str = "whitened",
    *,
    calibration: Sequence[torch.Tensor] | None = None,
    scheme: str | Scheme | None = None,
    skip: tuple[str, ...] = ("lm_head",),
    progress: bool = False,
) -> tuple[torch.nn.Module, LowRankReport]:
    """Put two thin layers in place of each linear layer of a transformers decoder.

    Args:
        model: left as it is.
        ratio: numbers in both factors for each weight, at most; fixes the rank of each layer.
        method: ``svd``, ``asvd`` or ``whitened``; the last two need data.
        calibration: token ids, int64 (1, length) each.
        scheme: quantize both factors to nearest; groups that do not divide are padded.
        skip: last names of layers to leave alone.
        progress: show a bar.

    Returns: a copy of the model with LowRankLinear layers, and a report. Factors that are not
        quantized are rounded to float16, and count as such.

    Raises: QlabError for an unknown method or scheme, a ratio that no rank reaches, missing data.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    if method != "svd" and not calibration:
        raise QlabError(
            f"method '{method}' needs calibration data: pass calibration=story.calibration(), "
            "or use 'svd', which needs none"
        )
    scheme = None if scheme is None else Scheme.parse(scheme)
    small = copy.deepcopy(model)
    reports = []
    for name, inputs in _layers(small, calibration, skip, progress):
        began = time.perf_counter()
        layer: Any = small.get_submodule(name)
        weight = weight_of(layer)
        rank = rank_for((int(weight.shape[0]), int(weight.shape[1])), ratio)
        try:
            first, second, nbytes = _thin(*factor(weight, rank, method, inputs), layer.bias, scheme)
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
        replace_layer(small, name, LowRankLinear(first, second))
        lost = _lost(weight, second.weight @ first.weight, inputs)
        word = "" if scheme is None else scheme.name
        reports.append(_report(name, word, weight, nbytes, began, lost, rank))
    if not reports:
        raise QlabError("the model has no linear layers to factor")
    word = "" if scheme is None else scheme.name
    return small, LowRankReport(method, word, tuple(reports))


def correct_model(
    model: torch.nn.Module,
    quantized: torch.nn.Module,
    rank: int,
    *,
    calibration: Sequence[torch.Tensor] | None = None,
    progress: bool = False,
) -> tuple[torch.nn.Module, LowRankReport]:
    """Add to each QuantLinear layer what is nearest to the weight's lost part, in thin factors.

    Args:
        model: the one before quantization.
        quantized: what ``quantize_model`` made of it; left as it is.
        rank: of each correction, at most the smaller side of the layer.
        calibration: None for the nearest weights; token ids, int64 (1, length) each, for the
            nearest outputs.
        progress: show a bar.

    Returns: a copy of ``quantized`` with LowRankLinear layers, whose factors are rounded to
        float16, and a report that counts codes and factors.

    Raises: QlabError for a model without QuantLinear layers or with layers of other names.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    small = copy.deepcopy(quantized)
    layers: dict[str, Any] = dict(quant_layers(small))
    if not layers:
        raise QlabError("the model has no QuantLinear layers to correct: quantize it before")
    before = dict(linear_layers(model, ()))
    if missing := set(layers) - set(before):
        raise QlabError(f"layer '{min(missing)}' is not in the model before quantization")
    # While data flows through it, a layer computes with its weights as they are.
    for name, layer in layers.items():
        replace_layer(small, name, plain_layer(layer.weight, layer.bias))
    reports = []
    skip = tuple({name.rsplit(".", 1)[-1] for name in before if name not in layers})
    for name, inputs in _layers(small, calibration, skip, progress):
        began = time.perf_counter()
        weight, layer = weight_of(before[name]), layers[name]
        r = min(rank, *weight.shape)
        a, b = low_rank_correction(weight, layer.qweight, r, inputs)
        first, second, nbytes = _thin(a, b, None, None)
        replace_layer(small, name, LowRankLinear(first, second, small.get_submodule(name)))
        lost = _lost(weight, layer.weight + second.weight @ first.weight, inputs)
        nbytes += layer.qweight.nbytes
        reports.append(_report(name, layer.scheme.name, weight, nbytes, began, lost, r))
    for name, layer in layers.items():
        small.get_submodule(name).base = layer
    scheme = next(iter(layers.values())).scheme.name
    method = "correction of weights" if calibration is None else "correction of outputs"
    return small, LowRankReport(method, scheme, tuple(reports))


def _report(
    name: str,
    scheme: str,
    weight: torch.Tensor,
    nbytes: int,
    began: float,
    error: float | None,
    rank: int,
) -> LayerReport:
    """Of one layer, begun at ``began`` on the clock and done now."""
    seconds, count = time.perf_counter() - began, weight.numel()
    bits = nbytes * 8 / count
    return LayerReport(name, scheme, None, bits, seconds, count, error=error, rank=rank)


def _layers(
    model: torch.nn.Module,
    calibration: Sequence[torch.Tensor] | None,
    skip: tuple[str, ...],
    progress: bool,
) -> Iterator[tuple[str, LayerInputs | None]]:
    """Name and inputs of each layer; it may be replaced before the next is asked for."""
    if not calibration:
        for name in [name for name, _ in linear_layers(model, skip)]:
            yield name, None
        return
    for block in BlockRunner(model, calibration, skip=skip, progress=progress):
        for group in block.groups():
            for name, inputs in block.gather(group.layers, ("hessian",)).items():
                yield block.full_name(name), inputs


def _thin(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, scheme: Scheme | None
) -> tuple[Any, Any, int]:
    """The layers of B and A, and their bytes."""
    if scheme is None:
        a, b = (t.half().to(t.dtype) for t in (a, b))  # what 16 bits can store
        nbytes = 2 * (a.numel() + b.numel())
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise QlabError("a factor is beyond float16: give a scheme to store it in")
        return plain_layer(b, None), plain_layer(a, bias), nbytes
    qa, qb = (quantize(t, scheme, pad=True) for t in (a, b))
    return QuantLinear(qb), QuantLinear(qa, bias), qa.nbytes + qb.nbytes


def _lost(weight: torch.Tensor, new: torch.Tensor, inputs: LayerInputs | None) -> float | None:
    if inputs is None:
        return None
    return output_error(weight, cast(Any, new.detach()), inputs.hessian)
