"""Write a GGUF file: all of it or nothing.

The header names every tensor before the first byte of data, so tensors are declared first and made
when the file is written. One at a time is in memory.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from qlab.files import new_file
from qlab.gguf import values
from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks import BlockType, block_type
from qlab.gguf.errors import GGUFError
from qlab.gguf.quantize import quantize
from qlab.gguf.reader import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS

MAX_NAME = 63  # bytes that llama.cpp takes

Data = Array | Callable[[], "Array | Iterable[Array]"]


class GGUFWriter:
    """Collects metadata and tensors, and writes the file when its block ends without an error.

    ::

        with GGUFWriter("small.gguf") as out:
            out.add("general.architecture", "llama")
            out.add_weights("token_embd.weight", w, "Q4_K")

    Args:
        path: the file; an old one is replaced in the end, and kept if anything fails.
        alignment: a power of two; tensors start at multiples of it.
        version: 2 or 3, which differ in nothing here.

    Chapter: GGUF, byte by byte.
    """

    def __init__(
        self, path: str | Path, alignment: int = DEFAULT_ALIGNMENT, version: int = 3
    ) -> None:
        if alignment < 1 or alignment & (alignment - 1) or alignment >= 2**32:
            raise GGUFError(f"alignment {alignment}: give a power of two below 2^32")
        if version not in (2, 3):
            raise GGUFError(f"version {version}: write 2 or 3")
        self.path, self.alignment, self.version = Path(path), alignment, version
        self._values: dict[str, bytes] = {}
        self._tensors: dict[str, tuple[tuple[int, ...], type[BlockType], Data]] = {}
        if alignment != DEFAULT_ALIGNMENT:
            self.add("general.alignment", alignment, "uint32")

    def add(self, key: str, value: Any, kind: str | None = None) -> None:
        """A metadata value.

        Args:
            key: unique.
            value: a number, text, or a list or NumPy array of them, nested if need be.
            kind: its type, such as ``uint64`` or ``array[string]``; default ``values.infer``.

        Raises: GGUFError for a key that is there already, or a value that does not fit.
        """
        if key in self._values:
            raise GGUFError(f"the key {key!r:.80} is there already")
        if key == "general.alignment" and (kind or "uint32", value) != ("uint32", self.alignment):
            raise GGUFError("general.alignment is set by GGUFWriter(alignment=...)")
        kind = kind or values.infer(value)
        number, _ = values.split(kind)
        head = values.encode(key, "string") + struct.pack("<I", number)
        self._values[key] = head + values.encode(value, kind)

    def add_tensor(self, name: str, shape: tuple[int, ...], kind: str, data: Data) -> None:
        """A tensor of bytes that are quantized already.

        Args:
            name: unique, at most 63 bytes.
            shape: of the weights, (rows, columns), at most four dimensions, none of them 0.
            kind: the block type.
            data: uint8, all bytes of the tensor in any shape; or a function that returns it or
                pieces of it, called when the file is written.
        """
        block = block_type(kind)
        if name in self._tensors:
            raise GGUFError(f"the tensor {name!r:.80} is there already")
        if len(name.encode()) > MAX_NAME:
            raise GGUFError(f"the name {name!r:.80} has more than {MAX_NAME} bytes")
        shape = tuple(int(n) for n in shape)
        if len(shape) > MAX_DIMENSIONS or any(n < 1 for n in shape):
            raise GGUFError(f"tensor {name!r:.80} of shape {shape}: at most 4 dimensions, none 0")
        block.row_bytes(shape[-1] if shape else 1)
        self._tensors[name] = (shape, block, data)

    def add_weights(
        self, name: str, weights: Any, kind: str = "F32", importance: Array | None = None
    ) -> None:
        """A tensor of weights, quantized when the file is written.

        Args:
            name: unique.
            weights: (..., columns), NumPy or torch.
            kind, importance: as for ``gguf.quantize``.
        """
        self.add_tensor(
            name, tuple(weights.shape), kind, lambda: quantize(weights, kind, importance)
        )

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.write()

    def write(self) -> None:
        """Write the file. Raises: GGUFError if a tensor's bytes are not as many as declared."""
        with new_file(self.path) as fresh, open(fresh, "wb") as out:
            out.write(
                MAGIC + struct.pack("<IQQ", self.version, len(self._tensors), len(self._values))
            )
            for value in self._values.values():
                out.write(value)
            offset = 0
            for name, (shape, block, _) in self._tensors.items():
                out.write(values.encode(name, "string") + struct.pack("<I", len(shape)))
                out.write(struct.pack(f"<{len(shape)}Q", *shape[::-1]))
                out.write(struct.pack("<IQ", block.type_id, offset))
                offset += self._padded(_nbytes(shape, block))
            out.write(bytes(self._padded(out.tell()) - out.tell()))
            for name, (shape, block, data) in self._tensors.items():
                written = _write_data(out, name, data)
                if written != _nbytes(shape, block):
                    raise GGUFError(
                        f"tensor {name!r:.80} has {written} bytes where its shape {shape} in "
                        f"{block.name} takes {_nbytes(shape, block)}"
                    )
                out.write(bytes(self._padded(written) - written))

    def _padded(self, n: int) -> int:
        return -(-n // self.alignment) * self.alignment


def _nbytes(shape: tuple[int, ...], block: type[BlockType]) -> int:
    nbytes = block.row_bytes(shape[-1] if shape else 1)
    for n in shape[:-1]:
        nbytes *= n
    return nbytes


def _write_data(out: BinaryIO, name: str, data: Data) -> int:
    made = data() if callable(data) else data
    written = 0
    for piece in [made] if isinstance(made, np.ndarray) else made:
        if piece.dtype != np.uint8:
            raise GGUFError(f"tensor {name!r:.80} has data of {piece.dtype}: give its bytes, uint8")
        out.write(np.ascontiguousarray(piece).data)
        written += piece.nbytes
    return written
