"""Read a GGUF file without trusting it.

The file is mapped into memory, not read: opening it looks at the metadata and the list of tensors,
and a tensor's bytes are touched when it is used. Every length, count and offset is checked against
the size of the file before anything is done with it, so a broken file costs a ``GGUFError`` that
says where, and no memory.

The layout::

    "GGUF"  version (uint32)  tensors (uint64)  metadata (uint64)
    metadata   key (string)  type (uint32)  value
    tensors    name (string)  dimensions (uint32)  each (uint64, fastest first)  type (uint32)
               offset (uint64, from the start of the data)
    padding to the alignment, then the data of the tensors, each aligned

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.gguf import values
from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks import BlockType, block_type
from qlab.gguf.errors import GGUFError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4  # of llama.cpp
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file.

    Attributes:
        name: its name.
        shape: as NumPy says it, (rows, columns); the file has it the other way round.
        kind: its block type.
        offset: where its bytes begin in the file.
        nbytes: how many they are.
    """

    name: str
    shape: tuple[int, ...]
    kind: type[BlockType]
    offset: int
    nbytes: int
    _file: Any = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def data(self) -> Array:
        """The bytes, uint8 (rows ..., row_bytes): a read-only view of the file."""
        raw = np.frombuffer(self._file, np.uint8, self.nbytes, self.offset)
        if not self.shape:
            return raw
        return raw.reshape(*self.shape[:-1], self.kind.row_bytes(self.shape[-1]))

    def dequantize(self) -> Array:
        """The weights, float32 of ``shape``."""
        from qlab.gguf.quantize import dequantize

        return dequantize(self.data, self.kind.name).reshape(self.shape)


