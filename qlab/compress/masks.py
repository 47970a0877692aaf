"""Target: how many weights go, and which of them are compared with one another.

Every way to prune gives each weight a score; those with the lowest scores go. They are compared
within a row, within the whole layer, or within m neighbors of a row, of which n stay (a pattern
``n:m``).

Chapter: Pruning, low rank, distillation: what quantization is combined with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from qlab.core._array import to_float32
from qlab.errors import QlabError

WITHIN = ("row", "layer")


@dataclass(frozen=True)
class Target:
    """What pruning aims at: a share of the weights, or a pattern.

    Attributes:
        sparsity: share of the weights that go, from 0 to less than 1.
        pattern: (n, m): n of each m neighbors in a row stay; None for any place.
    """

    sparsity: float
    pattern: tuple[int, int] | None = None

    @staticmethod
    def parse(sparsity: float | None = None, pattern: str | None = None) -> Target:
        """Of a share such as 0.5, or of a pattern such as ``2:4``. Neither: a share of one half.

        Raises: QlabError for both, a share outside [0, 1), or what is no pattern.
        """
        if pattern is None:
            share = 0.5 if sparsity is None else sparsity
            if not 0 <= share < 1:
                raise QlabError(f"sparsity {share}: it is a share from 0 to less than 1, as 0.5")
            return Target(float(share))
        if sparsity is not None:
            raise QlabError(
                f"pattern '{pattern}' fixes the sparsity: give one of the two, not both"
            )
        fits = re.fullmatch(r"(\d+):(\d+)", pattern)
        n, m = (int(fits[1]), int(fits[2])) if fits else (0, 0)
        if not 0 < n < m:
            raise QlabError(
                f"unknown pattern '{pattern}': write 2:4 to keep 2 of each 4 neighbors in a row"
            )
        return Target(1 - n / m, (n, m))

    def __str__(self) -> str:
        return f"{self.pattern[0]}:{self.pattern[1]}" if self.pattern else f"{self.sparsity:.0%}"

    def count(self, size: int) -> int:
        """How many of ``size`` weights that are compared go: the share, rounded down."""
        return int(size * self.sparsity + 1e-9)  # 0.29 · 100 is 28.999... in floating point

    def check(self, columns: int) -> None:
        """Raise QlabError where the pattern does not divide the width of a weight."""
        if self.pattern and columns % self.pattern[1]:
            raise QlabError(
                f"pattern '{self}' needs rows of a multiple of {self.pattern[1]} weights, got "
                f"{columns}: skip this layer, or give a sparsity instead"
            )

    def lowest(self, scores: torch.Tensor, within: str = "row") -> torch.Tensor:
        """bool, the shape of ``scores`` (rows, columns): True where a weight goes.

        Of equal scores the first ones go. ``within`` (``row`` or ``layer``) says which scores are
        compared; a pattern compares m neighbors, whatever ``within`` says.

        Raises: QlabError for a pattern that does not divide the columns, an unknown ``within``.
        """
        if within not in WITHIN:
            raise QlabError(f"unknown within '{within}': choose one of {', '.join(WITHIN)}")
        rows, columns = scores.shape
        self.check(columns)
        size = columns if within == "row" else rows * columns
        gone = self.count(size)
        if self.pattern:
            size, gone = self.pattern[1], self.pattern[1] - self.pattern[0]
        if not scores.numel():
            return torch.zeros(scores.shape, dtype=torch.bool)
        groups = scores.reshape(-1, size)
        order = groups.argsort(dim=1, stable=True)[:, :gone]
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, True).view_as(scores)


def checked_weight(weight: torch.Tensor) -> torch.Tensor:
    """A float32 copy of a weight (out_features, in_features) on the CPU.

    Raises: QlabError for another number of axes, NaN or infinity.
    """
    if weight.ndim != 2:
        raise QlabError(f"pruning takes a weight of 2 axes, got shape {tuple(weight.shape)}")
    w: torch.Tensor = to_float32(weight.detach(), "weight")
    return w.to("cpu", copy=True).contiguous()
