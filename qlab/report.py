"""What a report says of one layer, whatever was done to it.

Chapter: The case study, first telling.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer: quantized, pruned, put into thin factors, or several of these.

    Attributes:
        name: its name in the model.
        scheme: of its weights (or factors) in one word, or "" where they are not quantized.
        sqnr: of the weight, in dB; None where it was not measured.
        bits_per_weight: for each weight that there was before; scales, places of zeros and
            correcting factors counted. Parameters that the whole model shares (granularity
            ``global``) are counted once, and each layer bears its part by its number of weights.
        seconds: time taken, its share of gathering included.
        weights: number of weights before, zeros included.
        activations: scheme of the input and whether it is static or dynamic, or "".
        error: relative error of the output on the calibration data, ‖X(Ŵ - W)ᵀ‖² / ‖XWᵀ‖²; None
            where the layer's inputs are not known.
        rtn_error: the same with round-to-nearest in the same scheme: the error before.
        sparsity: share of its weights that are zero now; None where nothing was pruned.
        layout: the smallest way to store a pruned weight: ``dense``, ``bitmask`` or ``2:4``.
        rank: columns of the factor A; None without factors.

    Chapter: The case study, first telling.
    """

    name: str
    scheme: str
    sqnr: float | None
    bits_per_weight: float
    seconds: float
    weights: int
    activations: str = ""
    error: float | None = None
    rtn_error: float | None = None
    sparsity: float | None = None
    layout: str = ""
    rank: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights with all that belongs to them."""
        return round(self.bits_per_weight * self.weights / 8)


def bits_per_weight(layers: Iterable[LayerReport]) -> float:
    """Over all these layers, everything counted."""
    layers = list(layers)
    return sum(r.bits_per_weight * r.weights for r in layers) / sum(r.weights for r in layers)
