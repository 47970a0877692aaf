"""GPTQ: quantize column by column, and let the columns still to come pay for the error.

With H = 2/tokens · X^T X of the layer's inputs X, the squared error of its outputs is a quadratic
form of the weight error. When column i of W is rounded to Ŵ, the change of the later columns that
makes up for most of it is known in closed form. With U upper triangular and H^-1 = U^T U:

    e_i = (w_i - ŵ_i) / U_ii          the error of column i
    W_:,j = W_:,j - e_i · U_ij        for all j > i

and what is left at the end is exactly Σ e_i². Columns are taken in blocks: inside a block the
updates are done one by one, and all later columns get the sum of them as one matrix product.

GPTQ compares with W X, the outputs for the inputs that the quantized layers before it give. GPTAQ
compares with W X̃, those for the inputs of the unquantized model. The difference D = X̃ - X adds a
term to the update. With C = 2/tokens · D^T X (``stats.cross``):

    P = α · triu(C U^T, 1) U
    W_:,j = W_:,j - e_i · U_ij + w_i · P_ij        for all j > i

Source: Frantar, Ashkboos, Hoefler and Alistarh 2023 (arXiv 2210.17323), section 3.3 and algorithm
1; order of activations and static groups: the authors' code. GPTAQ: Li et al. 2025 (arXiv
2504.02692), algorithm 1; their code has α = 0.25. Chapter: GPTQ.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qlab.core import QTensor, Scheme
from qlab.core._array import dtype_name, to_float32
from qlab.core.qtensor import from_codes, whole_blocks
from qlab.errors import QlabError
from qlab.methods.grid import RANGES, Grid, Params
from qlab.methods.inverse_hessian import checked_hessian, inverse_factor
from qlab.methods.registry import register

SCALES = ("current", "block", "static")


@dataclass(frozen=True)
class GptqOptions:
    """How GPTQ goes about it.

    Attributes:
        damping: what is added to the diagonal of H, as a part of the diagonal's mean.
        block_size: columns that are updated one by one before the rest gets their sum. It changes
            the result only by rounding, apart from what ``scales="block"`` does.
        scales: when the scale of a group is taken. ``current``: when its first column is reached,
            of the weights with all updates so far. ``block``: of the weights as they stood when
            its block began (gptqmodel and the authors' code; the same where groups are not smaller
            than blocks). ``static``: of the weights as they were given (llm-compressor).
            None: ``current``, or ``static`` with ``act_order``.
        act_order: take the columns with the largest H_ii first (``desc_act``, ``actorder``).
        ranges: ``minmax`` or ``mse``, how the scale follows from the weights of a group.
        pad: fill the weight with zeros to whole groups where the group size does not divide it.
        alpha: part of GPTAQ's correction of what earlier layers did to the inputs, 0 (GPTQ) to 1.
    """

    damping: float = 0.01
    block_size: int = 128
    scales: str | None = None
    act_order: bool = False
    ranges: str = "minmax"
    pad: bool = False
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise QlabError(f"damping {self.damping}: it is 0 or more (usual: 0.01)")
        if self.block_size < 1:
            raise QlabError(f"block_size {self.block_size}: a block has 1 column or more")
        if self.scales is not None and self.scales not in SCALES:
            raise QlabError(f"unknown scales '{self.scales}': choose one of {', '.join(SCALES)}")
        if self.ranges not in RANGES:
            raise QlabError(f"unknown ranges '{self.ranges}': choose one of {', '.join(RANGES)}")
        if not 0 <= self.alpha <= 1:
            raise QlabError(f"alpha {self.alpha}: it lies between 0 (GPTQ) and 1")
        if self.act_order and self.scales not in (None, "static"):
            raise QlabError(
                "act_order takes the columns of a group at different times, so its scale must be "
                "known before: use scales='static'"
            )

    @property
    def when(self) -> str:
        """``scales``, or what stands for None."""
        return self.scales or ("static" if self.act_order else "current")


def needs(options: GptqOptions) -> tuple[str, ...]:
    """What the method must know of a layer's inputs."""
    return ("hessian", "cross") if options.alpha else ("hessian",)


