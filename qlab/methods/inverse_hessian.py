"""What GPTQ and OBQ take from the Hessian: damped, inverted, factored.

    H = 2/tokens · X^T X                the Hessian of the layer's squared output error
    H + λ I,  λ = damping · mean(H_ii)  damped, so that it can be inverted
    H^-1 = U^T U                        U upper triangular: what GPTQ needs of the inverse

Source: Frantar et al. 2023 (arXiv 2210.17323), section 3.3, step 3. Chapter: GPTQ.
"""

from __future__ import annotations

import warnings

import torch

from qlab.errors import QlabError

RAISES = 6  # times ten each, from the damping that was asked for


def checked_hessian(hessian: torch.Tensor, in_features: int, name: str = "") -> torch.Tensor:
    """A float32 copy of H (in_features, in_features), in which dead inputs have H_ii = 1.

    An input that was zero in every sample is *dead*: its row and column of H are zero.

    Raises: QlabError for another shape, NaN or infinity, a negative diagonal, or zeros only.
    """
    layer = f"the Hessian of layer '{name}'" if name else "the Hessian"
    if tuple(hessian.shape) != (in_features, in_features):
        raise QlabError(
            f"{layer} has shape {tuple(hessian.shape)}: a layer of {in_features} inputs has one of "
            f"({in_features}, {in_features})"
        )
    h = hessian.detach().to("cpu", torch.float32, copy=True).contiguous()
    low, high = torch.aminmax(h)  # both keep NaN and infinity
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise QlabError(f"{layer} has NaN or infinity: look for it in the calibration data")
    diagonal = h.diagonal()
    if bool((diagonal < 0).any()):
        raise QlabError(f"{layer} has a negative diagonal: it must be X^T X of the layer's inputs")
    dead = diagonal == 0
    if bool(dead.all()):
        raise QlabError(
            f"{layer} is zero, so no input reached it: calibrate with data that does, or use "
            "method 'rtn', which needs none"
        )
    diagonal[dead] = 1.0
    return h


def inverse_factor(h: torch.Tensor, damping: float, name: str = "") -> tuple[torch.Tensor, float]:
    """U, upper triangular with (H + damping · mean(H_ii) I)^-1 = U^T U, and the damping in use.

    Three steps, as in the paper: factor H, invert it by its factor, factor the inverse. Where
    rounding has left H without a factor, the damping is raised tenfold, with a warning that says
    so. H (float32, from ``checked_hessian``) keeps its values.

    Raises: QlabError if no damping up to one million times helps.
    """
    diagonal = h.diagonal()
    kept, mean = diagonal.clone(), diagonal.mean()
    used = damping
    for _ in range(RAISES + 1):
        diagonal.add_(used * mean)
        factor, failed = torch.linalg.cholesky_ex(h)
        diagonal.copy_(kept)
        if not int(failed):
            torch.cholesky_inverse(factor, out=factor)
            upper, failed = torch.linalg.cholesky_ex(factor, upper=True)
            if not int(failed) and bool(torch.isfinite(upper.diagonal()).all()):
                if used != damping:
                    warnings.warn(
                        f"the Hessian of layer '{name}' is singular with damping {damping:g}: "
                        f"raised to {used:g}; more calibration data helps too",
                        stacklevel=3,
                    )
                return upper, used
        used = max(10 * used, 1e-5)
    raise QlabError(
        f"the Hessian of layer '{name}' has no Cholesky factor, whatever the damping: it must be "
        "X^T X of the layer's inputs"
    )
