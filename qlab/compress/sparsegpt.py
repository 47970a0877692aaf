"""SparseGPT: prune column by column, and let the weights still to come pay for those that go.

What GPTQ does for rounding, with zero as the value to round to. With H^-1 = U^T U, U upper
triangular, taking weight w_i away costs w_i² / U_ii², if the columns behind it pay:

    gone = those of a block of columns with the lowest w_i² / U_ii²
    e_i = (w_i - ŵ_i) / U_ii,   ŵ_i = 0 where weight i goes, else w_i
    W_:,j = W_:,j - e_i · U_ij                                       for all j > i

A pattern n:m chooses its weights when the first of m columns is reached, of weights that have paid
already. With a scheme the weights that stay are rounded on the way, ŵ_i = round(w_i), so that later
columns pay for both.

Source: Frantar and Alistarh 2023 (arXiv 2301.00774), section 3 and algorithm 1; rounding on the
way: section 3.5. Chapter: Pruning, low rank, distillation: what quantization is combined with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qlab.compress.masks import Target, checked_weight
from qlab.core import QTensor, Scheme
from qlab.core._array import dtype_name
from qlab.core.qtensor import from_codes
from qlab.errors import QlabError
from qlab.methods.grid import Grid
from qlab.methods.inverse_hessian import checked_hessian, inverse_factor


@dataclass(frozen=True)
class SparsegptOptions:
    """How SparseGPT goes about it.

    Attributes:
        damping: what is added to the diagonal of H, as a part of the diagonal's mean.
        block_size: columns whose weights are compared with one another, and after which the rest
            gets the sum of the updates. With a scheme it grows to whole groups.
    """

    damping: float = 0.01
    block_size: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise QlabError(f"damping {self.damping}: it is 0 or more (usual: 0.01)")
        if self.block_size < 1:
            raise QlabError(f"block_size {self.block_size}: a block has 1 column or more")


def sparsegpt(
    weight: torch.Tensor,
    stats: Any,
    target: Target,
    options: SparsegptOptions | None = None,
    *,
    scheme: Scheme | str | None = None,
    gone: torch.Tensor | None = None,
) -> torch.Tensor | QTensor:
    """Prune a weight (out_features, in_features) so that the layer's outputs change least.

    Args:
        weight: torch, any real floating dtype.
        stats: has ``hessian``, float32 (in_features, in_features), such as
            ``qlab.calibrate.LayerInputs``.
        target: how many go.
        scheme: quantize the weights that stay, and return a QTensor; those that go have the code
            of zero.
        gone: bool (out_features, in_features), True where a weight goes: another way's choice,
            such as Wanda's, whose errors the others then pay for. ``target`` then counts for
            nothing.

    Returns: the weight in its dtype, or a QTensor with a scheme.

    Raises: QlabError for NaN, a Hessian of another shape or of zeros, a block that does not hold
        whole patterns, a scheme without a code for zero.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    options = options or SparsegptOptions()
    w = checked_weight(weight)
    rows, n = (int(s) for s in w.shape)
    name = getattr(stats, "name", "")
    h = checked_hessian(stats.hessian, n, name)
    if gone is not None and tuple(gone.shape) != (rows, n):
        raise QlabError(f"gone has shape {tuple(gone.shape)}: the weight has ({rows}, {n})")
    target.check(n)
    rounder = None if scheme is None else _Rounder(Scheme.parse(scheme), w)
    block_size = options.block_size if rounder is None else rounder.whole(options.block_size)
    if target.pattern and block_size % target.pattern[1]:
        raise QlabError(
            f"block_size {block_size}: pattern '{target}' needs a multiple of {target.pattern[1]}"
        )
    w[:, stats.hessian.diagonal().cpu() == 0] = 0  # a dead input: any weight will do
    u, _ = inverse_factor(h, options.damping, name)
    for i1 in range(0, n, block_size):
        i2 = min(i1 + block_size, n)
        block, errors = w[:, i1:i2].clone(), torch.zeros(rows, i2 - i1)
        ub = u[i1:i2, i1:i2]
        goes = torch.zeros(rows, i2 - i1, dtype=torch.bool)
        if gone is not None:
            goes = gone[:, i1:i2].cpu().clone()
        elif not target.pattern:
            goes = target.lowest(cost(block, ub), "layer")
        for i in range(i2 - i1):
            if gone is None and target.pattern and i % target.pattern[1] == 0:
                some = slice(i, i + target.pattern[1])
                goes[:, some] = target.lowest(cost(block[:, some], ub[some, some]))
            if rounder is not None:
                rounder.reach(i1 + i, block[:, i:])
            now = block[:, i].clone()
            hat = now if rounder is None else rounder.round(i1 + i, now, goes[:, i])
            hat = hat.masked_fill(goes[:, i], 0)
            e = (now - hat) / ub[i, i]
            block[:, i:] -= e[:, None] @ ub[i : i + 1, i:]
            block[:, i] = hat  # its own update gives ŵ too, but for rounding
            errors[:, i] = e
        w[:, i1:i2] = block
        w[:, i2:] -= errors @ u[i1:i2, i2:]
    if rounder is not None:
        return rounder.qtensor(weight)
    return w.to(weight.device, weight.dtype)


