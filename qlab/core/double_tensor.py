"""DoubleTensor: a quantized tensor whose scales are stored as bytes.

Chapter: NF4 and double quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qlab.core._array import Array
from qlab.core.double_quantization import DoubleQuantized
from qlab.core.qtensor import QTensor
from qlab.core.scheme import Scheme


@dataclass(frozen=True, eq=False, repr=False)
class DoubleTensor(QTensor):
    """A QTensor whose scales are stored as bytes. Immutable.

    Attributes:
        scale: float32, what the bytes stand for: ``doubled.dequantize()``.
        doubled: codes, absmax and offset of the scales.
    """

    doubled: DoubleQuantized | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of the doubly quantized scales."""
        codes = int(math.prod(self.packed.shape))
        return codes if self.doubled is None else codes + self.doubled.nbytes


def double_tensor(
    packed: Array, doubled: DoubleQuantized, scheme: Scheme, shape: tuple[int, ...], dtype: str
) -> DoubleTensor:
    """The DoubleTensor with these parts; ``scale`` is what the bytes of the scales stand for."""
    return DoubleTensor(packed, doubled.dequantize(), None, scheme, shape, dtype, None, doubled)
