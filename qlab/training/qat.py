"""prepare and convert: a model that trains for its quantization, and the quantized model of it.

    prepare    every linear layer becomes a FakeQuantLinear
    train      qlab.training.train, or transformers' Trainer
    convert    every FakeQuantLinear becomes a QuantLinear with the same outputs

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from qlab.activations import ActivationQuant, activation_scheme, fit_activations
from qlab.calibrate import ActivationStats, Observer
from qlab.core import QTensor, Scheme, quantize
from qlab.errors import QlabError
from qlab.nn import linear_layers, replace_layer, weight_of
from qlab.training.fake_quant import Quantizer, StraightThroughQuantizer, trainable
from qlab.training.learned_range import LearnedRange
from qlab.training.lsq import LSQ, first_step_size
from qlab.training.modules import FakeQuantLinear, fake_layers
from qlab.training.pact import PACT
from qlab.training.q4_0 import Q4_0
from qlab.training.ternary import AbsMean

# Word -> what it does to a weight, and to an input whose range is fixed.
METHODS: dict[str, type[Quantizer]] = {
    "ste": StraightThroughQuantizer,
    "lsq": LSQ,
    "pact": PACT,
    "range": LearnedRange,
    "absmean": AbsMean,
    "q4_0": Q4_0,
}
STARTS = ("minmax", "mse", "lsq")


def prepare(
    model: nn.Module,
    scheme: str | Scheme,
    activations: str | Scheme | None = None,
    method: str = "ste",
    *,
    start: str = "mse",
    schemes: Mapping[str, str | Scheme | None] | None = None,
    observer: str | Callable[[], Observer] | None = None,
    calibration: ActivationStats | Sequence[torch.Tensor] | None = None,
    skip: tuple[str, ...] = ("lm_head",),
) -> Any:
    """A copy of the model whose linear layers are FakeQuantLinear layers, in training mode.

    Args:
        model: any model with ``nn.Linear`` or ``Conv1D`` layers; left as it is.
        scheme: of the weights, such as ``"int3-channel"``.
        activations: of the layers' inputs, as in ``quantize_model``: ``int8-token`` takes the range
            of each token, ``int8-asym-tensor`` one range from the calibration data, which the
            methods that learn go on to learn; None leaves inputs as they are.
        method: ``ste`` trains the weights alone, with scales from their range; ``lsq``, ``pact``
            and ``range`` learn scales, clipping values, ranges too; ``absmean`` is BitNet's, for
            ternary weights; ``q4_0`` has the levels of GGUF's block type.
        start: where learned parameters of weights start: ``mse``, the scale of least squared
            error; ``minmax``, the whole range; ``lsq``, the rule of that paper.
        schemes: pattern of layer names (``*`` and ``?``) -> scheme of their weights, None to leave
            them in floating point; the first pattern that fits counts.
        observer, calibration: as in ``quantize_model``.
        skip: last names of layers to leave alone.

    Raises: QlabError for an unknown method or start, a scheme that cannot be trained or does not
        fit a weight (names the layer), a model without linear layers or prepared before.

    Chapter: Quantization-aware training.
    """
    if method not in METHODS:
        raise QlabError(f"unknown method '{method}': there are {', '.join(METHODS)}")
    if start not in STARTS:
        raise QlabError(f"unknown start '{start}': there are {', '.join(STARTS)}")
    if any(True for _ in fake_layers(model)):
        raise QlabError("the model is prepared already: prepare the model that it was made of")
    kind = METHODS[method]
    default = trainable(scheme, learned_scale=kind.learns)
    fake = copy.deepcopy(model)
    layers = list(linear_layers(fake, skip))
    scheme_of = _scheme_of([name for name, _ in layers], default, schemes or {})
    if not any(scheme_of.values()):
        raise QlabError("the model has no linear layers to train for quantization")
    inputs = None
    if activations is not None:
        wanted = activation_scheme(activations)
        inputs, _ = fit_activations(fake, wanted, observer, calibration, skip=skip)
    for name, layer in layers:
        if (own := scheme_of[name]) is None:
            continue
        weight = weight_of(layer)
        try:
            quantizer = weight_quantizer(weight, own, method, start)
            of_input = input_quantizer(inputs(name), method, weight.shape[1]) if inputs else None
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
        replace_layer(fake, name, FakeQuantLinear(weight, layer.bias, quantizer, of_input, name))
    return fake.train()


def convert(model: nn.Module) -> Any:
    """A copy whose FakeQuantLinear layers are QuantLinear layers on packed codes.

    Its outputs are those of ``model`` in evaluation mode, bit for bit. It is an ordinary quantized
    model: ``qlab.export`` and ``qlab.gguf`` take it.

    Raises: QlabError if the model was not prepared.

    Chapter: Quantization-aware training.
    """
    done = copy.deepcopy(model)
    layers = list(fake_layers(done))
    if not layers:
        raise QlabError("the model has no fake-quantized layers: call qlab.training.prepare first")
    for name, layer in layers:
        replace_layer(done, name, layer.convert())
    return done.eval()


def weight_quantizer(weight: torch.Tensor, scheme: Scheme, method: str, start: str) -> Quantizer:
    """What quantizes a weight (out_features, in_features) by a method, at its start.

    Raises: QlabError for a scheme that the method cannot train or that does not fit the weight.
    """
    kind = METHODS[method]
    trainable(scheme, learned_scale=kind.learns)
    q = first_codes(weight, scheme, start if kind.learns else "minmax")
    if not kind.learns:
        return kind(scheme)
    count = weight.numel() // max(1, q.scale.numel())
    return kind(scheme, q.scale, q.zero_point, count=count)  # type: ignore[call-arg]


def input_quantizer(inputs: ActivationQuant, method: str, features: int) -> Quantizer:
    """What quantizes an input: a fixed range is where the method starts, others are dynamic."""
    if inputs.scale is None:
        return StraightThroughQuantizer(inputs.scheme)
    kind = METHODS[method]
    if not kind.learns:
        return StraightThroughQuantizer(inputs.scheme, inputs.scale, inputs.zero_point)
    return kind(inputs.scheme, inputs.scale, inputs.zero_point, count=features)  # type: ignore[call-arg]


def first_codes(weight: torch.Tensor, scheme: Scheme, start: str) -> QTensor:
    """The weight as the start of learning has it; its scale and zero_point are what counts."""
    from qlab.methods import get_method

    if start == "mse":
        chosen = get_method("mse")
        q: QTensor = chosen.quantize(weight, None, scheme, chosen.options())
        return q
    q = quantize(weight, scheme)
    if start == "lsq" and scheme.symmetric:
        return QTensor(q.packed, first_step_size(weight, scheme), None, scheme, q.shape, q.dtype)
    return q


def _scheme_of(
    names: list[str], default: Scheme, schemes: Mapping[str, str | Scheme | None]
) -> dict[str, Scheme | None]:
    """The scheme of each layer, None for those to leave alone."""
    parsed = {p: None if word is None else trainable(word) for p, word in schemes.items()}
    for pattern in parsed:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QlabError(
                f"schemes: no layer is called '{pattern}': there are {', '.join(names[:3])}, ..."
            )
    found = {}
    for name in names:
        fits = [p for p in parsed if fnmatchcase(name, p)]
        found[name] = parsed[fits[0]] if fits else default
    return found
