"""LLM.int8(): rows of weights and tokens of inputs in int8, outlier columns in high precision.

    X Wᵀ  ≈  Σ_{h ∈ O} x_h w_hᵀ  +  1/127² · (c_x ⊗ c_w) · Σ_{h ∉ O} x̄_h w̄_hᵀ

O are the input features where some token is as large as the threshold α, c_x the largest magnitude
of each token, c_w that of each weight row, and bars are int8 codes. Which features are outliers is
found for each input anew: nothing is calibrated. The layer that does so is
``qlab.mixed.Int8MixedLinear``; here is what it is made of.

Source: Dettmers et al. 2022, arXiv 2208.07339, sections 2.1 and 3. Where the paper leaves a choice
this follows bitsandbytes: a code is round(127 / c · x); magnitudes at the threshold are outliers;
and the small values of an outlier column count for c_x.

Chapter: Why large models break.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qlab.core import QTensor, Scheme
from qlab.core._array import dtype_name, to_float32
from qlab.core.qtensor import from_codes
from qlab.errors import QlabError
from qlab.methods.registry import register

THRESHOLD = 6.0


@dataclass(frozen=True)
class LlmInt8Options:
    """threshold α: input features with a magnitude of α or more stay in high precision.

    It is used while the model runs (``qlab.mixed``); the codes of the weights do not depend on it.
    """

    threshold: float = THRESHOLD


@dataclass(frozen=True)
class Decomposed:
    """The input of a layer, taken apart.

    Attributes:
        codes: int8 (tokens, features); 0 in the outlier columns.
        absmax: c_x, float32 (tokens,): the largest magnitude of a token below the threshold.
        outliers: O, int64 (n,): indices of the columns that stay in high precision, ascending.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    outliers: torch.Tensor


@register(
    "llm_int8",
    options=LlmInt8Options,
    source="Dettmers et al. 2022, arXiv 2208.07339, section 3",
    chapter="outliers",
)
def llm_int8(
    weight: torch.Tensor, stats: Any, scheme: Scheme, options: LlmInt8Options | None = None
) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) to int8, a scale for each row.

    The codes are those of bitsandbytes bit for bit, if the weight is float16 or holds values that
    float16 can (bitsandbytes casts it to float16 first).

    Raises: QlabError for a scheme other than ``int8-channel``.

    Chapter: Why large models break.
    """
    if scheme.name != "int8-channel":
        raise QlabError(
            f"method 'llm_int8' has 8-bit codes and a scale for each row of weights: use scheme "
            f"'int8-channel', not '{scheme}'"
        )
    codes, absmax = vectorwise(to_float32(weight, "weight"))
    scale = torch.where(absmax == 0, torch.ones_like(absmax), absmax / 127)
    # The smallest scale that is stored is the smallest normal float32.
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return from_codes(codes, scale[:, None], None, scheme, dtype=dtype_name(weight))


def vectorwise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 (rows, columns) and largest magnitudes float32 (rows,) of x (rows, columns).

    A row of zeros has codes 0. So has a row so small that 127 / c is beyond float32 (c < 4e-37).

    Source: arXiv 2208.07339, section 3.1.

    Chapter: Why large models break.
    """
    absmax = x.abs().amax(dim=1).float()
    factor = 127.0 / absmax
    factor = torch.where(torch.isfinite(factor), factor, torch.zeros_like(factor))
    return torch.round(x * factor[:, None]).to(torch.int8), absmax


def decompose(x: torch.Tensor, threshold: float = THRESHOLD) -> Decomposed:
    """Take an input x (tokens, features) apart into int8 codes and outlier columns.

    A column is an outlier if any of its tokens has a magnitude of ``threshold`` or more. A
    threshold of 0 means no decomposition, as in bitsandbytes: then everything is quantized.

    Raises: QlabError for a negative threshold, or NaN or infinity in x, with its position.

    Source: arXiv 2208.07339, section 3.2.

    Chapter: Why large models break.
    """
    if not threshold >= 0:
        raise QlabError(f"threshold {threshold}: it is a magnitude, so take 0 or more, usually 6")
    x = to_float32(x, "the input")
    far = x.abs() >= threshold if threshold > 0 else torch.zeros_like(x, dtype=torch.bool)
    columns = far.any(dim=0)
    codes, absmax = vectorwise(x.masked_fill(far, 0.0))
    codes[:, columns] = 0
    return Decomposed(codes, absmax, columns.nonzero().flatten())
