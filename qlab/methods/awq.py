"""AWQ: scale up the weight columns that meet large activations, so that rounding hurts them less.

    Y ≈ Q(W · diag(s)) · diag(s)⁻¹ Xᵀ,        s_j = (mean|X_j|)^ratio

j is an input feature. A column that is multiplied by s_j before rounding, and divided by it after,
has an error smaller by about s_j, as long as the step of its group does not grow. The ratio is
searched on a grid: 0 leaves all columns alike, 1 follows the activations. Dividing X by s costs
nothing while the model runs: it is folded into what produces X. Then the range of each group is
shrunk where that lowers the error of the group's output, and the weights are rounded to nearest.

Source: Lin et al. 2023, arXiv 2306.00978, section 3.2, equations 4 and 5; the normalization of the
scales and the search for the clipping range: the authors' code.

Chapter: AWQ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qlab.calibrate.blocks import Block, BlockRunner
from qlab.calibrate.inputs import LayerInputs
from qlab.calibrate.layers import is_linear
from qlab.core import QTensor, Scheme, quantize
from qlab.core import granularity as gran
from qlab.core._array import to_float32
from qlab.core.learned import LearnedFormat
from qlab.errors import QlabError
from qlab.methods.folding import FoldGroup, check_unchanged, fold, fold_groups
from qlab.methods.registry import register

# The authors' floor of a scale before normalization, and their grid of clipping ranges: 1, 0.95,
# ... 0.55 times the largest weight of the group, judged on 512 tokens.
_FLOOR = 1e-4
_SHRINK = tuple(1 - i / 20 for i in range(10))
_CLIP_TOKENS = 512


@dataclass(frozen=True)
class AwqOptions:
    """How AWQ goes about it.

    Attributes:
        grid: how many ratios are tried: 0, 1/grid, ... (grid - 1)/grid. 1 leaves all scales at 1.
        clip: whether the range of each group is searched too. Never that of queries and keys, whose
            errors multiply.
        duo: divide the scales by mean relative weight^(1 - ratio), as autoawq and llm-compressor do
            by default; the paper found that activations alone are enough.
        tokens: the scales are judged on calibration samples until there are as many tokens; None:
            on all. The means are always taken over all.
    """

    grid: int = 20
    clip: bool = True
    duo: bool = False
    tokens: int | None = 4096

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise QlabError(f"grid {self.grid}: try at least 1 ratio (the paper tries 20)")
        if self.tokens is not None and self.tokens < 1:
            raise QlabError(f"tokens {self.tokens}: judge on 1 token or more, or None for all")


@dataclass(frozen=True)
class Search:
    """What the search for the scales of one group found.

    Attributes:
        group: the layers that read one input, and what produces it.
        ratios: those that were tried.
        losses: mean squared error of the output that goes with each ratio.
        scales: s of the best one, float32 (features,).
    """

    group: FoldGroup
    ratios: tuple[float, ...]
    losses: tuple[float, ...]
    scales: torch.Tensor

    @property
    def ratio(self) -> float:
        """The first ratio with the smallest loss."""
        return self.ratios[self.losses.index(min(self.losses))]


def awq_scales(
    mean_abs: torch.Tensor, ratio: float, relative: torch.Tensor | None = None
) -> torch.Tensor:
    """s_j = mean|X_j|^ratio, divided by √(max s · min s): float32 (features,).

    The division changes no code; it centers the scales around 1.

    Args:
        mean_abs: mean|X_j| over the calibration tokens, float32 (features,).
        ratio: 0 to 1.
        relative: ``relative_magnitude`` of the weights, for the variant with both (``duo``).

    Raises: QlabError for a ratio outside 0 to 1.

    Source: arXiv 2306.00978, equation 5; the floor and the division: the authors' code.

    Chapter: AWQ.
    """
    if not 0 <= ratio <= 1:
        raise QlabError(f"ratio {ratio}: take 0 (all columns alike) to 1 (as the activations)")
    s = mean_abs.float().pow(ratio)
    if relative is not None:
        s = s / (relative.float().pow(1 - ratio) + _FLOOR)
    s = s.clamp(min=_FLOOR)
    s = s / (s.max() * s.min()).sqrt()
    return torch.where(torch.isfinite(s), s, torch.ones_like(s))


def relative_magnitude(weight: torch.Tensor, scheme: Scheme | str) -> torch.Tensor:
    """Mean over the rows of |w| / (largest |w| of its block): float32 (in_features,).

    Args:
        weight: (out_features, in_features), of several layers one below the other.

    Source: the code of autoawq.

    Chapter: AWQ.
    """
    w = weight.float().abs()
    block = Scheme.parse(scheme).granularity.block_shape(tuple(w.shape))
    blocks, axes = gran.to_blocks(w, block)
    relative: torch.Tensor = blocks / (blocks.amax(dim=axes, keepdim=True) + 1e-6)
    return relative.reshape(w.shape).mean(dim=0)


def scaled_rounding(weight: torch.Tensor, s: torch.Tensor, scheme: Scheme | str) -> torch.Tensor:
    """Q(W · diag(s)) · diag(s)⁻¹, float32 (out_features, in_features).

    Source: arXiv 2306.00978, equation 4.

    Chapter: AWQ.
    """
    rounded: torch.Tensor = quantize(weight.float() * s, scheme).dequantize()
    return rounded / s


@torch.no_grad()
def search_scales(
    block: Block,
    group: FoldGroup,
    inputs: LayerInputs,
    scheme: Scheme | str,
    options: AwqOptions | None = None,
    skip: Sequence[str] = (),
) -> Search:
    """Find the scales of a group by the error of the part of the block that uses it.

    That part is the smallest module that holds all the layers: the attention for queries, keys and
    values, the feed-forward layer for gate and up; or the layer itself, where its input comes from
    another linear layer. In it the weights of the group are replaced by Q(W · s) / s, for each
    ratio of the grid, and put back.

    Args:
        inputs: of the group's first layer, for ``mean_abs``.
        skip: last names of layers that will not be quantized.

    Raises: QlabError for a scheme that cannot be fitted, or where no loss is finite.

    Source: arXiv 2306.00978, section 3.2, equations 4 and 5.

    Chapter: AWQ.
    """
    scheme, options = Scheme.parse(scheme), options or AwqOptions()
    rounded = [name for name in group.layers if name.rpartition(".")[2] not in skip]
    matrices = [_matrix(block.module.get_submodule(name)) for name in rounded]
    originals = [matrix.clone() for matrix in matrices]
    relative = None
    if options.duo:
        every = [_matrix(block.module.get_submodule(name)) for name in group.layers]
        relative = relative_magnitude(torch.cat(every), scheme)
    consumer = block.module.get_submodule(_consumer(group))
    calls = _calls(block, consumer, options.tokens)
    exact = [_output(consumer, *call) for call in calls]
    count = sum(y.numel() for y in exact)
    ratios = tuple(i / options.grid for i in range(options.grid))
    best, least, losses = None, float("inf"), []
    try:
        for ratio in ratios:
            s = awq_scales(inputs.mean_abs.to(matrices[0].device), ratio, relative)
            for matrix, original in zip(matrices, originals, strict=True):
                matrix.copy_(scaled_rounding(original, s, scheme))
            loss = 0.0
            for y, call in zip(exact, calls, strict=True):
                off = _output(consumer, *call).float() - y.float()
                loss += float(off.square().sum(dtype=torch.float64))
            losses.append(loss / count)
            if losses[-1] < least:
                best, least = s, losses[-1]
    finally:
        for matrix, original in zip(matrices, originals, strict=True):
            matrix.copy_(original)
    if best is None:
        raise QlabError(
            f"awq: no scales give '{block.full_name(group.layers[0])}' a finite output: look for "
            "NaN or infinity in the model or the calibration data"
        )
    return Search(group, ratios, tuple(losses), best)


def clip_limits(weight: torch.Tensor, x: torch.Tensor, scheme: Scheme | str) -> torch.Tensor:
    """The largest magnitude that each group of weights keeps: float32 (out_features, groups).

    For each group, of ten ranges from the largest |w| down to 0.55 of it, the one whose rounded
    weights change least what the group adds to the output, Σ_t (x_t · (ŵ - w))². With the products
    G = XᵀX of the group's inputs that is (ŵ - w)ᵀ G (ŵ - w), so x is used once.

    Args:
        weight: (out_features, in_features).
        x: inputs (tokens, in_features); the authors take 512.
        scheme: with scales of rows or of groups within rows.

    Raises: QlabError for another granularity.

    Source: the authors' code (``auto_clip``).

    Chapter: AWQ.
    """
    scheme, w = Scheme.parse(scheme), to_float32(weight.detach(), "weight")
    rows, columns = w.shape
    size = _block_size(scheme, rows, columns)
    if size is None:
        raise QlabError(
            f"clipping limits belong to rows or to groups within rows; '{scheme}' cuts otherwise: "
            "use AwqOptions(clip=False)"
        )
    parts = x.to(w.device).float().reshape(-1, columns // size, size).permute(1, 2, 0)
    gram = parts @ parts.mT  # (groups, size, size)
    largest = w.reshape(rows, -1, size).abs().amax(dim=2)
    best: torch.Tensor = largest.clone()
    least = torch.full_like(largest, torch.inf)
    for shrink in _SHRINK:
        limit = largest * shrink
        rounded = quantize(clipped(w, limit), scheme).dequantize()
        delta = (rounded - w).reshape(rows, -1, size).transpose(0, 1)  # (groups, rows, size)
        error = ((delta @ gram) * delta).sum(dim=2).T
        better = error < least
        best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return best


def clipped(weight: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """``weight`` (out_features, in_features) with each group clipped to ±limit (rows, groups).

    Chapter: AWQ.
    """
    edge: torch.Tensor = limit.repeat_interleave(weight.shape[1] // limit.shape[1], dim=1).to(
        weight.device
    )
    return weight.clamp(-edge, edge)


def awq_groups(block: Block) -> list[FoldGroup]:
    """The layers of a block that can be scaled, and where the scales are folded in.

    Readers of a norm take it from the norm; ``down_proj`` from ``up_proj``; ``o_proj`` from
    ``v_proj``, unless several heads share a value (then the shapes differ); ``fc2`` from ``fc1``
    where only a ReLU lies between, as in OPT. GPT-2's second layers stand behind a GELU and a fused
    projection: they are not scaled.

    Chapter: AWQ.
    """
    found = [
        group
        for group in fold_groups(block, down=True)
        if getattr(block.module.get_submodule(group.source), "weight", None) is not None
    ]
    for name, module in block.module.named_modules():
        prefix = f"{name}." if name else ""
        parts: dict[str, Any] = {n: p for n, p in module.named_children() if is_linear(p)}
        for last in ("o_proj", "out_proj"):
            if "v_proj" in parts and last in parts:
                if parts["v_proj"].weight.shape == parts[last].weight.shape:
                    found.append(FoldGroup(f"{prefix}v_proj", (f"{prefix}{last}",)))
        if "fc1" in parts and "fc2" in parts:
            if isinstance(getattr(module, "activation_fn", None), nn.ReLU):
                found.append(FoldGroup(f"{prefix}fc1", (f"{prefix}fc2",)))
    return found


def prepare(
    model: nn.Module,
    calibration: Sequence[torch.Tensor] | None,
    scheme: Scheme,
    options: AwqOptions,
    *,
    skip: tuple[str, ...] = (),
    progress: bool = False,
) -> Mapping[str, Any]:
    """Fold the best scales into ``model`` in place, block by block, and search the clip limits.

    Layers in ``skip`` are scaled with the others that read their input, so that the model stays the
    same, but they are neither rounded in the search nor clipped.

    Returns: layer name -> limits, float32 (out_features, groups).
    """
    _check_scheme(scheme)
    if not calibration:
        raise QlabError(
            "awq needs calibration data, to see which features are large: pass "
            "calibration=story.calibration()"
        )
    found, limits = False, {}
    for block in BlockRunner(model, calibration, skip=(), progress=progress):
        groups = [
            group
            for group in awq_groups(block)
            if any(name.rpartition(".")[2] not in skip for name in group.layers)
        ]
        found = found or bool(groups)
        scale_block(block, groups, scheme, options, skip)
        if options.clip:
            limits.update(_clip_block(block, scheme, skip))
    if not found:
        raise QlabError(
            "awq found no norm whose output a linear layer reads: it needs a decoder with norms "
            "before its layers, such as Llama, Qwen, GPT-2 or OPT"
        )
    return limits


def scale_block(
    block: Block,
    groups: Sequence[FoldGroup],
    scheme: Scheme | str,
    options: AwqOptions | None = None,
    skip: Sequence[str] = (),
) -> list[Search]:
    """Search the scales of some groups of a block and fold them in, in place.

    All searches see the block as it was: the scales of one group change nothing for another.

    Raises: QlabError naming the layer where a search fails, or the block if its output changed.

    Chapter: AWQ.
    """
    options = options or AwqOptions()
    inputs = block.gather([group.layers[0] for group in groups], needs=())
    searches = []
    for group in groups:
        if not inputs[group.layers[0]].tokens:
            continue  # an expert that no token chose: nothing is known of its inputs
        try:
            searches.append(
                search_scales(block, group, inputs[group.layers[0]], scheme, options, skip)
            )
        except QlabError as error:
            raise QlabError(f"layer '{block.full_name(group.layers[0])}': {error}") from None
    before = block.call(0)
    for one in searches:
        fold(block.module, one.group, one.scales)
    try:
        check_unchanged(before, block.call(0), block.name)
    except QlabError:
        raise QlabError(
            f"awq changed the output of block '{block.name}': something else reads what its scales "
            "are folded into, or a norm's weight is no plain factor (Gemma); use 'gptq', which "
            "changes no norm"
        ) from None
    return searches


@register(
    "awq",
    options=AwqOptions,
    source="Lin et al. 2023, arXiv 2306.00978, section 3.2",
    chapter="awq",
    needs_calibration=True,
    prepare=prepare,
)
def awq(
    weight: torch.Tensor,
    stats: torch.Tensor | None,
    scheme: Scheme | str,
    options: AwqOptions | None = None,
) -> QTensor:
    """Quantize a scaled ``weight`` (out_features, in_features): clip, then round to nearest.

    Args:
        weight: of a model that ``prepare`` has changed.
        stats: limits, float32 (out_features, groups), or None to clip nothing.

    Raises: QlabError for a scheme that fits its levels to the weights, groups that do not divide
        the width, NaN.

    Chapter: AWQ.
    """
    scheme = Scheme.parse(scheme)
    _check_scheme(scheme)
    return quantize(weight if stats is None else clipped(weight, stats.to(weight.dtype)), scheme)


def _check_scheme(scheme: Scheme) -> None:
    if isinstance(scheme.format, LearnedFormat):
        raise QlabError(
            "method 'awq' rounds to integers, small floats and fixed codebooks; "
            f"'{scheme}' fits its levels to the weights: use method '{scheme.format.kind}' or "
            "'nf4-g64'"
        )


def _clip_block(block: Block, scheme: Scheme, skip: Sequence[str]) -> dict[str, torch.Tensor]:
    """full name -> limits, of the layers whose output is no query and no key."""
    wanted = {
        name: layer
        for name, layer in block.linear_layers()
        if name.rpartition(".")[2] not in skip
        and not _of_scores(name.rpartition(".")[2])
        and _block_size(scheme, *_matrix(layer).shape) is not None
    }
    limits = {}
    for name, inputs in block.gather(list(wanted), needs=("sample",)).items():
        if inputs.tokens:
            x = inputs.sample[:_CLIP_TOKENS]  # the rows are in random order
            limits[block.full_name(name)] = clip_limits(_matrix(wanted[name]), x, scheme)
    return limits


def _of_scores(name: str) -> bool:
    """Whether a layer makes queries or keys, alone or with the values."""
    parts = ("query", "key", "qkv", "c_attn")
    return name.startswith(("q_", "k_")) or any(part in name for part in parts)


def _block_size(scheme: Scheme, rows: int, columns: int) -> int | None:
    """Neighbors in a row that share a scale; None where rows share one too."""
    high, wide = scheme.granularity.block_shape((rows, columns))
    if high != 1 or columns % wide:
        return None
    return int(wide)


def _matrix(layer: Any) -> torch.Tensor:
    """A view (out_features, in_features) of the weight: what is written to it changes the layer."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def _consumer(group: FoldGroup) -> str:
    """Name within the block of the module whose output judges the group."""
    if len(group.layers) == 1 and group.source.rpartition(".")[2] in ("v_proj", "up_proj", "fc1"):
        return group.layers[0]
    parents = [name.split(".")[:-1] for name in group.layers]
    common = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if not common and len(group.layers) == 1:
        return group.layers[0]  # OPT's fc1 lies in the block itself
    return ".".join(common)


def _calls(
    block: Block, module: nn.Module, tokens: int | None
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments with which the block calls a module, for samples of at least ``tokens``."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, dict(kwargs))), with_kwargs=True
    )
    try:
        so_far = 0
        for sample, hidden in enumerate(block.inputs):
            block.call(sample)
            so_far += hidden.shape[1]
            if tokens is not None and so_far >= tokens:
                break
    finally:
        hook.remove()
    return seen


def _output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    out = module(*args, **kwargs)
    first: torch.Tensor = out if isinstance(out, torch.Tensor) else out[0]
    return first
