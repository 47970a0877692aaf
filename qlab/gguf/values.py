"""The types of metadata in a GGUF file: twelve kinds of value, and arrays of them, nested or not.

A value is written as its type number and then::

    numbers   little-endian, 1 to 8 bytes
    bool      one byte, 0 or 1
    string    length (uint64), then UTF-8 without an end mark
    array     type number of the elements (uint32), count (uint64), then the elements without theirs

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from qlab.gguf.errors import GGUFError

# Type number: name, and NumPy's code for those of fixed size.
NAMES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array",
    "uint64", "int64", "float64",
)  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9
DTYPES = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
SIZES = {number: np.dtype(code).itemsize for number, code in DTYPES.items()}
MAX_DEPTH = 16  # of nested arrays

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


def infer(value: Any) -> str:
    """The type a Python or NumPy value is written as, such as ``uint32`` or ``array[string]``.

    Integers take the first of uint32, int32, uint64, int64 that holds them (all, for a list);
    floats are float32, as llama.cpp wants its hyperparameters; NumPy values keep their type.

    Raises: GGUFError for anything else, an empty list, or a list of several kinds.
    """
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (np.generic, np.ndarray)):
        kind = value.dtype.name
        if kind not in NAMES:
            raise GGUFError(f"a value of type {kind}: GGUF has {', '.join(NAMES)}")
        for _ in range(np.ndim(value)):
            kind = f"array[{kind}]"
        return kind
    if isinstance(value, int):
        return _integer_type([value])
    if isinstance(value, float):
        return "float32"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (list, tuple)):
        if not value:
            raise GGUFError("an empty list has no type: name one, such as array[string]")
        if all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            return f"array[{_integer_type(value)}]"
        kinds = {infer(v) for v in value}
        if len(kinds) > 1:
            if all(k.startswith("array") for k in kinds):
                return "array[array]"
            raise GGUFError(f"a list of {', '.join(sorted(kinds))}: give one kind only")
        return f"array[{kinds.pop()}]"
    raise GGUFError(f"a value of type {type(value).__name__}: give numbers, text, or lists of them")


def encode(value: Any, kind: str) -> bytes:
    """The bytes of a value without its type number. Raises: GGUFError if it does not fit."""
    number, inner = split(kind)
    if number == ARRAY:
        return _encode_array(value, inner)
    if number == STRING:
        try:
            text = value.encode("utf-8")
        except (AttributeError, UnicodeEncodeError):
            raise GGUFError(f"{value!r:.40} is not text that UTF-8 can hold") from None
        return _U64.pack(len(text)) + text
    try:
        plain = _as_numbers([value], number, kind)
    except (TypeError, ValueError, OverflowError):
        raise GGUFError(f"{value!r:.40} does not fit {kind}") from None
    return plain.tobytes()


def split(kind: str) -> tuple[int, str]:
    """``array[string]`` to the number of array and ``string``; other types to their number."""
    if kind == "array" or (kind.startswith("array[") and kind.endswith("]")):
        return ARRAY, kind[6:-1]
    if kind not in NAMES:
        raise GGUFError(f"no metadata type {kind!r}: choose one of {', '.join(NAMES)}")
    return NAMES.index(kind), ""


def _integer_type(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    for kind in ("uint32", "int32", "uint64", "int64"):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return kind
    raise GGUFError(f"integers from {low} to {high} do not fit 64 bits")


def _encode_array(values: Any, inner: str) -> bytes:
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise GGUFError(f"{values!r:.40} is not a list")
    if inner in ("", "array"):  # arrays of several kinds
        kinds = [infer(v) for v in values]
        if not all(k.startswith("array") for k in kinds):
            raise GGUFError("give the type of the elements, such as array[string]")
        body = b"".join(encode(v, k) for v, k in zip(values, kinds, strict=True))
        return _U32.pack(ARRAY) + _U64.pack(len(values)) + body
    number, _ = split(inner)
    head = _U32.pack(number) + _U64.pack(len(values))
    if number in (ARRAY, STRING):
        return head + b"".join(encode(v, inner) for v in values)
    try:
        return head + _as_numbers(values, number, inner).tobytes()
    except (TypeError, ValueError, OverflowError):
        raise GGUFError(f"{values!r:.40} does not fit an array of {inner}") from None


def _as_numbers(values: Any, number: int, kind: str) -> np.ndarray[Any, Any]:
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise TypeError
    if number == BOOL:
        if given.dtype.kind != "b":
            raise TypeError
        return given.astype("<u1")
    if kind.startswith("float"):
        return given.astype(DTYPES[number])
    if given.size and given.dtype.kind not in "iu":
        raise TypeError
    limits = np.iinfo(kind)
    if any(not limits.min <= int(v) <= limits.max for v in given):
        raise OverflowError
    return given.astype(DTYPES[number])
