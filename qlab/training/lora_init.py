"""Adapters that begin by mending the error of quantization: LoftQ, and the SVD of what is left.

    for t = 1..T:   Q_t = quantize(W - L_{t-1});   L_t = the best of rank r for W - Q_t

With L_0 = 0 and T = 1 the quantized weight stays as it is, and the adapter becomes the nearest
matrix of rank r to its error. Each further round quantizes what the adapter does not hold.

Source: Li et al. 2023, LoftQ (arXiv 2310.08659), algorithm 1; Guo et al. 2023, LQ-LoRA (arXiv
2311.12023), section 3.1, without its weighting by Fisher information and its mix of formats.

Chapter: Fine-tuning a quantized model: QAF and QLoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qlab.compress.low_rank import low_rank_correction
from qlab.core import QTensor
from qlab.errors import QlabError
from qlab.methods import get_method
from qlab.nn import QuantLinear, weight_of
from qlab.training.lora import lora_layers

Quantize = Callable[[torch.Tensor], QTensor]


def loftq(
    weight: torch.Tensor,
    quantize: Quantize,
    rank: int,
    iterations: int = 1,
    quantized: QTensor | None = None,
) -> tuple[QTensor, torch.Tensor, torch.Tensor]:
    """Split a weight into a quantized one and one of low rank: W ≈ Q + L R.

    Args:
        weight: (out_features, in_features).
        quantize: makes a QTensor of a matrix.
        rank: r, of L R.
        iterations: T. More than one lowers the error a little further; nothing promises it, so the
            round with the least error is returned.
        quantized: the Q of the first round, where it exists already.

    Returns: (Q, L (out_features, r), R (r, in_features)); the factors float32.

    Raises: QlabError for less than one iteration, or a rank that the weight cannot have.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    if iterations < 1:
        raise QlabError(f"loftq needs at least one iteration, not {iterations}")
    w = weight.float()
    best: tuple[QTensor, torch.Tensor, torch.Tensor] | None = None
    least, low = math.inf, torch.zeros_like(w)
    for t in range(iterations):
        q = quantized if t == 0 and quantized is not None else quantize(w - low)
        left, right = low_rank_correction(w, q, rank)
        low = left @ right
        error = float((w - q.dequantize().float() - low).square().sum())
        if error < least:
            best, least = (q, left, right), error
    if best is None:
        raise QlabError("loftq found no finite error: the weight holds values too large to square")
    return best


def init_loftq(
    model: nn.Module,
    reference: nn.Module,
    iterations: int = 1,
    method: str = "rtn",
    options: Any = None,
) -> dict[str, tuple[float, float]]:
    """Set the adapters of ``model`` so that its weights come near to those of ``reference``.

    Changes ``model`` in place: ``lora_A`` and ``lora_B`` of each adapter, and with more than one
    iteration the quantized weights too.

    Args:
        model: with adapters on quantized layers (``add_lora``).
        reference: the model before quantization, with layers of the same names.
        iterations: rounds of ``loftq``. One keeps the quantized weights, whatever made them.
        method: quantizes in the further rounds, in each layer's scheme; one without calibration.
        options: the method's own; None for the defaults.

    Returns: layer name -> relative error ‖W - Ŵ‖ / ‖W‖ without the adapter and with it.

    Raises: QlabError without adapters on quantized layers, for a reference that lacks a layer or
        has another shape, or a method that needs calibration data.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    chosen = get_method(method)
    if chosen.needs_calibration or chosen.prepare is not None:
        raise QlabError(f"loftq quantizes single matrices without data, and '{method}' cannot")
    layers = [(n, m) for n, m in lora_layers(model) if isinstance(m.base, QuantLinear)]
    if not layers:
        raise QlabError("no adapter lies on a quantized layer: quantize first, then add_lora")
    found = dict(reference.named_modules())
    errors = {}
    for name, layer in layers:
        if name not in found or not hasattr(found[name], "weight"):
            raise QlabError(f"the reference has no layer '{name}': give the unquantized model")
        weight = weight_of(found[name]).float()
        if tuple(weight.shape) != (layer.out_features, layer.in_features):
            raise QlabError(f"layer '{name}' has another shape in the reference")
        base = layer.base
        assert isinstance(base, QuantLinear)

        def quantize(w: torch.Tensor, base: QuantLinear = base) -> QTensor:
            return chosen.quantize(w, None, base.scheme, options or chosen.options())

        old = base.qweight
        q, left, right = loftq(weight, quantize, layer.rank, iterations, old)
        size = float(weight.norm()) or 1.0
        before = float((weight - old.dequantize().float()).norm()) / size
        after = float((weight - q.dequantize().float() - left @ right).norm()) / size
        errors[name] = (before, after)
        if q is not old:
            bias = base.bias
            assert bias is None or isinstance(bias, torch.Tensor)
            layer.base = QuantLinear(q, bias)
        # The adapter is multiplied by its scaling; each factor is divided by the root of it.
        root = math.sqrt(layer.scaling)
        with torch.no_grad():
            layer.lora_B.copy_(left / root)
            layer.lora_A.copy_(right / root)
    return errors