class GGUFFile:
    """A GGUF file, opened for reading.

    ``metadata`` maps a key to its value: numbers, text, a NumPy array for an array of numbers, a
    list for others; a value is taken apart when it is asked for. ``types`` maps a key to its type,
    such as ``array[string]``. ``tensors`` maps a name to a ``Tensor``.

    Args:
        path: the file.

    Raises: GGUFError, with the offset, for a file that breaks a rule of the format; QlabError for
        one that cannot be read.

    Chapter: GGUF, byte by byte.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = _map(self.path)
        self.size = len(self._map)
        scan = _Scan(self._map)
        self.version = _version(scan)
        n_tensors = scan.count(_U64, 24, "tensors")
        n_values = scan.count(_U64, 13, "metadata values")
        self.types: dict[str, str] = {}
        where: dict[str, tuple[int, int]] = {}
        for _ in range(n_values):
            at = scan.at
            key = scan.text("a key")
            if key in where:
                raise GGUFError(f"the key {key!r:.80} is there twice", at)
            kind = scan.number(_U32, "a type")
            where[key] = (kind, scan.at)
            self.types[key] = scan.skip(kind)
        self.metadata: Mapping[str, Any] = _Metadata(self._map, where)
        self.alignment = self._alignment(where)
        self.tensors: dict[str, Tensor] = self._tensors(scan, n_tensors)

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; views of tensors that are still around keep it mapped."""
        try:
            self._map.close()
        except BufferError:
            pass

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over their weights; NaN without tensors."""
        weights = sum(t.size for t in self.tensors.values())
        return 8 * sum(t.nbytes for t in self.tensors.values()) / weights if weights else np.nan

    def _alignment(self, where: dict[str, tuple[int, int]]) -> int:
        if "general.alignment" not in where:
            return DEFAULT_ALIGNMENT
        value = self.metadata["general.alignment"]
        if self.types["general.alignment"] != "uint32" or not value or value & (value - 1):
            raise GGUFError(
                f"general.alignment is {value!r:.40}: it must be a power of two, uint32",
                where["general.alignment"][1],
            )
        return int(value)

    def _tensors(self, scan: _Scan, count: int) -> dict[str, Tensor]:
        listed: list[tuple[str, tuple[int, ...], type[BlockType], int, int, int]] = []
        names = set()
        for _ in range(count):
            at = scan.at
            name = scan.text("a tensor's name")
            if name in names:
                raise GGUFError(f"the tensor {name!r:.80} is there twice", at)
            names.add(name)
            dims = scan.number(_U32, "dimensions")
            if dims > MAX_DIMENSIONS:
                raise GGUFError(f"tensor {name!r:.80} has {dims} dimensions, at most 4 go", at)
            shape = tuple(scan.number(_U64, "a dimension") for _ in range(dims))[::-1]
            if 0 in shape:
                raise GGUFError(f"tensor {name!r:.80} has a dimension of 0", at)
            number = scan.number(_U32, "a type")
            offset = scan.number(_U64, "an offset")
            try:
                kind = block_type(number)
                row = kind.row_bytes(shape[-1] if shape else 1)
            except QlabError as error:
                raise GGUFError(f"tensor {name!r:.80}: {error}", at) from None
            nbytes = row
            for n in shape[:-1]:
                nbytes *= n
            listed.append((name, shape, kind, offset, nbytes, at))
        start = -(-scan.at // self.alignment) * self.alignment
        self.data_start = min(start, self.size)
        for name, _, _, offset, nbytes, at in listed:
            if offset % self.alignment:
                raise GGUFError(f"tensor {name!r:.80} starts at {offset}, not aligned", at)
            if start + offset + nbytes > self.size:
                raise GGUFError(
                    f"tensor {name!r:.80} ends at {start + offset + nbytes}, beyond the file's "
                    f"{self.size} bytes",
                    at,
                )
        end, last = 0, ""
        for name, _, _, offset, nbytes, at in sorted(listed, key=lambda t: t[3]):
            if offset < end:
                raise GGUFError(f"tensors {last!r:.80} and {name!r:.80} overlap", at)
            end, last = offset + nbytes, name
        self.data_end = start + end if listed else scan.at
        return {
            name: Tensor(name, shape, kind, start + offset, nbytes, self._map)
            for name, shape, kind, offset, nbytes, _ in listed
        }


class _Scan:
    """A position in the file that never passes its end."""

    def __init__(self, file: mmap.mmap, at: int = 0) -> None:
        self.file, self.at, self.size = file, at, len(file)

    def need(self, n: int, what: str) -> None:
        if n > self.size - self.at:
            raise GGUFError(f"the file ends within {what}, which needs {n} bytes", self.at)

    def number(self, form: struct.Struct, what: str) -> Any:
        self.need(form.size, what)
        (value,) = form.unpack_from(self.file, self.at)
        self.at += form.size
        return value

    def count(self, form: struct.Struct, least: int, what: str) -> int:
        """A number of things that take at least so many bytes each."""
        at = self.at
        value: int = self.number(form, what)
        if value > (self.size - self.at) // least:
            raise GGUFError(f"{value} {what} do not fit a file of {self.size} bytes", at)
        return value

    def text(self, what: str) -> str:
        n = self.number(_U64, what)
        self.need(n, what)
        raw = self.file[self.at : self.at + n]
        try:
            found = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise GGUFError(f"{what} is not UTF-8: {raw[:20]!r}", self.at) from None
        self.at += n
        return found

    def skip(self, kind: int, depth: int = 0) -> str:
        """Step over a value after its type number, and return the type's name."""
        if kind in values.SIZES:
            self.need(values.SIZES[kind], values.NAMES[kind])
            if kind == values.BOOL and self.file[self.at] > 1:
                raise GGUFError(f"a bool is {self.file[self.at]}", self.at)
            self.at += values.SIZES[kind]
        elif kind == values.STRING:
            n = self.number(_U64, "a string")
            self.need(n, "a string")
            self.at += n
        elif kind == values.ARRAY:
            return f"array[{self._skip_array(depth + 1)}]"
        else:
            raise GGUFError(f"no metadata type {kind}", self.at - 4)
        return values.NAMES[kind]

    def _skip_array(self, depth: int) -> str:
        if depth > values.MAX_DEPTH:
            raise GGUFError(f"arrays nested more than {values.MAX_DEPTH} deep", self.at)
        kind = self.number(_U32, "the type of an array")
        if kind in values.SIZES:
            n = self.count(_U64, values.SIZES[kind], f"elements of {values.NAMES[kind]}")
            if kind == values.BOOL:
                flags = np.frombuffer(self.file, np.uint8, n, self.at)
                if n and flags.max() > 1:
                    raise GGUFError("an array of bools has other bytes than 0 and 1", self.at)
            self.at += n * values.SIZES[kind]
        elif kind == values.STRING:
            n = self.count(_U64, 8, "strings")
            file, at, size, unpack = self.file, self.at, self.size, _U64.unpack_from
            for _ in range(n):  # a vocabulary has 100,000: no function calls here
                if at + 8 > size:
                    raise GGUFError("the file ends within a string", at)
                at += 8 + unpack(file, at)[0]
                if at > size:
                    raise GGUFError("the file ends within a string", self.at)
            self.at = at
        elif kind == values.ARRAY:
            kinds = set()
            for _ in range(self.count(_U64, 12, "arrays")):
                kinds.add(self._skip_array(depth + 1))
            return f"array[{kinds.pop()}]" if len(kinds) == 1 else "array"
        else:
            raise GGUFError(f"no metadata type {kind}", self.at - 4)
        return values.NAMES[kind]

    def value(self, kind: int) -> Any:
        """A value that ``skip`` has been over, taken apart."""
        if kind in values.SIZES:
            dtype = np.dtype(values.DTYPES[kind])
            (found,) = np.frombuffer(self.file, dtype, 1, self.at).tolist()
            self.at += dtype.itemsize
            return bool(found) if kind == values.BOOL else found
        if kind == values.STRING:
            return self.text("a string")
        inner = self.number(_U32, "a type")
        n = self.number(_U64, "a count")
        if inner in values.SIZES:
            dtype = np.dtype(values.DTYPES[inner])
            array = np.frombuffer(self.file, dtype, n, self.at).copy()
            self.at += array.nbytes
            return array.astype(bool) if inner == values.BOOL else array
        if inner == values.STRING:
            return self._texts(n)
        return [self.value(inner) for _ in range(n)]

    def _texts(self, n: int) -> list[str]:
        """Strings that ``skip`` has been over: a vocabulary, so again no function calls."""
        file, at, unpack, found = self.file, self.at, _U64.unpack_from, []
        try:
            for _ in range(n):
                at += 8
                end = at + unpack(file, at - 8)[0]
                found.append(file[at:end].decode())
                at = end
        except UnicodeDecodeError:
            raise GGUFError(f"a string is not UTF-8: {file[at : at + 20]!r}", at) from None
        self.at = at
        return found


class _Metadata(Mapping[str, Any]):
    """Values that are taken apart when asked for."""

    def __init__(self, file: mmap.mmap, where: dict[str, tuple[int, int]]) -> None:
        self._file, self._where = file, where

    def __getitem__(self, key: str) -> Any:
        kind, at = self._where[key]
        return _Scan(self._file, at).value(kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        return key in self._where


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise GGUFError(f"'{path}' is empty", 0)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise QlabError(f"no file at '{path}': check the path") from None
    except OSError as error:
        reason = error.strerror or error
        raise QlabError(f"'{path}' cannot be read: {reason}; give a GGUF file") from None


def _version(scan: _Scan) -> int:
    scan.need(4, "the magic")
    if scan.file[:4] != MAGIC:
        raise GGUFError(f"no GGUF file: it begins with {scan.file[:4]!r} and not {MAGIC!r}", 0)
    scan.at = 4
    version: int = scan.number(_U32, "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in VERSIONS:
            raise GGUFError("a big-endian file: convert it to little-endian first", 4)
        raise GGUFError(f"version {version}: only 2 and 3 are read", 4)
    return version