@register(
    "gptq",
    options=GptqOptions,
    needs_calibration=True,
    needs=needs,
    source="Frantar et al. 2023, arXiv 2210.17323, section 3.3 and algorithm 1",
    chapter="gptq",
)
def gptq(
    weight: torch.Tensor, stats: Any, scheme: Scheme | str, options: GptqOptions | None = None
) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) so that the layer's outputs change least.

    Args:
        weight: torch, any real floating dtype.
        stats: has ``hessian``, float32 (in_features, in_features), such as
            ``qlab.calibrate.LayerInputs``; with ``alpha`` also ``cross``, of the same shape.
        scheme: integers, small floats or fixed codebooks, any granularity.

    Raises: QlabError for a scheme that is no fixed grid, groups that do not divide the width
        (unless ``pad``), NaN, a Hessian of another shape or of zeros.

    Chapter: GPTQ.
    """
    options, scheme = options or GptqOptions(), Scheme.parse(scheme)
    if weight.ndim != 2:
        raise QlabError(f"GPTQ takes a weight of 2 axes, got shape {tuple(weight.shape)}")
    name = getattr(stats, "name", "")
    in_features = int(weight.shape[1])
    given = to_float32(weight.detach(), "weight").cpu()
    h = checked_hessian(stats.hessian, in_features, name)
    if options.alpha and getattr(stats, "cross", None) is None:
        raise QlabError(
            "alpha compares with the inputs of the unquantized model: give LayerInputs.of(x, full)"
        )
    dead = stats.hessian.diagonal().cpu() == 0
    whole = whole_blocks(given, scheme, options.pad).contiguous()
    grid = Grid.of(scheme, whole, "gptq")

    # Where the scales are static, or there is one group a row, they come from the weight as given.
    width = scheme.granularity.block_shape(tuple(whole.shape))[1]
    once = options.when == "static" or width >= in_features
    params = grid.params(whole, options.ranges) if once else None

    work = whole[:, :in_features].clone()
    work[:, dead] = 0  # a dead input: any weight will do
    order = torch.arange(in_features)
    if options.act_order:
        order = torch.argsort(h.diagonal(), descending=True)
        work, h = work[:, order].contiguous(), h[order][:, order].contiguous()
    u, _ = inverse_factor(h, options.damping, name)
    p = torch.zeros(0, 0)
    if options.alpha:
        cross = stats.cross.to("cpu", torch.float32)[order][:, order]
        cross = torch.where(dead[order][None, :], torch.zeros(()), cross)
        p = options.alpha * (cross @ u.T).triu(1) @ u
    codes, params = _columns(work, u, p, order // max(width, 1), width, params, grid, options)

    places = torch.zeros(whole.shape, dtype=torch.int16)
    places[:, order] = codes
    if whole.shape[1] > in_features:  # the padding: the code of zero
        zero = 0 if params.zero_point is None else params.zero_point[:, -1:]
        places[:, in_features:] = zero if not grid.levels.size else _place_of_zero(grid)
    device = weight.device
    return from_codes(
        grid.to_codes(places).to(device),
        params.stored.to(device),
        None if params.zero_point is None else params.zero_point.to(device),
        scheme,
        shape=tuple(int(s) for s in weight.shape),
        dtype=dtype_name(weight),
        tensor_scale=None if grid.tensor_scale is None else grid.tensor_scale.to(device),
    )


def _columns(
    work: torch.Tensor,
    u: torch.Tensor,
    p: torch.Tensor,
    group_of: torch.Tensor,
    width: int,
    params: Params | None,
    grid: Grid,
    options: GptqOptions,
) -> tuple[torch.Tensor, Params]:
    """Codes (or places in the levels) of all columns of ``work``, and the parameters in use.

    Args:
        work: float32 (rows, n), columns in the order in which they are taken; used up.
        u: (n, n), the upper factor. p: what GPTAQ adds, or empty.
        group_of: the group of each column. width: columns a group.
        params: of all groups, or None to take them on the way.
    """
    from qlab.kernels.cpu.gptq import quantize_columns

    rows, n = work.shape
    codes = torch.empty(rows, n, dtype=torch.int16)
    found = []
    i2 = 0
    while i2 < n:
        i1, i2 = i2, min(i2 + options.block_size, n)
        last = (i2 - 1) // width * width
        if params is None and options.when == "current" and i1 < last and i2 < last + width:
            i2 = min(last, n)  # a group that reaches beyond the block begins the next one
        # A copy: the slice is ``work`` itself where there is one block.
        block = work[:, i1:i2].clone(memory_format=torch.contiguous_format).numpy()
        ub, pb = u[i1:i2, i1:i2].contiguous().numpy(), p[i1:i2, i1:i2].contiguous().numpy()
        errors = torch.empty(rows, i2 - i1)
        for start, stop in _stretches(i1, i2, 0 if params else width):
            if params is None and start % width == 0:
                # "block": of the weights that the updates inside this block have not reached.
                if options.when == "current":
                    work[:, i1:i2] = torch.from_numpy(block)
                group = work[:, start : start + width]
                found.append(grid.params(_full_width(group, width), options.ranges))
            use = params or found[-1]
            which = group_of[i1:i2] if params else torch.zeros(i2 - i1, dtype=torch.int64)
            codes[:, start:stop], errors[:, start - i1 : stop - i1] = map(
                torch.from_numpy,
                quantize_columns(
                    block,
                    ub,
                    pb,
                    start - i1,
                    stop - i1,
                    which.numpy(),
                    *use.by_row(rows),
                    np.float32(grid.low),
                    np.float32(grid.high),
                    grid.levels,
                    grid.bounds,
                ),
            )
        if i2 < n and p.numel():
            work[:, i2:] -= errors @ u[i1:i2, i2:] - torch.from_numpy(block) @ p[i1:i2, i2:]
        elif i2 < n:  # in one pass over the memory; the bits are those of the line above
            work[:, i2:].addmm_(errors, u[i1:i2, i2:], alpha=-1)
    return codes, params or _join(found)


def _stretches(i1: int, i2: int, width: int) -> list[tuple[int, int]]:
    """Cut the columns i1 ... i2 - 1 where a group begins; width 0 does not cut."""
    cuts = [i1, *(i for i in range(i1 + 1, i2) if width and i % width == 0), i2]
    return list(itertools.pairwise(cuts))


def _full_width(group: torch.Tensor, width: int) -> torch.Tensor:
    """The last group with its padding of zeros."""
    missing = width - group.shape[1]
    return torch.nn.functional.pad(group, (0, missing)) if missing else group.contiguous()


def _join(found: list[Params]) -> Params:
    """The parameters of all groups, from those of each."""
    zeros = [f.zero_point for f in found if f.zero_point is not None]
    stored, used, factor = (
        torch.cat([getattr(f, part) for f in found], dim=1) for part in ("stored", "used", "factor")
    )
    return Params(stored, torch.cat(zeros, dim=1) if zeros else None, used, factor)


def _place_of_zero(grid: Grid) -> int:
    return int(np.searchsorted(grid.bounds, np.float32(0)))
