"""Vector quantization: one code for several neighboring weights, by Lloyd's algorithm.

Chapter: Beyond the straight line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlab.core import Scheme
from qlab.core._array import Array
from qlab.core.codebook_tensor import CodebookTensor, quantize_codebook
from qlab.core.learned import LearnedFormat
from qlab.errors import QlabError
from qlab.methods.registry import register


@dataclass(frozen=True)
class VqOptions:
    """iterations of Lloyd's algorithm, at most; seed of its start."""

    iterations: int = 25
    seed: int = 0


@register(
    "vq",
    options=VqOptions,
    source="Linde, Buzo and Gray 1980; Jégou et al. 2011 (product quantization)",
    chapter="beyond-the-straight-line",
)
def vq(
    weight: Array, stats: Any, scheme: Scheme, options: VqOptions | None = None
) -> CodebookTensor:
    """Quantize ``weight`` (out_features, in_features) by vectors of neighboring inputs.

    Args:
        scheme: ``vq<bits>x<dim>`` or ``pq<bits>x<dim>``, such as ``vq8x4``.

    Raises: QlabError for another format, or a ``dim`` that does not divide in_features.
    """
    if not isinstance(scheme.format, LearnedFormat) or scheme.format.kind == "kmeans":
        raise QlabError(
            f"method 'vq' quantizes vectors: give it a scheme such as 'vq8x4', not '{scheme}'"
        )
    chosen = options or VqOptions()
    return quantize_codebook(weight, scheme, iterations=chosen.iterations, seed=chosen.seed)
