"""k-means: each block gets the codebook with the least squared error there is for it.

The optimum is found by dynamic programming (``qlab.core.kmeans``), compiled by Numba. Deep
Compression shared weights in this way, by Lloyd's algorithm; SqueezeLLM has one codebook an output
channel, with each weight's error weighed by its effect on the loss.

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
class KmeansOptions:
    """pad: fill the tensor with zeros to whole blocks where the group size does not divide it."""

    pad: bool = False


@register(
    "kmeans",
    options=KmeansOptions,
    source="Han et al. 2016, arXiv 1510.00149, section 3; Kim et al. 2023, arXiv 2306.07629",
    chapter="beyond-the-straight-line",
)
def kmeans(
    weight: Array, stats: Any, scheme: Scheme, options: KmeansOptions | None = None
) -> CodebookTensor:
    """Quantize ``weight`` (out_features, in_features) with optimal codebooks.

    Args:
        scheme: ``kmeans<bits>`` and a granularity, such as ``kmeans4-channel``.

    Raises: QlabError for another format.
    """
    from qlab.kernels.cpu.kmeans import kmeans_rows

    if not isinstance(scheme.format, LearnedFormat) or scheme.format.kind != "kmeans":
        raise QlabError(
            f"method 'kmeans' fits codebooks: give it a scheme such as 'kmeans4-channel', not "
            f"'{scheme}'"
        )
    pad = (options or KmeansOptions()).pad
    return quantize_codebook(weight, scheme, pad=pad, solver=kmeans_rows)
