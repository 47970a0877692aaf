"""quantize_model: a model, a method and a scheme in; a model of QuantLinear layers out.

Activations are quantized too where ``activations`` says so (``qlab.activations``), and ``schemes``
gives single layers a scheme of their own: mixed precision.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import copy
import difflib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from qlab.activations import activation_scheme, fit_activations
from qlab.bars import bar
from qlab.blockwise import Quantized, quantize_blocks
from qlab.calibrate import ActivationStats, Observer
from qlab.core import QTensor, Scheme, shared_params, sqnr
from qlab.errors import QlabError
from qlab.methods import get_method
from qlab.nn import QuantLinear, linear_layers, replace_layer, weight_of
from qlab.report import LayerReport, bits_per_weight
from qlab.resume import Progress, run_key


@dataclass(frozen=True)
class Report:
    """What ``quantize_model`` returns beside the model.

    Attributes:
        method: of the weights.
        scheme: of the weights of every layer that ``schemes`` does not name.
        layers: what happened to each quantized layer; those kept as they are do not appear.
        activations: scheme of the inputs, or "".
        observer: what fixed the ranges of the inputs (``dynamic``: nothing), or "".
    """

    method: str
    scheme: str
    layers: tuple[LayerReport, ...]
    activations: str = ""
    observer: str = ""

    @property
    def seconds(self) -> float:
        """Time over all layers."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Over all quantized layers, metadata counted."""
        return bits_per_weight(self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        inputs = f", activations {self.activations} ({self.observer})" if self.activations else ""
        lines = [
            f"{self.method} {self.scheme}{inputs}: {len(self.layers)} layers, "
            f"{self.bits_per_weight:.3f} bits per weight, {self.seconds:.1f} s"
        ]
        for r in self.layers:
            other = "" if r.scheme == self.scheme else f"  {r.scheme}"
            if r.error is not None and r.rtn_error is not None:
                other = f"  output error {r.rtn_error:.2e} -> {r.error:.2e}{other}"
            lines.append(f"{r.name:{width}}  {r.sqnr:6.2f} dB  {r.bits_per_weight:.3f} bits{other}")
        return "\n".join(lines)


def quantize_model(
    model: torch.nn.Module,
    method: str = "rtn",
    scheme: str | Scheme = "int4-g128",
    calibration: Sequence[torch.Tensor] | ActivationStats | None = None,
    *,
    activations: str | Scheme | None = None,
    observer: str | Callable[[], Observer] | None = None,
    schemes: Mapping[str, str | Scheme | None] | None = None,
    skip: tuple[str, ...] = ("lm_head",),
    options: Any = None,
    resume: str | Path | None = None,
    progress: bool = False,
) -> tuple[torch.nn.Module, Report]:
    """Quantize the linear layers of a transformers decoder.

    Args:
        model: any model with ``nn.Linear`` or ``Conv1D`` layers; left as it is.
        method: a name from ``qlab.methods.method_names()``.
        scheme: such as ``"int4-g128"``.
        calibration: token ids, int64 (1, length) each, for methods and static activations, which
            need data; or what ``qlab.calibrate.capture`` made of them, for static activations.
        activations: scheme of the layers' inputs; None leaves them in floating point.
            ``int8-token`` takes the range of each token while the model runs (dynamic);
            ``int8-asym-tensor`` has one range, from the calibration data (static).
        observer: what makes a static range of the data, a name from
            ``qlab.calibrate.observer_names()`` or a function that makes one; by default
            ``minmax`` for granularity tensor. ``dynamic`` needs no data, for any granularity: with
            tensor, the range is that of everything in the batch.
        schemes: pattern of layer names (``*`` and ``?``) -> the scheme of their weights, or None to
            keep such layers as they are; the first pattern that fits counts.
        skip: last names of layers to leave alone.
        options: the method's own options: its frozen dataclass, or a dict of what differs from
            the defaults; None for the defaults.
        resume: a folder for finished blocks, of methods that work block by block (``gptq`` ...):
            the same call after an interruption goes on from there. Remove it afterwards.
        progress: show a bar.

    Returns: a copy of the model with QuantLinear layers, and a Report.

    Raises: QlabError for an unknown method or scheme, a model without linear layers, a weight that
        cannot be quantized (names the layer), a missing calibration, or a pattern that fits no
        layer.
    """
    chosen, scheme = get_method(method), Scheme.parse(scheme)
    if chosen.needs_calibration and not calibration:
        raise QlabError(
            f"method '{method}' needs calibration data: pass calibration=story.calibration(), "
            "or use 'rtn', which needs none"
        )
    options = chosen.options_from(options)
    small = copy.deepcopy(model)
    layers = list(linear_layers(small, skip))
    if not layers:
        raise QlabError("the model has no linear layers to quantize")
    scheme_of = _schemes([name for name, _ in layers], scheme, schemes or {})
    inputs, report = None, Report(method, scheme.name, ())
    wanted = None if activations is None else activation_scheme(activations)
    stats: Mapping[str, Any] = {}
    if chosen.prepare is not None:
        if isinstance(calibration, ActivationStats):
            raise QlabError(
                f"method '{method}' needs token ids as calibration, not their statistics"
            )
        stats = chosen.prepare(small, calibration, scheme, options, skip=skip, progress=progress)
    if wanted is not None:
        inputs, by = fit_activations(
            small, wanted, observer, calibration, skip=skip, progress=progress
        )
        report = replace(report, activations=wanted.name, observer=by)
    elif observer is not None:
        raise QlabError(
            "an observer fixes the range of activations: name their scheme too, such as "
            "activations='int8-asym-tensor'"
        )
    quantizers = {
        name: inputs(name) if inputs else None for name, _ in layers if scheme_of[name] is not None
    }
    reports = []
    totals: dict[str, int] = {}
    for name, layer in layers:
        if (own := scheme_of[name]) is not None:
            totals[own.name] = totals.get(own.name, 0) + layer.weight.numel()
    blockwise = chosen.needs_calibration and chosen.prepare is None
    if resume is not None and not blockwise:
        raise QlabError(
            f"method '{method}' treats each layer by itself and has nothing to resume: "
            "leave resume out"
        )
    if blockwise:
        done = _block_by_block(
            small, model, chosen, scheme_of, calibration, options, skip, progress, resume
        )
    else:
        done = _one_by_one(small, chosen, scheme_of, options, stats, skip, progress)
    for one in done:
        own = scheme_of[one.name]
        assert own is not None
        reports.append(
            LayerReport(
                one.name,
                own.name,
                sqnr(one.weight, one.qweight),
                _bits_per_weight(one.qweight, totals[own.name]),
                one.seconds,
                one.weight.numel(),
                str(quantizers[one.name] or ""),
                one.error,
                one.rtn_error,
            )
        )
    for name, quantizer in quantizers.items():
        if quantizer is not None:
            layer = small.get_submodule(name)
            replace_layer(small, name, QuantLinear(layer.qweight, layer.bias, quantizer))
    order = {name: i for i, (name, _) in enumerate(layers)}
    reports.sort(key=lambda r: order[r.name])
    return small, replace(report, layers=tuple(reports))


def _one_by_one(
    small: torch.nn.Module,
    method: Any,
    scheme_of: dict[str, Scheme | None],
    options: Any,
    stats: Mapping[str, Any],
    skip: tuple[str, ...],
    progress: bool,
) -> Iterator[Quantized]:
    """Each layer by itself, with what ``prepare`` found out about it, if anything."""
    layers = list(linear_layers(small, skip))
    # Layers of one scheme share what a global granularity shares.
    shared = {}
    for scheme in {s.name: s for s in scheme_of.values() if s}.values():
        alike = [(name, layer) for name, layer in layers if scheme_of[name] == scheme]
        shared[scheme.name] = _shared_params(alike, method, scheme)
    for name, layer in bar(layers, "quantizing", "layer", progress):
        own = scheme_of[name]
        if own is None:
            continue
        began = time.perf_counter()
        weight = weight_of(layer)
        try:
            qweight = method.quantize(weight, stats.get(name), own, options, **shared[own.name])
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
        replace_layer(small, name, QuantLinear(qweight, layer.bias))
        yield Quantized(name, weight, qweight, time.perf_counter() - began)


def _block_by_block(
    small: torch.nn.Module,
    model: torch.nn.Module,
    method: Any,
    scheme_of: dict[str, Scheme | None],
    calibration: Any,
    options: Any,
    skip: tuple[str, ...],
    progress: bool,
    resume: str | Path | None,
) -> Iterator[Quantized]:
    """Each layer with the LayerInputs that the quantized layers before it make."""
    for scheme in scheme_of.values():
        if scheme is not None and scheme.granularity.kind == "global":
            _shared_params([], method, scheme)
    if isinstance(calibration, ActivationStats):
        raise QlabError(f"method '{method.name}' needs token ids as calibration, not statistics")
    saved = None
    if resume is not None:
        words = [(name, None if s is None else s.name) for name, s in scheme_of.items()]
        saved = Progress(resume, run_key(model, calibration, method.name, words, options))
    yield from quantize_blocks(
        small,
        model,
        method,
        scheme_of,
        calibration,
        options,
        skip=skip,
        progress=progress,
        saved=saved,
    )


def _schemes(
    names: list[str], default: Scheme, schemes: Mapping[str, str | Scheme | None]
) -> dict[str, Scheme | None]:
    """The scheme of each layer, None for those to keep."""
    parsed = {p: None if word is None else Scheme.parse(word) for p, word in schemes.items()}
    for pattern in parsed:
        if not any(fnmatchcase(name, pattern) for name in names):
            last = {name.rpartition(".")[2]: name for name in reversed(names)}
            near = difflib.get_close_matches(pattern.rpartition(".")[2], last, n=3, cutoff=0.3)
            raise QlabError(
                f"schemes: no layer is called '{pattern}': there are "
                f"{', '.join(last[n] for n in near or last)}, ..."
            )
    found = {}
    for name in names:
        fits = [p for p in parsed if fnmatchcase(name, p)]
        found[name] = parsed[fits[0]] if fits else default
    if not any(found.values()):
        raise QlabError("schemes keeps every layer as it is: leave one to quantize")
    return found


def _shared_params(layers: list[Any], method: Any, scheme: Scheme) -> dict[str, Any]:
    """What ``global`` adds to the arguments of a method: parameters of the whole model."""
    if scheme.granularity.kind != "global":
        return {}
    if not method.takes_params:
        raise QlabError(
            f"method '{method.name}' fits its own parameters to each layer, so they cannot be "
            f"shared by the model: use '{scheme.format.name}-tensor', or method 'rtn'"
        )
    name = ""

    def weights() -> Any:
        nonlocal name
        for name_of_layer, layer in layers:
            name = name_of_layer
            yield weight_of(layer)

    try:
        return {"params": shared_params(weights(), scheme)}
    except QlabError as error:
        raise QlabError(f"layer '{name}': {error}") from None


def _bits_per_weight(qweight: QTensor, total: int) -> float:
    """Of one layer; shared parameters are spread over all ``total`` weights of the model."""
    if qweight.scheme.granularity.kind != "global":
        return qweight.bits_per_weight
    codes = int(qweight.packed.numel())
    weights = qweight.shape[0] * qweight.shape[1]
    return 8 * (codes / weights + (qweight.nbytes - codes) / total)