def cost(block: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """w_i² / U_ii² of each weight of some columns: what it costs if it goes. float64."""
    return (block.double() / u.diagonal().double()) ** 2


class _Rounder:
    """Rounds column after column to the codes of a scheme, with scales a group."""

    def __init__(self, scheme: Scheme, weight: torch.Tensor) -> None:
        shape = tuple(int(s) for s in weight.shape)
        scheme.granularity.check_divides(shape)
        self.scheme, self.grid = scheme, Grid.of(scheme, weight, "sparsegpt")
        self.width = scheme.granularity.block_shape(shape)[1]
        # Numbers are looked up among the levels; integers are computed.
        self.levels = torch.from_numpy(self.grid.levels)
        self.zero = int(np.searchsorted(self.grid.bounds, np.float32(0)))
        if len(self.levels) and float(self.levels[self.zero]) != 0:
            raise QlabError(
                f"scheme '{scheme}' has no code for zero, so pruned weights would come back: use "
                "an integer format, or nf4"
            )
        self.places = torch.zeros(shape, dtype=torch.int16)
        self.once = self.width >= shape[1]
        self.groups = [self.grid.params(weight, "minmax")] if self.once else []

    def whole(self, block_size: int) -> int:
        """``block_size``, grown to whole groups."""
        return block_size if self.once else -(-block_size // self.width) * self.width

    def reach(self, column: int, ahead: torch.Tensor) -> None:
        """Take the scales of the group that begins at a column, of weights that have paid.

        ahead: (rows, columns from there to the end of the block).
        """
        if not self.once and column % self.width == 0:
            self.groups.append(self.grid.params(ahead[:, : self.width].contiguous(), "minmax"))

    def round(self, column: int, w: torch.Tensor, goes: torch.Tensor) -> torch.Tensor:
        """ŵ (rows,) of a column (rows,); a weight that goes gets the code of zero."""
        params = self.groups[-1]
        used, factor, zero = (torch.from_numpy(p[:, 0]) for p in params.by_row(len(w)))
        if len(self.levels):
            place = torch.searchsorted(torch.from_numpy(self.grid.bounds), w * factor)
            place = place.masked_fill(goes, self.zero)
            self.places[:, column] = place.to(torch.int16)
            return self.levels[place] * used
        code = ((w / factor).round() + zero).clamp(self.grid.low, self.grid.high)
        code = torch.where(goes, zero, code)
        self.places[:, column] = code.to(torch.int16)
        return (code - zero) * used

    def qtensor(self, weight: torch.Tensor) -> QTensor:
        """All codes with their parameters, on the device of ``weight`` and with its dtype."""
        device, shared = weight.device, self.grid.tensor_scale
        zeros = [g.zero_point for g in self.groups if g.zero_point is not None]
        return from_codes(
            self.grid.to_codes(self.places).to(device),
            torch.cat([g.stored for g in self.groups], dim=1).to(device),
            torch.cat(zeros, dim=1).to(device) if zeros else None,
            self.scheme,
            shape=tuple(int(s) for s in weight.shape),
            dtype=dtype_name(weight),
            tensor_scale=None if shared is None else shared.to(device),
        )
