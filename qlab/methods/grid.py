"""The grid that a method rounds to: scales of a few columns, and levels with their bounds.

GPTQ and OBQ choose codes one column at a time, so they need what ``qlab.quantize`` does at once
in parts: the parameters of a group when they reach it, and the rule that takes a number to a code.

Chapter: GPTQ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qlab.calibrate.clip import search_clip, search_range
from qlab.core import Scheme, quantize, scales
from qlab.core.formats import Format
from qlab.core.integers import BinaryFormat, IntFormat
from qlab.core.learned import LearnedFormat
from qlab.core.qtensor import block_range
from qlab.errors import QlabError
from qlab.methods.mse import best_stored

RANGES = ("minmax", "mse")


@dataclass(frozen=True)
class Params:
    """Parameters of the groups in a piece of a weight; each tensor is (row blocks, groups).

    Attributes:
        stored: the scales as they are stored.
        zero_point: int32, or None.
        used: float32, what multiplies levels.
        factor: float32, what integers are divided by and other formats multiplied by.
    """

    stored: torch.Tensor
    zero_point: torch.Tensor | None
    used: torch.Tensor
    factor: torch.Tensor

    def by_row(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """used, factor and zero point for each row: float32 (rows, groups)."""
        times = rows // max(self.used.shape[0], 1)
        zero = torch.zeros_like(self.used) if self.zero_point is None else self.zero_point.float()
        parts = [t.repeat_interleave(times, 0) for t in (self.used, self.factor, zero)]
        used, factor, shift = (np.ascontiguousarray(t.numpy()) for t in parts)
        return used, factor, shift


@dataclass(frozen=True)
class Grid:
    """The codes of a scheme.

    Attributes:
        scheme: what it belongs to.
        low, high: the smallest and the largest integer code.
        levels: float32, ascending, at scale 1; empty for integers.
        bounds: float32, one less: y belongs to the level with as many bounds below y.
        level_codes: the code of each level, uint8 or int8.
        tensor_scale: float32 (1,) where the scheme has one, taken from the whole weight.
    """

    scheme: Scheme
    low: int
    high: int
    levels: np.ndarray
    bounds: np.ndarray
    level_codes: torch.Tensor
    tensor_scale: torch.Tensor | None

    @staticmethod
    def of(scheme: Scheme, weight: torch.Tensor, method: str) -> Grid:
        """The grid of a scheme for a weight (out_features, in_features), float32.

        Raises: QlabError for formats that are no grid: fitted codebooks, and casts.
        """
        fmt = scheme.format
        if isinstance(fmt, LearnedFormat):
            raise QlabError(
                f"method '{method}' rounds to integers, small floats and fixed codebooks; "
                f"'{scheme}' fits its levels to the weights: use method '{fmt.kind}' or 'nf4-g64'"
            )
        if scheme.is_cast:
            raise QlabError(
                f"method '{method}' chooses codes of up to 8 bits; '{scheme}' is a cast: use "
                "method 'rtn'"
            )
        low, high = (0, 0)
        levels = bounds = np.zeros(0, np.float32)
        codes = torch.zeros(0, dtype=torch.uint8)
        if isinstance(fmt, IntFormat):
            low, high = fmt.range(scheme.symmetric, scheme.full)
        else:
            levels = np.asarray(fmt.levels(), np.float32)
            bounds = _bounds(fmt, levels)
            codes = fmt.encode(torch.from_numpy(levels))
        shared = quantize(weight, scheme).tensor_scale if scheme.has_tensor_scale else None
        return Grid(scheme, low, high, levels, bounds, codes, shared)

    def params(self, w: torch.Tensor, ranges: str) -> Params:
        """The parameters of the groups of ``w`` (rows, columns), whole blocks of the scheme.

        Args:
            ranges: ``minmax`` covers each group; ``mse`` takes the scale of least squared error.
        """
        block = self.scheme.granularity.block_shape(tuple(w.shape))
        if ranges == "mse" and not isinstance(self.scheme.format, BinaryFormat):
            if self.scheme.symmetric:
                scale, zero = search_clip(w, self.scheme), None
            else:
                scale, zero = search_range(w, self.scheme)
            if zero is None and self.scheme.scale_word != "sfp32":
                scale = best_stored(w, scale, self.scheme, self.tensor_scale)
        elif isinstance(self.scheme.format, BinaryFormat):
            scale, zero = scales.mean_magnitude(w, block), None
        else:
            scale, zero = scales.fit(*block_range(w, block), self.scheme)
        stored, _ = scales.store(scale, self.scheme, self.tensor_scale)
        used = scales.used(stored, self.tensor_scale)
        integer = isinstance(self.scheme.format, IntFormat)
        factor = used if integer else scales.inverse(stored, self.tensor_scale)
        return Params(stored, zero, used, factor)

    def to_codes(self, places: torch.Tensor) -> torch.Tensor:
        """Codes in the dtype of the format: of integer codes, or of places in ``levels``."""
        fmt = self.scheme.format
        if isinstance(fmt, IntFormat):
            return places.to(torch.int8 if fmt.signed else torch.uint8)
        return self.level_codes[places.long()]


def _bounds(fmt: Format, levels: np.ndarray) -> np.ndarray:
    """The largest float32 that still goes to the lower of two neighbours.

    That is their middle, or just below it where the format takes a tie to the upper one.
    """
    middle = ((levels[:-1].astype(np.float64) + levels[1:]) / 2).astype(np.float32)
    at = fmt.decode(fmt.encode(torch.from_numpy(middle))).numpy()
    below = np.nextafter(middle, np.float32(-np.inf))
    return np.asarray(np.where(at == levels[:-1], middle, below), np.float32)
