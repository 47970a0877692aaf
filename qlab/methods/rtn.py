"""RTN, round-to-nearest: each weight goes to the nearest code, whatever the model's inputs are.

The baseline that every other method has to beat. It needs no data and no time.
Chapter: The case study, first telling.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlab.core import QTensor, Scheme, quantize
from qlab.core._array import Array
from qlab.methods.registry import register


@dataclass(frozen=True)
class RtnOptions:
    """pad: fill the tensor with zeros to whole blocks where the group size does not divide it."""

    pad: bool = False


@register(
    "rtn",
    options=RtnOptions,
    source="Jacob et al. 2018, arXiv 1712.05877, section 2.1",
    chapter="case-study",
)
def rtn(weight: Array, stats: None, scheme: Scheme, options: RtnOptions | None = None) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) by rounding to nearest."""
    return quantize(weight, scheme, pad=(options or RtnOptions()).pad)
