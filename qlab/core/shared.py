"""One set of parameters for many tensors: granularity ``global``, the whole model at once.

With min-max a scale depends on the range of its block alone. The range of a model is the smallest
and the largest of all its weights, so its parameters are those of a tensor that holds just these
two numbers.

Chapter: Granularity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qlab.core._array import Array, dtype_name, namespace, to_float32
from qlab.core.qtensor import QTensor, from_params, quantize
from qlab.core.scheme import Scheme
from qlab.errors import QlabError


def shared_params(tensors: Iterable[Array], scheme: str | Scheme) -> tuple[Array, Array | None]:
    """scale and zero_point that cover the range of all tensors together.

    Args:
        tensors: NumPy arrays or torch tensors of real floating dtype, each of any shape.
        scheme: such as ``"int8-global"``; its blocks must be whole tensors.

    Returns:
        scale: as it is stored, shape (1, 1), that of a matrix with one block.
        zero_point: int32, shape (1, 1), or None when the scheme is symmetric.

    Raises: QlabError if there is no element at all, for NaN or infinity, or if the scheme asks for
        more than one block a tensor.

    Chapter: Granularity.
    """
    scheme = Scheme.parse(scheme)
    if scheme.granularity.kind not in ("global", "tensor"):
        raise QlabError(
            f"scheme '{scheme}': only parameters of whole tensors can be shared; "
            f"use '{scheme.format.name}-global'"
        )
    low = high = None
    for x in tensors:
        x32 = to_float32(x)
        if 0 in tuple(x32.shape):
            continue
        xp = namespace(x32)
        smallest, largest = xp.min(x32), xp.max(x32)
        low = smallest if low is None else xp.minimum(low, smallest)
        high = largest if high is None else xp.maximum(high, largest)
    if low is None or high is None:
        raise QlabError("no parameters to share: give at least one tensor with an element")
    xp = namespace(low)
    q = quantize(xp.reshape(xp.stack([low, high]), (1, 2)), scheme)
    return q.scale, q.zero_point


def quantize_shared(x: Array, params: tuple[Array, Array | None], scheme: str | Scheme) -> QTensor:
    """Round ``x`` (any shape) to nearest with the parameters of ``shared_params``.

    The QTensor holds those very arrays, so that tensors which share parameters keep them once. By
    itself it counts them in full, as ``tensor`` does; the report of ``quantize_model`` and
    ``model_size`` count them once for the model.

    Raises: QlabError for NaN or infinity.

    Chapter: Granularity.
    """
    scheme = Scheme.parse(scheme)
    scale, zero_point = params
    x32 = to_float32(x)
    xp = namespace(x32)
    shape = tuple(int(s) for s in x32.shape)
    if not shape:
        x32 = xp.reshape(x32, (1,))
    one = (1,) * len(x32.shape)
    zero = None if zero_point is None else xp.reshape(zero_point, one)
    q = from_params(x32, xp.reshape(scale, one), zero, scheme, shape=shape, dtype=dtype_name(x))
    return replace(q, scale=scale, zero_point=zero_point) if len(one) == 2 else q
