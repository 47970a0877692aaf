"""RTN, round-to-nearest: each weight goes to the nearest code, whatever the model's inputs are.

The baseline that every other method has to beat. It needs no data and no time.
Chapter: The case study, first telling.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlab.core import QTensor, Scheme, quantize, quantize_shared
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
    takes_params=True,
)
def rtn(
    weight: Array,
    stats: None,
    scheme: Scheme,
    options: RtnOptions | None = None,
    params: tuple[Array, Array | None] | None = None,
) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) by rounding to nearest.

    ``params``: scale and zero_point shared with other weights, instead of those of its own range.
    """
    if params is not None:
        return quantize_shared(weight, params, scheme)
    return quantize(weight, scheme, pad=(options or RtnOptions()).pad)
