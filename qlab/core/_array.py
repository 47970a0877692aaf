"""Small helpers over the Python array API standard.

Everything in ``qlab.core`` is written once against the standard (through ``array-api-compat``), so
NumPy arrays and torch tensors, on any device, go through the same lines.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from qlab.errors import QlabError

Array = Any  # a NumPy array or a torch tensor


def namespace(*arrays: Array) -> Any:
    """The array API namespace of the arrays (``array_api_compat.numpy`` or ``.torch``)."""
    try:
        return array_api_compat.array_namespace(*arrays)
    except TypeError as error:
        kinds = ", ".join(type(a).__name__ for a in arrays)
        raise QlabError(
            f"expected NumPy arrays or torch tensors, got {kinds}: "
            "convert with numpy.asarray or torch.as_tensor, and do not mix the two"
        ) from error


def is_torch(x: Array) -> bool:
    """True if ``x`` is a torch tensor (does not import torch)."""
    return bool(array_api_compat.is_torch_array(x))


def dtype_name(x: Array) -> str:
    """``float32``, ``bfloat16``, ... without the name of the library."""
    return str(x.dtype).replace("torch.", "")


def to_float32(x: Array, what: str = "x") -> Array:
    """Cast a floating-point array to float32, refusing anything that is not finite there.

    All of the core computes in float32. A float64 value beyond float32's range becomes infinite
    in the cast, so it is refused in the same place.

    Raises: QlabError naming the first bad position.
    """
    y = cast_to_float32(x, what)
    check_finite(y, what, x)
    return y


def cast_to_float32(x: Array, what: str = "x") -> Array:
    """Cast a floating-point array to float32 without looking at its values.

    Raises: QlabError for another kind of dtype.
    """
    xp = namespace(x)
    if not xp.isdtype(x.dtype, "real floating") and not dtype_name(x).startswith("bfloat16"):
        raise QlabError(f"{what} has dtype {dtype_name(x)}: quantization needs real floating point")
    with np.errstate(over="ignore"):
        return xp.astype(x, xp.float32, copy=False)


def check_finite(x: Array, what: str, original: Array | None = None) -> None:
    """Raise QlabError with the position of the first NaN or infinity in ``x`` (float32).

    ``original``: what was cast to ``x``; the message gives its value, such as a float64 of 1e39.
    """
    if x.size == 0 if not is_torch(x) else x.numel() == 0:
        return
    xp = namespace(x)
    # NaN and infinity survive min and max: two quick passes, and no mask as large as x.
    if bool(xp.isfinite(xp.min(x)) & xp.isfinite(xp.max(x))):
        return
    finite = xp.isfinite(x)
    flat = int(xp.argmin(xp.astype(xp.reshape(finite, (-1,)), xp.uint8)))
    position = tuple(int(i) for i in np.unravel_index(flat, tuple(x.shape)))
    value = float(xp.reshape(x if original is None else original, (-1,))[flat])
    raise QlabError(
        f"{what} has {value} at position {position}: "
        "only finite float32 values can be quantized; find where it came from, or mask it"
    )


def to_numpy(x: Array) -> np.ndarray:
    """A NumPy view (or copy, from a GPU) of ``x``."""
    if is_torch(x):
        return np.asarray(x.detach().cpu().numpy())
    return np.asarray(x)


def bit_pattern(x: Array) -> Array:
    """The bits of float32 numbers, as int32."""
    xp = namespace(x)
    return (x.detach() if is_torch(x) else x).view(xp.int32)


def from_bit_pattern(bits: Array) -> Array:
    """The inverse of ``bit_pattern``."""
    return bits.view(namespace(bits).float32)


def constant(values: tuple[float, ...], like: Array) -> Array:
    """float32 array of a table, of the library and on the device of ``like``."""
    xp = namespace(like)
    return xp.asarray(values, dtype=xp.float32, device=like.device)


def take(table: tuple[float, ...] | tuple[int, ...], index: Array) -> Array:
    """table[index] for an index of any shape: float32, or int32 for a table of integers."""
    xp = namespace(index)
    dtype = xp.int32 if isinstance(table[0], int) else xp.float32
    entries = xp.asarray(table, dtype=dtype, device=index.device)
    flat = xp.astype(xp.reshape(index, (-1,)), xp.int64)
    return xp.reshape(xp.take(entries, flat, axis=0), tuple(index.shape))
