"""How many bytes a model takes.

Chapter: The case study, first telling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlab.core.parts import PARTS


@dataclass(frozen=True)
class Size:
    """Bytes of a model's tensors, each counted once, metadata of quantization included.

    Attributes:
        quantized: bytes of the quantized layers (codes, scales, zero points).
        rest: bytes of everything else (embeddings, norms, biases), as they are held.
        weights: number of weights in the quantized layers.
    """

    quantized: int
    rest: int
    weights: int

    @property
    def total(self) -> int:
        return self.quantized + self.rest

    @property
    def bits_per_weight(self) -> float | None:
        """Of the quantized layers; None if there are none."""
        return self.quantized * 8 / self.weights if self.weights else None


def model_size(model: Any) -> Size:
    """Measure a model (quantized or not). Tied tensors count once."""
    from qlab.nn import quant_layers

    quantized = weights = 0
    inside, scales = set(), set()
    for name, layer in quant_layers(model):
        quantized += layer.qweight.nbytes
        # Layers of granularity `global` hold the same scale and zero point: count them once.
        if layer.scale is not None:
            if layer.scale.data_ptr() in scales:
                quantized -= layer.qweight.nbytes - layer.packed.numel()
            scales.add(layer.scale.data_ptr())
        weights += layer.in_features * layer.out_features
        inside |= {f"{name}.{part}" for part in PARTS}
    seen, rest = set(), 0
    # The state dict is what a file holds; it leaves out tables that are computed at start-up.
    for name, tensor in model.state_dict().items():
        if name not in inside and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            rest += tensor.numel() * tensor.element_size()
    return Size(quantized, rest, weights)
