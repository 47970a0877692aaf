"""prune_model: a model and a way to prune in; a model with zeros out, quantized too if asked for.

Like ``quantize_model`` it goes block by block, so that each layer is pruned for the inputs that the
pruned layers before it make. With a scheme each layer is quantized as soon as it is pruned: later
layers then see the error of both. ``sparsegpt`` rounds on its way; after ``magnitude`` and
``wanda`` the weights that stay are rounded to nearest.

Chapter: Pruning, low rank, distillation: what quantization is combined with.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from qlab.blockwise import output_error
from qlab.calibrate import BlockRunner, LayerInputs
from qlab.calibrate.blocks import Block
from qlab.compress.magnitude import magnitude
from qlab.compress.masks import Target
from qlab.compress.sparse import to_sparse
from qlab.compress.sparsegpt import SparsegptOptions, sparsegpt
from qlab.compress.wanda import wanda
from qlab.core import QTensor, Scheme, quantize
from qlab.errors import QlabError
from qlab.nn import QuantLinear, linear_layers, plain_layer, replace_layer, weight_of
from qlab.report import LayerReport, bits_per_weight

METHODS = ("magnitude", "wanda", "sparsegpt")


@dataclass(frozen=True)
class PruneReport:
    """What ``prune_model`` returns beside the model.

    Attributes:
        method: how weights were chosen.
        target: such as ``50%`` or ``2:4``.
        scheme: of the weights that stay, or "".
        layers: what happened to each pruned layer.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """

    method: str
    target: str
    scheme: str
    layers: tuple[LayerReport, ...]

    @property
    def weights(self) -> int:
        """Number of weights in all pruned layers, zeros included."""
        return sum(layer.weights for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all pruned layers, each in its smallest layout."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Over all pruned layers, everything counted."""
        return bits_per_weight(self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros over all pruned layers."""
        zeros = sum((layer.sparsity or 0.0) * layer.weights for layer in self.layers)
        return zeros / self.weights

    @property
    def seconds(self) -> float:
        """Time over all layers."""
        return sum(layer.seconds for layer in self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        kept = f", {self.scheme}" if self.scheme else ""
        lines = [
            f"{self.method} {self.target}{kept}: {len(self.layers)} layers, {self.sparsity:.1%} "
            f"zeros, {self.bits_per_weight:.3f} bits per weight, {self.seconds:.1f} s"
        ]
        for r in self.layers:
            error = "" if r.error is None else f"  output error {r.error:.2e}"
            lines.append(
                f"{r.name:{width}}  {r.sparsity or 0.0:6.1%} zeros  {r.layout:7}  "
                f"{r.bits_per_weight:.3f} bits{error}"
            )
        return "\n".join(lines)


def prune_model(
    model: torch.nn.Module,
    method: str = "wanda",
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    calibration: Sequence[torch.Tensor] | None = None,
    scheme: str | Scheme | None = None,
    within: str | None = None,
    options: SparsegptOptions | None = None,
    skip: tuple[str, ...] = ("lm_head",),
    progress: bool = False,
) -> tuple[torch.nn.Module, PruneReport]:
    """Prune the linear layers of a transformers decoder.

    Args:
        model: any model with ``nn.Linear`` or ``Conv1D`` layers; left as it is.
        method: ``magnitude``, ``wanda`` or ``sparsegpt``.
        sparsity: share of the weights of each layer that go; 0.5 if no pattern is given.
        pattern: such as ``2:4``: of each 4 neighbors in a row 2 stay.
        calibration: token ids, int64 (1, length) each; ``magnitude`` does without.
        scheme: quantize what stays, such as ``int4-g128``. Zeros stay exactly zero.
        within: which weights are compared, ``row`` or ``layer``; None for what the method's paper
            does. ``sparsegpt`` compares those of a block of columns.
        options: of ``sparsegpt``.
        skip: last names of layers to leave alone.
        progress: show a bar.

    Returns: a copy of the model, whose pruned layers are dense layers with zeros (QuantLinear with
        a scheme), and a report that counts the bytes of a layout for zeros.

    Raises: QlabError for an unknown method, target or scheme, a model without linear layers, a
        missing calibration, or a layer that cannot be pruned (named).

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    if method not in METHODS:
        raise QlabError(f"unknown method '{method}': choose one of {', '.join(METHODS)}")
    target = Target.parse(sparsity, pattern)
    scheme = None if scheme is None else Scheme.parse(scheme)
    if method != "magnitude" and not calibration:
        raise QlabError(
            f"method '{method}' needs calibration data: pass calibration=story.calibration(), "
            "or use 'magnitude', which needs none"
        )
    if method == "sparsegpt" and within is not None:
        raise QlabError("sparsegpt compares the weights of a block: set SparsegptOptions")
    small = copy.deepcopy(model)
    names = [name for name, _ in linear_layers(small, skip)]
    if not names:
        raise QlabError("the model has no linear layers to prune")
    job = _Job(small, method, target, scheme, within, options)
    if calibration:
        for block in BlockRunner(small, calibration, skip=skip, progress=progress):
            for group in block.groups():
                began = time.perf_counter()
                inputs = block.gather(group.layers, ("hessian",))
                each = (time.perf_counter() - began) / len(group.layers)
                for name in group.layers:
                    job.do(block.full_name(name), inputs[name], each)
    for name in names:
        if name in job.reports:
            continue
        began, known = time.perf_counter(), None
        if calibration:  # outside of the blocks, such as the output head
            whole = Block(
                "", small, list(calibration), [((), {"use_cache": False})] * len(calibration)
            )
            known = whole.gather([name], ("hessian",))[name]
        job.do(name, known, time.perf_counter() - began)
    for name, qweight in job.quantized.items():
        layer: Any = small.get_submodule(name)
        replace_layer(small, name, QuantLinear(qweight, layer.bias))
    word = "" if scheme is None else scheme.name
    layers = tuple(job.reports[name] for name in names)
    return small, PruneReport(method, str(target), word, layers)


class _Job:
    """Prunes layers of a model in place, one after the other."""

    def __init__(
        self,
        model: torch.nn.Module,
        method: str,
        target: Target,
        scheme: Scheme | None,
        within: str | None,
        options: SparsegptOptions | None,
    ) -> None:
        self.model, self.method, self.target, self.scheme = model, method, target, scheme
        self.within = within or ("layer" if method == "magnitude" else "row")
        self.options = options
        self.reports: dict[str, LayerReport] = {}
        self.quantized: dict[str, QTensor] = {}

    def do(self, name: str, inputs: LayerInputs | None, seconds: float) -> None:
        """Prune one layer; ``seconds``: its share of the time that gathering took."""
        began = time.perf_counter()
        layer: Any = self.model.get_submodule(name)
        weight = weight_of(layer)
        try:
            found = self._prune(weight, inputs)
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
        seconds += time.perf_counter() - began
        pruned = found.dequantize() if isinstance(found, QTensor) else found
        if isinstance(found, QTensor):
            self.quantized[name] = found  # becomes a QuantLinear at the end
        # A layer of its own: the old weight may be tied to the embeddings.
        replace_layer(self.model, name, plain_layer(pruned, layer.bias))
        lost = None
        if inputs is not None:
            lost = output_error(weight, cast(Any, pruned), inputs.hessian)
        layout, nbytes = smallest(found, self.target)
        zeros = float((pruned == 0).float().mean())
        self.reports[name] = LayerReport(
            name,
            "" if self.scheme is None else self.scheme.name,
            None,
            nbytes * 8 / pruned.numel(),
            seconds,
            pruned.numel(),
            error=lost,
            sparsity=zeros,
            layout=layout,
        )

    def _prune(self, weight: torch.Tensor, inputs: LayerInputs | None) -> torch.Tensor | QTensor:
        if self.method == "sparsegpt":
            return sparsegpt(weight, inputs, self.target, self.options, scheme=self.scheme)
        way = magnitude if self.method == "magnitude" else wanda
        pruned = way(weight, inputs, self.target, self.within)
        return pruned if self.scheme is None else quantize_pruned(pruned, self.scheme)


def quantize_pruned(weight: torch.Tensor, scheme: str | Scheme) -> QTensor:
    """Round to nearest a weight with zeros, which stay exactly zero.

    Raises: QlabError for a scheme in which zero comes back as another number.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    q = quantize(weight, scheme)
    back = q.dequantize()[weight == 0]
    if bool((back != 0).any()):
        raise QlabError(
            f"scheme '{q.scheme}' has no code for zero, so pruned weights would come back: use an "
            "integer format, or nf4"
        )
    return q


def smallest(x: torch.Tensor | QTensor, target: Target) -> tuple[str, int]:
    """(layout, bytes) of the smallest way to store a pruned weight; numbers in 16 bits."""
    if isinstance(x, QTensor):
        sizes = {"dense": x.nbytes}
        if x.scheme.granularity.padded_shape(x.shape) != x.shape:
            return "dense", x.nbytes
    else:
        x = x.to(torch.bfloat16)  # of the range of float32, so that what is not zero stays so
        sizes = {"dense": 2 * x.numel()}
    sizes["bitmask"] = to_sparse(x).nbytes
    if target.pattern == (2, 4):
        sizes["2:4"] = to_sparse(x, "2:4").nbytes
    layout = min(sizes, key=lambda word: (sizes[word], word != "2:4"))
    return layout, sizes[layout]
