"""The arrays of a quantized tensor by name: what is stored of it, and how it is put together again.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

from collections.abc import Mapping

from qlab.core._array import Array
from qlab.core.double_quantization import DoubleQuantized
from qlab.core.double_tensor import DoubleTensor, double_tensor
from qlab.core.qtensor import QTensor, assemble
from qlab.core.scheme import Scheme

# Doubly quantized scales; they take the place of ``scale``.
DOUBLED = ("scale_codes", "scale_absmax", "scale_offset")
PARTS = ("packed", "scale", "zero_point", "tensor_scale", *DOUBLED)


def parts_of(q: QTensor) -> dict[str, Array]:
    """The arrays of ``q`` by their names in ``PARTS``, without those that it lacks."""
    if isinstance(q, DoubleTensor) and q.doubled is not None:
        d = q.doubled
        values = (d.codes, d.absmax, d.offset)
        return {"packed": q.packed, **dict(zip(DOUBLED, values, strict=True))}
    found = {"packed": q.packed, "scale": q.scale}
    if q.zero_point is not None:
        found["zero_point"] = q.zero_point
    if q.tensor_scale is not None:
        found["tensor_scale"] = q.tensor_scale
    return found


def from_parts(
    parts: Mapping[str, Array | None], scheme: Scheme, shape: tuple[int, ...], dtype: str
) -> QTensor:
    """The inverse of ``parts_of``; a part that is None counts as absent.

    Raises: KeyError if ``packed``, or both ``scale`` and its doubly quantized form, are missing.
    """
    packed = parts["packed"]
    if parts.get("scale_codes") is None:
        zero, tensor_scale = parts.get("zero_point"), parts.get("tensor_scale")
        return assemble(packed, parts["scale"], zero, scheme, shape, dtype, tensor_scale)
    padded = scheme.granularity.padded_shape(shape)
    block = scheme.granularity.block_shape(padded)
    blocks = tuple(n // size for n, size in zip(padded, block, strict=True))
    codes, absmax, offset = (parts[part] for part in DOUBLED)
    doubled = DoubleQuantized(codes, absmax, offset, blocks)
    return double_tensor(packed, doubled, scheme, shape, dtype)
