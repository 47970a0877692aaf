"""OBQ, exact: one weight at a time, and always the one that costs least. For small layers.

Each row w of the weight is a problem of its own, with the same H. Of the weights that are not yet
quantized, take the one whose rounding, with all others free to make up for it, costs least:

    p = argmin_q  (w_q - ŵ_q)² / [H^-1]_qq                       what it costs
    w = w - (w_p - ŵ_p) / [H^-1]_pp · [H^-1]_:,p                 what the others do
    H^-1 = H^-1 - [H^-1]_:,p [H^-1]_p,: / [H^-1]_pp              p is no longer free

This is the optimal brain surgeon with rounding in place of removal. It takes in_features³ steps a
row, where GPTQ takes in_features³ for all rows: the slow truth that GPTQ approximates.

Source: Frantar, Singh and Alistarh 2022 (arXiv 2208.11580), section 5 and algorithm 3. Chapter:
GPTQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qlab.core import QTensor, Scheme
from qlab.core._array import dtype_name, to_float32
from qlab.core.qtensor import from_codes
from qlab.errors import QlabError
from qlab.methods.grid import RANGES, Grid
from qlab.methods.inverse_hessian import checked_hessian, inverse_factor
from qlab.methods.registry import register

ORDERS = ("greedy", "columns")
LARGEST = 2048  # in_features; a row then takes about ten seconds


@dataclass(frozen=True)
class ObqOptions:
    """How exact OBQ goes about it.

    Attributes:
        damping: as in GPTQ.
        order: ``greedy``, each row in an order of its own, or ``columns``, from left to right:
            then it computes what GPTQ computes with static scales, in the plainest way.
        ranges: ``minmax`` or ``mse``, how the scales follow from the weights as given.
        outliers: take a weight that lies beyond the grid as soon as there is one (section 5).
    """

    damping: float = 0.01
    order: str = "greedy"
    ranges: str = "minmax"
    outliers: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise QlabError(f"damping {self.damping}: it is 0 or more (usual: 0.01)")
        if self.order not in ORDERS:
            raise QlabError(f"unknown order '{self.order}': choose one of {', '.join(ORDERS)}")
        if self.ranges not in RANGES:
            raise QlabError(f"unknown ranges '{self.ranges}': choose one of {', '.join(RANGES)}")


@register(
    "obq",
    options=ObqOptions,
    needs_calibration=True,
    source="Frantar et al. 2022, arXiv 2208.11580, section 5 and algorithm 3",
    chapter="gptq",
)
def obq(
    weight: torch.Tensor, stats: Any, scheme: Scheme | str, options: ObqOptions | None = None
) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) one weight at a time. float64 inside.

    Args: as in ``gptq``. The scales are those of the weight as given.

    Raises: QlabError as ``gptq`` does, and for more than 2048 inputs.

    Chapter: GPTQ.
    """
    from qlab.kernels.cpu.obq import quantize_rows

    options, scheme = options or ObqOptions(), Scheme.parse(scheme)
    if weight.ndim != 2:
        raise QlabError(f"OBQ takes a weight of 2 axes, got shape {tuple(weight.shape)}")
    rows, n = (int(s) for s in weight.shape)
    if n > LARGEST:
        raise QlabError(
            f"OBQ takes n³ steps a row, too many for {n} inputs: use 'gptq', or at most {LARGEST}"
        )
    name = getattr(stats, "name", "")
    given = to_float32(weight.detach(), "weight").cpu().contiguous()
    scheme.granularity.check_divides((rows, n))
    h = checked_hessian(stats.hessian, n, name)
    grid = Grid.of(scheme, given, "obq")
    params = grid.params(given, options.ranges)
    work = given.double()
    work[:, stats.hessian.diagonal().cpu() == 0] = 0
    u, _ = inverse_factor(h.double(), options.damping, name)
    used, factor, zero = params.by_row(rows)
    places = quantize_rows(
        work.numpy(),
        (u.T @ u).contiguous().numpy(),
        np.arange(n) // scheme.granularity.block_shape((rows, n))[1],
        used.astype(np.float64),
        factor.astype(np.float64),
        zero.astype(np.float64),
        float(grid.low),
        float(grid.high),
        grid.levels.astype(np.float64),
        grid.bounds.astype(np.float64),
        options.order == "greedy",
        options.outliers,
    )
    device = weight.device
    return from_codes(
        grid.to_codes(torch.from_numpy(places)).to(device),
        params.stored.to(device),
        None if params.zero_point is None else params.zero_point.to(device),
        scheme,
        shape=(rows, n),
        dtype=dtype_name(weight),
        tensor_scale=None if grid.tensor_scale is None else grid.tensor_scale.to(device),
    )
