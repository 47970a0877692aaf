"""Quantize a model block by block, each layer on the inputs that the quantized ones before it make.

For each block of the decoder, and in it for each group of layers that share an input: gather what
the method asks for, choose the codes, put the quantized layers in. So the error of the layers
before a layer is part of what it is calibrated on. In memory at a time: the hidden states of the
calibration samples and the Hessians of one group.

Chapter: GPTQ.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlab.calibrate import LayerInputs
from qlab.calibrate.blocks import Block, BlockRunner
from qlab.core import QTensor, Scheme, quantize
from qlab.errors import QlabError
from qlab.methods import Method
from qlab.nn import QuantLinear, plain_layer, replace_layer, weight_of
from qlab.resume import Progress


@dataclass(frozen=True)
class Quantized:
    """One finished layer.

    Attributes:
        name: in the model.
        weight: its weight before, (out_features, in_features).
        qweight: its codes.
        seconds: time taken, its share of gathering included.
        error: relative error of its output on the calibration data, ‖X(Ŵ - W)ᵀ‖² / ‖XWᵀ‖².
        rtn_error: the same with round-to-nearest in the same scheme, or None where that fails.
    """

    name: str
    weight: torch.Tensor
    qweight: QTensor
    seconds: float
    error: float | None = None
    rtn_error: float | None = None


def quantize_blocks(
    model: torch.nn.Module,
    reference: torch.nn.Module,
    method: Method,
    scheme_of: dict[str, Scheme | None],
    calibration: Sequence[torch.Tensor],
    options: Any,
    *,
    skip: tuple[str, ...],
    progress: bool = False,
    saved: Progress | None = None,
) -> Iterator[Quantized]:
    """Quantize ``model`` in place; yields each layer when it is done.

    Args:
        reference: the model before quantization, for methods that compare with it.
        scheme_of: layer name -> scheme, None to keep the layer.
        saved: finished blocks of an interrupted run, and where this one saves its own.

    A finished layer first computes with Ŵ as an ordinary linear layer, since it will run once for
    each sample; when its block is done it becomes a QuantLinear.

    Raises: QlabError naming the layer that could not be quantized.
    """
    runner = BlockRunner(model, calibration, skip=skip, progress=progress)
    twins: Iterator[Block | None] = iter([None] * len(runner))
    if "cross" in method.needs_of(options):
        twins = iter(BlockRunner(reference, calibration, skip=skip))
    done: dict[str, tuple[QTensor, Any]] = {}
    inside = set()
    for index, (block, twin) in enumerate(zip(runner, twins, strict=True)):
        _finish(model, done)  # the block before has now run for the last time
        layers = dict(block.linear_layers())
        inside.update(block.full_name(name) for name in layers)
        kept = saved.read(index) if saved else None
        for group in block.groups():
            wanted = [n for n in group.layers if scheme_of.get(block.full_name(n)) is not None]
            began = time.perf_counter()
            inputs = _gather(block, wanted, method, options, twin) if wanted and not kept else {}
            each = (time.perf_counter() - began) / max(1, len(wanted))
            for name in wanted:
                full, layer = block.full_name(name), layers[name]
                if kept:
                    one = Quantized(full, weight_of(layer), kept[full], 0.0)
                else:
                    one = _quantize(full, layer, inputs[name], method, scheme_of, options, each)
                replace_layer(block.module, name, plain_layer(one.qweight, layer.bias))
                done[full] = one.qweight, layer.bias
                yield one
        if saved and not kept:
            saved.write(index, {name: q for name, (q, _) in done.items()})
    outside = [n for n, scheme in scheme_of.items() if scheme is not None and n not in inside]
    _finish(model, done)
    samples = [torch.as_tensor(ids) for ids in calibration]
    whole = Block("", model, samples, [((), {"use_cache": False})] * len(samples))
    for name in outside:  # such as the output head
        began = time.perf_counter()
        inputs = _gather(whole, [name], method, options, None)
        each = time.perf_counter() - began
        layer: Any = model.get_submodule(name)
        one = _quantize(name, layer, inputs[name], method, scheme_of, options, each)
        done[name] = one.qweight, layer.bias
        yield one
    _finish(model, done)


def _finish(model: torch.nn.Module, done: dict[str, tuple[QTensor, Any]]) -> None:
    """Put the finished layers into the model as QuantLinear."""
    for name, (qweight, bias) in done.items():
        replace_layer(model, name, QuantLinear(qweight, bias))
    done.clear()


def _gather(
    block: Block, names: list[str], method: Method, options: Any, twin: Block | None
) -> dict[str, LayerInputs]:
    try:
        return block.gather(names, method.needs_of(options), twin)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        widths = [layer.weight.shape for name, layer in block.linear_layers() if name in names]
        need = max(max(shape) for shape in widths) ** 2 * 4
        samples = sum(x.numel() * x.element_size() for x in block.inputs)
        raise QlabError(
            f"block '{block.name}': out of memory: the Hessian of '{names[0]}' needs "
            f"{need / 2**20:.0f} MiB beside {samples / 2**20:.0f} MiB of hidden states: "
            "pass fewer or shorter calibration samples"
        ) from None


def _quantize(
    name: str,
    layer: Any,
    inputs: LayerInputs,
    method: Method,
    scheme_of: dict[str, Scheme | None],
    options: Any,
    seconds: float,
) -> Quantized:
    began = time.perf_counter()
    weight, scheme = weight_of(layer), scheme_of[name]
    assert scheme is not None
    if inputs.tokens < inputs.in_features:
        warnings.warn(
            f"layer '{name}' was calibrated on {inputs.tokens} tokens, fewer than its "
            f"{inputs.in_features} inputs: its Hessian is singular; give more data",
            stacklevel=2,
        )
    try:
        qweight = method.quantize(weight, inputs, scheme, options)
    except QlabError as error:
        raise QlabError(f"layer '{name}': {error}") from None
    seconds += time.perf_counter() - began
    hessian = inputs.hessian if "hessian" in inputs.needs else None
    try:
        plain = output_error(weight, quantize(weight, scheme), hessian)
    except QlabError:  # a scheme that only this method can fit
        plain = None
    error = output_error(weight, qweight, hessian)
    return Quantized(name, weight, qweight, seconds, error, plain)


def output_error(
    weight: torch.Tensor, qweight: QTensor, hessian: torch.Tensor | None
) -> float | None:
    """‖X(Ŵ - W)ᵀ‖² / ‖XWᵀ‖² from the Hessian of X alone; None where the outputs are zero.

    ‖XΔᵀ‖² = tr(Δ XᵀX Δᵀ), so the inputs themselves are not needed.
    """
    if hessian is None:
        return None
    w = weight.float()
    delta = qweight.dequantize().float() - w
    power = float(((w @ hessian) * w).sum(dtype=torch.float64))
    return float(((delta @ hessian) * delta).sum(dtype=torch.float64)) / power if power else None
