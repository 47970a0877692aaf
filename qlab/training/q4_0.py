"""Train for GGUF's Q4_0, so that the file holds the very weights that were trained.

A block of 32 weights in Q4_0 has one number d: the weight m of largest magnitude, with its sign,
over -8. A weight is d · k with k from -8 to 7, and m itself is exactly at k = -8:

    d = m / -8, a float16 number        k = clip(round(w / d), -8, 7)        ŵ = d · k

d is negative where m is positive. Written with a scale above 0, as in this project, scale = |d|,
codes run from -8 to 7, and zero_point is 0 where d > 0, and -1 where d < 0 (ŵ from -7 to 8 scales).

Blocks whose largest magnitude is below 4e-6 are an exception: float16 has too few numbers there for
m to stay at k = -8, and such a block may change when it is written.

Other schemes of four bits and groups of 32 have other levels. Written to Q4_0 they are rounded a
second time, and what was trained is lost in part.

Source: ggml's ``quantize_row_q4_0_ref`` (https://github.com/ggml-org/ggml).
Chapter: Quantization-aware training.
"""

from __future__ import annotations

import torch

from qlab.core import QTensor, Scheme
from qlab.core import granularity as gran
from qlab.errors import QlabError
from qlab.training.fake_quant import Quantizer, StraightThrough, quantized

SCHEME = "int4-asym-g32-sfp16"


def q4_0_parameters(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scale (float16) and zero_point (int32), (out_features, in_features / 32), of Q4_0's rule.

    Args:
        weight: (out_features, in_features), any floating dtype; 32 divides in_features.

    Raises: QlabError for NaN or infinity, or magnitudes beyond 8 · 65504.

    Chapter: Quantization-aware training.
    """
    if not bool(torch.isfinite(weight).all()):
        raise QlabError("the weight holds NaN or infinity: no block of it has a largest weight")
    block = Scheme.parse(SCHEME).granularity.block_shape(tuple(weight.shape))
    blocks, axes = gran.to_blocks(weight.detach().float(), block)
    last = blocks.flatten(-1) if len(axes) == 1 else blocks.squeeze(axes[0])
    m = last.gather(-1, last.abs().argmax(-1, keepdim=True)).squeeze(-1)
    d = (m / -8).half()
    if not bool(torch.isfinite(d).all()):
        raise QlabError("a weight is beyond 8 times the largest float16 number: Q4_0 can't hold it")
    # A block of zeros has d = 0; with the smallest float16 number its codes are zero too.
    scale = d.abs().clamp(min=2.0**-24)
    return scale, -(d < 0).int()


class Q4_0(Quantizer):
    """Method ``q4_0`` of ``qlab.training.prepare``: 4 bits by the rule of GGUF's Q4_0.

    The scales are those of the weights in each step; the gradient passes straight through. Nothing
    is clipped by more than a step: the largest weight is a level, and only its opposite may lie
    beyond the last one.

    Chapter: Quantization-aware training.
    """

    method = "q4_0"

    def __init__(self, scheme: str | Scheme = SCHEME) -> None:
        super().__init__(scheme)
        if self.scheme.name != SCHEME:
            raise QlabError(f"Q4_0 is the scheme '{SCHEME}', not '{self.scheme}': prepare with it")

    def params(self) -> tuple[None, None]:
        return None, None

    def qtensor(self, x: torch.Tensor) -> QTensor:
        return quantized(x, self.scheme, *q4_0_parameters(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_hat: torch.Tensor = StraightThrough.apply(x, self.qtensor(x.detach()).dequantize(), None)
        return x_hat
