"""Dynamic quantization: parameters from the very values that are to be quantized.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

from typing import Any, ClassVar

from qlab.calibrate.observer import Observer
from qlab.calibrate.schemes import range_params, read_scheme
from qlab.core import Scheme
from qlab.core import granularity as gran
from qlab.core._array import Array, to_float32
from qlab.core.qtensor import block_range
from qlab.errors import QlabError


class Dynamic(Observer):
    """No state: ``params_of(x, scheme)`` looks at ``x`` alone, while the model runs.

    With granularity ``token`` each token has a scale of its own.
    Source: ZeroQuant, Yao et al. 2022, arXiv 2206.01861, section 4.1 (token-wise).
    Chapter: Static, dynamic, mixed: the families of methods.
    """

    name: ClassVar[str] = "dynamic"
    static: ClassVar[bool] = False

    def observe(self, x: Array) -> None:
        """Does nothing: there is nothing to learn ahead of time."""

    def params_of(self, x: Array, scheme: str | Any = "int8-token") -> tuple[Array, Array | None]:
        """scale and zero_point of ``x`` (..., features), one a block of the scheme (usual: token).

        Raises: QlabError with the position of the first NaN or infinity.
        """
        scheme, granularity = read_scheme(scheme)
        x32 = to_float32(x)
        granularity = granularity or gran.Granularity("token")
        granularity.check_divides(tuple(x32.shape))
        low, high = block_range(x32, granularity.block_shape(tuple(x32.shape)))
        return range_params(low, high, scheme)

    def _update(self, x: Array) -> None:
        raise AssertionError("observe does not get here")

    def _range(self, scheme: Scheme) -> tuple[Any, Any]:
        raise AssertionError("_read raises before this")

    def _read(self, scheme: Any, symmetric: bool | None) -> Scheme:
        raise QlabError(
            "observer 'dynamic' has no parameters ahead of time: call params_of(x, scheme) with "
            "the values to quantize, or use a static observer such as 'minmax'"
        )
