"""Learned formats: codebooks that are fitted to the tensor which they describe.

    kmeans4     16 values, the optimum of k-means in one dimension; a codebook for each block
    vq8x4       256 sub-vectors of 4 weights, one codebook for the tensor: 2 bits a weight
    pq8x4       the same with a codebook for each place in the row

The codebook is stored beside the codes and counted in the bits per weight.

Chapter: Beyond the straight line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from qlab.core._array import Array
from qlab.core._format import Format
from qlab.errors import QlabError


@dataclass(frozen=True)
class LearnedFormat(Format):
    """A codebook of ``2 ** bits`` entries of ``dim`` weights each, not known before the tensor.

    Attributes:
        kind: ``kmeans``, ``vq`` or ``pq``.
        bits: of a code, 1 to 8.
        dim: weights a code stands for; 1 for ``kmeans``.
    """

    kind: str
    bits: int
    dim: int = 1

    @property
    def name(self) -> str:  # type: ignore[override]
        return (
            f"kmeans{self.bits}" if self.kind == "kmeans" else f"{self.kind}{self.bits}x{self.dim}"
        )

    @property
    def entries(self) -> int:
        """Entries of the codebook."""
        return 1 << self.bits

    def levels(self) -> list[float]:
        """Raises QlabError: the levels belong to the tensor."""
        self._unknown()

    def encode(self, y: Array, *, noise: Array | None = None) -> Array:
        """Raises QlabError: the levels belong to the tensor."""
        self._unknown()

    def decode(self, codes: Array) -> Array:
        """Raises QlabError: the levels belong to the tensor."""
        self._unknown()

    def _unknown(self) -> NoReturn:
        raise QlabError(
            f"format '{self.name}' has no levels of its own: they are fitted to a tensor; "
            "quantize one and read its codebook"
        )


def learned_format(name: str) -> LearnedFormat | None:
    """The learned format of that name, or None if it names none.

    Raises: QlabError if it names one with too many or too few bits.
    """
    if not (m := re.fullmatch(r"(kmeans)(\d+)|(vq|pq)(\d+)x(\d+)", name)):
        return None
    kind = m[1] or m[3]
    bits, dim = int(m[2] or m[4]), int(m[5] or 1)
    if not 1 <= bits <= 8:
        raise QlabError(f"format '{name}': a codebook has codes of 1 to 8 bits, not {bits}")
    if dim < 1:
        raise QlabError(f"format '{name}': a code stands for at least 1 weight")
    return LearnedFormat(kind, bits, dim)
