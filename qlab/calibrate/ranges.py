"""Observers of the range itself: min-max, and its moving average over batches.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from typing import ClassVar

from qlab.calibrate.observer import Observer
from qlab.core import Scheme
from qlab.core._array import Array, namespace
from qlab.errors import QlabError


class MinMax(Observer):
    """The smallest and the largest value ever seen. Nothing is clipped.

    Args:
        axis: keep one range for each entry of this axis (-1: input channels); None for one.

    The same minimum and maximum as torch's ``MinMaxObserver`` and ``PerChannelMinMaxObserver``.
    Source: Jacob et al. 2018, arXiv 1712.05877, section 3.
    Chapter: Static, dynamic, mixed: the families of methods.
    """

    name: ClassVar[str] = "minmax"

    def __init__(self, axis: int | None = None) -> None:
        super().__init__()
        self.axis = axis
        self._low: Array | None = None
        self._high: Array | None = None

    def _update(self, x: Array) -> None:
        low, high = self._batch_range(x)
        if self._low is not None:
            low, high = self._merge(low, high)
        self._low, self._high = low, high

    def _merge(self, low: Array, high: Array) -> tuple[Array, Array]:
        xp = namespace(low)
        return xp.minimum(self._low, low), xp.maximum(self._high, high)

    def _batch_range(self, x: Array) -> tuple[Array, Array]:
        """Minimum and maximum of the batch, shape (1,) or (channels,)."""
        xp = namespace(x)
        if self.axis is None:
            x = xp.reshape(x, (1, -1))
        elif not -x.ndim <= self.axis < x.ndim:
            raise QlabError(f"observer '{self.name}' with axis {self.axis}: x has {x.ndim} axes")
        else:
            x = xp.moveaxis(x, self.axis, 0)
            x = xp.reshape(x, (x.shape[0], -1))
        if self._low is not None and self._low.shape != x.shape[:1]:
            raise QlabError(
                f"observer '{self.name}' has ranges of {self._low.shape[0]} channels, the batch "
                f"has {x.shape[0]} along axis {self.axis}: use one observer for each tensor"
            )
        return xp.min(x, axis=1), xp.max(x, axis=1)

    def _range(self, scheme: Scheme) -> tuple[Array, Array]:
        return self._low, self._high


class MovingAverage(MinMax):
    """The minimum and the maximum of each batch, averaged: a rare outlier weighs little.

    minimum <- minimum + momentum · (minimum of the batch - minimum), from the first batch on.

    Args:
        momentum: the weight of a new batch, in (0, 1].
        axis: as in ``MinMax``.

    The same numbers as torch's ``MovingAverageMinMaxObserver`` (its ``averaging_constant``).
    They depend on the order of the batches.
    Source: Jacob et al. 2018, arXiv 1712.05877, section 3.1 (exponential moving averages).
    Chapter: Static, dynamic, mixed: the families of methods.
    """

    name: ClassVar[str] = "moving-average"

    def __init__(self, momentum: float = 0.01, axis: int | None = None) -> None:
        super().__init__(axis)
        if not 0 < momentum <= 1:
            raise QlabError(
                f"momentum {momentum}: the weight of a batch is in (0, 1], usually 0.01"
            )
        self.momentum = float(momentum)

    def _merge(self, low: Array, high: Array) -> tuple[Array, Array]:
        c = self.momentum
        return self._low + c * (low - self._low), self._high + c * (high - self._high)
