"""Low rank: a matrix as the product of two thin ones, and what quantization lost as another.

    W ≈ A B,   A (out_features, rank), B (rank, in_features)

Three ways, and one idea: take the singular value decomposition of W S and undo S afterwards,

    W S = U Σ Vᵀ,   A = U_r Σ_r^½,   B = Σ_r^½ V_rᵀ S⁻¹

    svd        S = 1                 the nearest matrix of that rank (Eckart and Young)
    asvd       S = diag(mean|x|^α)   inputs that are large count more
    whitened   S Sᵀ = H              the nearest outputs: with H = 2/tokens · XᵀX the error of the
                                     outputs is tr(Δ H Δᵀ) = ‖Δ S‖², which the decomposition makes
                                     as small as that rank allows: Σ_{i>r} σ_i²

The correction of a quantized weight is the same for W - Ŵ in place of W.

Source: ASVD, Yuan et al. 2023 (arXiv 2312.05821), section 3; whitening, Wang et al. 2024, SVD-LLM
(arXiv 2403.07378), section 3.1; correction, Yao et al. 2023, ZeroQuant-V2 (arXiv 2303.08302),
section on LoRC, and with the inputs' statistics Zhang et al. 2024, LQER (arXiv 2402.02446).
Chapter: Pruning, low rank, distillation: what quantization is combined with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qlab.compress.masks import checked_weight
from qlab.core import QTensor
from qlab.errors import QlabError
from qlab.methods.inverse_hessian import checked_hessian

METHODS = ("svd", "asvd", "whitened")
DAMPING = 1e-4  # of the mean diagonal: enough for a factor, too little to move the answer


def factor(
    weight: torch.Tensor,
    rank: int,
    method: str = "svd",
    stats: Any = None,
    *,
    alpha: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of a weight. Computed in float64.

    Args:
        weight: torch (out_features, in_features), any real floating dtype.
        rank: 1 to the smaller side.
        method: ``svd``, ``asvd`` or ``whitened``.
        stats: of the layer's inputs, such as ``qlab.calibrate.LayerInputs``: ``asvd`` needs
            ``mean_abs`` (in_features,), ``whitened`` needs ``hessian`` (in_features, in_features).
        alpha: of ``asvd``.

    Returns: A (out_features, rank) and B (rank, in_features), in the dtype of the weight. Each has
        the square roots of the singular values, so that both are of one size.

    Raises: QlabError for an unknown method, a rank that the weight does not have, NaN, or stats
        that are missing.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    if method not in METHODS:
        raise QlabError(f"unknown method '{method}': choose one of {', '.join(METHODS)}")
    w = checked_weight(weight).double()
    if not 1 <= rank <= min(w.shape):
        raise QlabError(f"rank {rank}: a weight of shape {tuple(w.shape)} has 1 to {min(w.shape)}")
    if method != "svd" and stats is None:
        raise QlabError(f"method '{method}' looks at the inputs: give stats, or use 'svd'")
    if method == "svd":
        u, sigma, vt = torch.linalg.svd(w, full_matrices=False)
        b = vt[:rank]
    elif method == "asvd":
        size = stats.mean_abs.cpu().double()
        # An input that is always zero counts as little as the smallest that is not.
        least = size[size > 0].min() if bool((size > 0).any()) else torch.ones(())
        s = size.clamp(min=float(least)) ** alpha
        u, sigma, vt = torch.linalg.svd(w * s, full_matrices=False)
        b = vt[:rank] / s
    else:
        s = half_of(stats.hessian, int(w.shape[1]), getattr(stats, "name", ""))
        u, sigma, vt = torch.linalg.svd(w @ s, full_matrices=False)
        # B = Vᵀ S⁻¹, from B S = Vᵀ with S lower triangular.
        b = torch.linalg.solve_triangular(s, vt[:rank], upper=False, left=False)
    root = sigma[:rank].sqrt()
    return (u[:, :rank] * root).to(weight.dtype), (b * root[:, None]).to(weight.dtype)


def half_of(hessian: torch.Tensor, in_features: int, name: str = "") -> torch.Tensor:
    """S, lower triangular with S Sᵀ = H plus a little on its diagonal. float64."""
    h = checked_hessian(hessian, in_features, name).double()
    mean = h.diagonal().mean()
    used = DAMPING
    while True:
        h.diagonal().add_(used * mean)
        s, failed = torch.linalg.cholesky_ex(h)
        if not int(failed):
            found: torch.Tensor = s
            return found
        used *= 10


def low_rank_correction(
    weight: torch.Tensor, qweight: QTensor | torch.Tensor, rank: int, stats: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B with Ŵ + A B as near to W as that rank allows.

    Args:
        weight: W, torch (out_features, in_features).
        qweight: Ŵ, a QTensor or what it dequantizes to.
        rank: of the correction.
        stats: None for the nearest weights (LoRC); of the layer's inputs, with ``hessian``, for the
            nearest outputs.

    Returns: A (out_features, rank) and B (rank, in_features), in the dtype of the weight; zeros
        where nothing was lost.

    Raises: QlabError as ``factor`` does, or where the shapes differ.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    hat = qweight.dequantize() if isinstance(qweight, QTensor) else qweight
    if tuple(hat.shape) != tuple(weight.shape):
        raise QlabError(f"shapes differ: W {tuple(weight.shape)}, Ŵ {tuple(hat.shape)}")
    rest = weight.detach().float() - hat.detach().to(weight.device).float()
    a, b = factor(rest, rank, "svd" if stats is None else "whitened", stats)
    return a.to(weight.dtype), b.to(weight.dtype)


def rank_for(shape: tuple[int, int], ratio: float) -> int:
    """The largest rank whose two factors have at most ``ratio`` times the numbers of the matrix.

    Raises: QlabError for a ratio that no rank of 1 or more reaches, or that is above 1.
    """
    rows, columns = shape
    rank = int(ratio * rows * columns / (rows + columns) + 1e-9)
    if not 0 < ratio <= 1 or rank < 1:
        raise QlabError(
            f"ratio {ratio}: rank 1 of a weight of shape {shape} takes "
            f"{(rows + columns) / (rows * columns):.4f} of its numbers; give more, up to 1"
        )
    return min(rank, rows, columns)


class LowRankLinear(nn.Module):
    """y = A (B x) + b, on top of another layer if there is one.

    Attributes:
        first: the layer B, (rank, in_features).
        second: the layer A, (out_features, rank), with the bias where there is no base.
        base: the layer that is corrected, or None.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """

    def __init__(self, first: nn.Module, second: nn.Module, base: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second, self.base = first, second, base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features)."""
        low: torch.Tensor = self.second(self.first(x))
        return low if self.base is None else self.base(x) + low
