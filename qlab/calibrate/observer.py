"""Observer: sees a tensor batch by batch, then says which range its codes should cover.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from qlab.calibrate.schemes import range_params, read_scheme
from qlab.core import Granularity, Scheme
from qlab.core._array import Array, is_torch, namespace, to_float32
from qlab.errors import QlabError

FLOAT32_MAX = 3.4028234663852886e38


class Observer(ABC):
    """Base of all observers.

    ``observe(x)`` takes one batch after the other and keeps a summary of bounded size.
    ``params(scheme)`` turns the summary into a scale and a zero point.

    Attributes:
        name: what a reader types, such as ``minmax``.
        static: whether parameters are fixed before the model runs (all but ``dynamic``).
        axis: the axis whose entries keep ranges of their own; None for one range of the tensor.
        count: values seen so far.
    """

    name: ClassVar[str]
    static: ClassVar[bool] = True

    def __init__(self) -> None:
        self.axis: int | None = None
        self.count = 0
        self.batches = 0
        self._like: Array | None = None  # an empty array of the library and device last seen
        self._ndim = 1

    def observe(self, x: Array) -> None:
        """Take in one batch: NumPy or torch, any real floating dtype and shape; not kept.

        An empty batch changes nothing.

        Raises: QlabError with the position of the first NaN or infinity.
        """
        x32 = to_float32(x.detach() if is_torch(x) else x, f"batch {self.batches} of '{self.name}'")
        xp = namespace(x32)
        x32 = xp.reshape(x32, (1,)) if x32.ndim == 0 else x32
        size = x32.numel() if is_torch(x32) else x32.size
        self.batches += 1
        if size == 0:
            return
        self._update(x32)
        self.count += size
        self._like, self._ndim = xp.reshape(x32, (-1,))[:0], x32.ndim

    def range(
        self, scheme: str | Scheme | Any = "int8", symmetric: bool | None = None
    ) -> tuple[Array, Array]:
        """(minimum, maximum): the range that the codes will cover; what lies beyond is clipped.

        float32, in the library of the data, one value a range: shape (1, ..., 1), or with the
        channels along ``axis``. Arguments and errors as in ``params``.
        """
        low, high = self._range(self._read(scheme, symmetric))
        return self._array(low), self._array(high)

    def params(
        self, scheme: str | Scheme | Any, symmetric: bool | None = None
    ) -> tuple[Array, Array | None]:
        """scale and zero_point, as ``qlab.core.from_params`` takes them.

        Args:
            scheme: a scheme (``"int8-asym-tensor"``), or a format (``"int8"`` or the object).
            symmetric: overrides what the scheme says; without either, a signed format is symmetric.

        Returns:
            scale: float32, in the library and on the device of the data, shape (1, ..., 1) with as
                many axes as the last batch, or with the channels along ``axis``.
            zero_point: int32, the same shape; None when symmetric.

        Raises: QlabError if nothing was observed, or if the scheme names a granularity that is not
            the observer's.
        """
        scheme = self._read(scheme, symmetric)
        low, high = self._range(scheme)
        return range_params(self._array(low), self._array(high), scheme)

    @abstractmethod
    def _update(self, x: Array) -> None:
        """Take in a non-empty, finite float32 batch."""

    @abstractmethod
    def _range(self, scheme: Scheme) -> tuple[Any, Any]:
        """minimum and maximum, as floats or float32 arrays of the final shape."""

    def _read(self, scheme: Any, symmetric: bool | None) -> Scheme:
        """What is asked for."""
        scheme, granularity = read_scheme(scheme, symmetric)
        if granularity is not None:
            self._check_granularity(granularity)
        if self.count == 0:
            raise QlabError(
                f"observer '{self.name}' has seen no data: call observe(x) with calibration "
                "batches before params() or range()"
            )
        return scheme

    def _check_granularity(self, granularity: Granularity) -> None:
        whole = granularity.kind in ("tensor", "global")
        if whole and self.axis is None:
            return
        if granularity.kind == "channel" and self.axis in (
            granularity.axis,
            granularity.axis - self._ndim,
        ):
            return
        if self.axis is not None:
            wants = f"one range a channel of axis {self.axis}: ask for 'channel{self.axis}'"
            if self.axis < 0:
                wants = f"one range a channel of axis {self.axis}: ask for a format, such as 'int8'"
        else:
            wants = "one range of the whole tensor: ask for granularity 'tensor'"
            if granularity.kind == "token":
                wants += ", or use observer 'dynamic'"
            if granularity.kind == "channel":
                wants += f", or observe with MinMax(axis={granularity.axis})"
        raise QlabError(
            f"granularity '{granularity.name}' with observer '{self.name}', which keeps {wants}"
        )

    def _array(self, value: Any) -> Array:
        """``value`` as a float32 array in the library of the data."""
        xp = namespace(self._like)
        if isinstance(value, float):
            value = min(max(value, -FLOAT32_MAX), FLOAT32_MAX)
            value = xp.asarray([value], dtype=xp.float32, device=self._like.device)
        shape = [1] * self._ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return xp.reshape(value, tuple(shape))
