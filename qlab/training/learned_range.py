"""Range learning: both ends of the range are parameters, from a calibrated start.

    s = (high - low) / (qmax - qmin),     z = qmin - low / s,     low <= 0 <= high

x̂ is that of LSQ with this s and this z, and the gradients go on through both equations to the ends.
Symmetric schemes have one end: s = high / qmax. The rounding of z is passed straight through.

Sources: Krishnamoorthi 2018, arXiv 1806.08342, section 2; Jain et al. 2020, arXiv 1903.08066,
section 3 (trained thresholds); Siddegowda et al. 2022, arXiv 2201.08442, section 5.2 (range
learning in AIMET).

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import torch
from torch import nn

from qlab.core import Scheme, scales
from qlab.core.affine import TINY
from qlab.training.fake_quant import Quantizer, code_range
from qlab.training.lsq import lsq_quantize, rounded


class LearnedRange(Quantizer):
    """Method ``range``: ``high`` and, where the scheme is asymmetric, ``low`` are parameters.

    Args:
        scale, zero_point: of the range where they start, one a block.

    Chapter: Quantization-aware training.
    """

    method = "range"
    learns = True

    def __init__(
        self,
        scheme: str | Scheme,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None = None,
        *,
        count: int = 1,
    ) -> None:
        super().__init__(scheme)
        scale = scale.detach().float()
        first, last = code_range(self.scheme)
        self.register_parameter("low", None)
        if zero_point is None:
            one, _ = scales.fit(torch.ones(1), torch.ones(1), self.scheme)
            self.high = nn.Parameter(scale / one)
        else:
            self.high = nn.Parameter((last - zero_point) * scale)
            self.low = nn.Parameter((first - zero_point) * scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lsq_quantize(x, *self._real(), self.scheme)

    def params(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        scale, zero = self._real()
        return scale.detach(), None if zero is None else rounded(zero, self.scheme)

    def _real(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """scale, and the zero point before it is rounded."""
        if self.low is None:
            high = self.high.abs().clamp_min(TINY)
            scale, _ = scales.fit(-high, high, self.scheme)
            return scale, None
        # fit widens the range to hold 0, as these lines do for the zero point.
        low = self.low.clamp(max=0)
        scale, _ = scales.fit(self.low, self.high, self.scheme)
        return scale, code_range(self.scheme)[0] - low / scale
