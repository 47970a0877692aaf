"""Ternary weights as BitNet b1.58 trains them: the mean magnitude is the scale.

    γ = mean |W|        codes = clip(round(W / γ), -1, 1)        Ŵ = γ · codes

The mean is taken anew in each step, over the whole matrix or over what the scheme groups. The
gradient passes straight through, past the clip too: a weight beyond ±1.5 γ keeps its gradient.
Inputs are rounded to eight bits a token. Then a product needs no multiplication but that of the
two scales at its end: each input is added, subtracted, or left out.

Source: Ma et al. 2024, arXiv 2402.17764, section 2, equations 1 to 3 (weights); Wang et al. 2023,
arXiv 2310.11453, section 2.1 (inputs).

Chapter: Down to 1.58 bits.
"""

from __future__ import annotations

import torch

from qlab.core import QTensor, Scheme
from qlab.core import granularity as gran
from qlab.errors import QlabError
from qlab.training.fake_quant import Quantizer, StraightThrough, quantized

# The authors' floor of γ, so that a matrix of zeros does not divide by zero.
SMALLEST = 1e-5


def mean_magnitude(weight: torch.Tensor, scheme: str | Scheme) -> torch.Tensor:
    """γ of each block of ``weight``: float32, one a block, at least ``SMALLEST``.

    Chapter: Down to 1.58 bits.
    """
    scheme = Scheme.parse(scheme)
    block = scheme.granularity.block_shape(tuple(weight.shape))
    blocks, axes = gran.to_blocks(weight.detach().float().abs(), block)
    gamma = blocks.mean(dim=axes).clamp(min=SMALLEST)
    return gamma.half().float() if scheme.scale_word == "sfp16" else gamma


def ternarize(weight: torch.Tensor, scheme: str | Scheme = "ternary-tensor") -> QTensor:
    """Ternary codes of ``weight``, with its mean magnitude as the scale.

    Args:
        weight: (out_features, in_features), any floating dtype; computed in float32.
        scheme: ``ternary-tensor`` as in BitNet, or ``ternary-channel``, ``ternary-g128`` ...;
            with ``-sfp16``, γ is a float16 number, as files hold it.

    Raises: QlabError for a format that is not ternary, NaN or infinity.

    Chapter: Down to 1.58 bits.
    """
    scheme = _ternary(scheme)
    if not bool(torch.isfinite(weight).all()):
        raise QlabError("the weight holds NaN or infinity: it has no mean magnitude")
    return quantized(weight, scheme, mean_magnitude(weight, scheme))


class AbsMean(Quantizer):
    """Method ``absmean`` of ``qlab.training.prepare``: ternary weights with γ from each step.

    Chapter: Down to 1.58 bits.
    """

    method = "absmean"

    def __init__(self, scheme: str | Scheme = "ternary-tensor") -> None:
        super().__init__(_ternary(scheme))

    def params(self) -> tuple[None, None]:
        return None, None

    def qtensor(self, x: torch.Tensor) -> QTensor:
        return ternarize(x, self.scheme)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_hat: torch.Tensor = StraightThrough.apply(x, self.qtensor(x.detach()).dequantize(), None)
        return x_hat


def _ternary(scheme: str | Scheme) -> Scheme:
    scheme = Scheme.parse(scheme)
    if scheme.format.name != "ternary":
        raise QlabError(
            f"the mean magnitude is the scale of ternary weights, not of {scheme.format.name}: "
            "use 'ternary-tensor', or another method of training"
        )
    return scheme
