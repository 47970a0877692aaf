"""Weights to the bytes of a GGUF block type and back.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from qlab.errors import QlabError
from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks import BlockType, block_type

Engine = Literal["auto", "numpy", "numba"]
_CHUNK = 1 << 18  # weights that the NumPy engine takes at once, to bound its memory


def quantize(
    x: Any,
    name: str,
    importance: Any = None,
    *,
    engine: Engine = "auto",
    threads: int | None = None,
) -> Array:
    """Rows of weights as llama.cpp would store them, byte for byte.

    Args:
        x: (..., n), NumPy or torch, computed in float32; finite. Each row is stored by itself.
        name: a block type such as ``"Q4_K"``; n must be a multiple of its block size.
        importance: (n,), the imatrix row: what an error in each column costs, the mean square of
            the inputs it meets. Types that do not use one ignore it.
        engine: ``numpy`` is the code to read, ``numba`` the compiled twin, equal to it; ``auto``
            takes the compiled one where there is one.
        threads: for the compiled engine; default one a core.

    Returns: uint8 (..., row_bytes).

    Raises: QlabError for an unknown type, a row that does not divide, weights that are not finite,
        an importance of another length or with negative or non-finite values, none where the type
        needs one, or weights whose squares overflow in a type whose C stops there.

    Chapter: GGUF, byte by byte.
    """
    kind = block_type(name)
    x = _floats(x, "weights")
    if x.ndim == 0:
        raise QlabError("weights without a dimension: give at least one row")
    n = x.shape[-1]
    row_bytes = kind.row_bytes(n)
    weights = _importance(importance, n, kind)
    if not kind.can_encode:
        raise QlabError(f"{kind.name} can be read but not written here: choose another type")
    _check_engine(engine)
    out = np.empty((int(np.prod(x.shape[:-1])), row_bytes), np.uint8)
    rows = x.reshape(len(out), n)
    if out.size:
        kernel = None if engine == "numpy" else _kernel(kind)
        if kernel is None:
            _check_finite(bool(np.isfinite(x).all()), "weights")
        if kernel is not None:
            _check_status(kernel(rows, weights, out, threads))
        elif engine == "numba":
            raise QlabError(f"{kind.name} has no compiled quantizer: use engine 'numpy'")
        else:
            step = max(1, _CHUNK // n)
            for i in range(0, len(rows), step):
                out[i : i + step] = _encode(kind, rows[i : i + step], weights)
    return out.reshape(*x.shape[:-1], row_bytes)


def dequantize(
    data: Any, name: str, *, engine: Engine = "auto", threads: int | None = None
) -> Array:
    """The weights that the bytes stand for.

    Args:
        data: uint8 (..., row_bytes).
        name: the block type.
        engine, threads: as for ``quantize``.

    Returns: float32 (..., n).

    Raises: QlabError for an unknown type or a row that is not whole blocks.

    Chapter: GGUF, byte by byte.
    """
    kind = block_type(name)
    scalar = np.ndim(data) == 0
    data = np.ascontiguousarray(data)
    if data.dtype != np.uint8 or scalar:
        raise QlabError(f"bytes of type {data.dtype}: give uint8 of at least one dimension")
    if data.shape[-1] % kind.block_bytes:
        raise QlabError(
            f"a row of {data.shape[-1]} bytes is not whole {kind.name} blocks of "
            f"{kind.block_bytes}: check the type"
        )
    _check_engine(engine)
    n = data.shape[-1] // kind.block_bytes * kind.block_size
    blocks = data.reshape(-1, kind.block_bytes)
    out = np.empty((len(blocks), kind.block_size), np.float32)
    decoder = None if engine == "numpy" else _decoder(kind)
    if decoder is not None:
        decoder(blocks, out, threads)
        return out.reshape(*data.shape[:-1], n)
    if engine == "numba":
        raise QlabError(f"{kind.name} has no compiled dequantizer: use engine 'numpy'")
    step = max(1, _CHUNK // kind.block_size)
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), step):
            out[i : i + step] = kind.decode(blocks[i : i + step])
    return out.reshape(*data.shape[:-1], n)


def _encode(kind: type[BlockType], rows: Array, importance: Array | None) -> Array:
    blocks = rows.reshape(len(rows), -1, kind.block_size)
    weights = None if importance is None else importance.reshape(-1, kind.block_size)
    with np.errstate(all="ignore"):  # infinities and NaN on the way are the C's too
        return kind.encode(blocks, weights).reshape(len(rows), -1)


def _kernel(kind: type[BlockType]) -> Any:
    from qlab.kernels.cpu import gguf_quantize

    return gguf_quantize.kernel(kind.name)


def _decoder(kind: type[BlockType]) -> Any:
    from qlab.kernels.cpu import gguf_quantize

    return gguf_quantize.decoder(kind.name)


def _check_engine(engine: str) -> None:
    if engine not in ("auto", "numpy", "numba"):
        raise QlabError(f"no engine {engine!r}: choose auto, numpy or numba")


def _floats(x: Any, what: str) -> Array:
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float().numpy() if x.is_floating_point() else x.numpy()
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            array = np.ascontiguousarray(x, dtype=np.float32)
    except (TypeError, ValueError):
        raise QlabError(f"{what} of type {type(x).__name__}: give an array of numbers") from None
    return array if np.ndim(x) else array.reshape(())


def _check_finite(finite: bool, what: str) -> None:
    if not finite:
        raise QlabError(f"{what} hold NaN or infinity (in float32): repair them first")


def _check_status(status: int) -> None:
    from qlab.gguf.searches.grid import TOO_LARGE
    from qlab.kernels.cpu import gguf_quantize

    _check_finite(status != gguf_quantize.NOT_FINITE, "weights")
    if status == gguf_quantize.OVERFLOW:
        raise QlabError(TOO_LARGE)


def _importance(importance: Any, n: int, kind: type[BlockType]) -> Array | None:
    if importance is None:
        if kind.needs_importance:
            raise QlabError(f"{kind.name} needs an importance matrix: compute one on a text first")
        return None
    array = _floats(importance, "importance")
    _check_finite(bool(np.isfinite(array).all()), "importance")
    if array.shape != (n,):
        raise QlabError(f"importance of shape {array.shape} for rows of {n}: give ({n},)")
    if (array < 0).any():
        raise QlabError("importance has negative values: give mean squares of inputs")
    return array if kind.uses_importance else None
