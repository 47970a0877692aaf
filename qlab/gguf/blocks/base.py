"""What a block type is, and the list of them.

A GGUF tensor is stored row by row, and a row as blocks of equally many weights. A block is
self-contained: its codes and its scales lie together, so any row can be read alone.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

import numpy as np

from qlab.errors import QlabError
from qlab.gguf.arithmetic import Array


class BlockType:
    """One way to store weights. A subclass gives the layout and the arithmetic.

    Attributes:
        name: as llama.cpp spells it, in capitals.
        type_id: the number that stands for it in a file.
        block_size: weights in a block.
        block_bytes: bytes of a block.
        can_encode: whether there is a quantizer.
        uses_importance: whether the quantizer looks at an importance matrix.
        needs_importance: whether it refuses to work without one.
    """

    name: ClassVar[str]
    type_id: ClassVar[int]
    block_size: ClassVar[int]
    block_bytes: ClassVar[int]
    can_encode: ClassVar[bool] = True
    uses_importance: ClassVar[bool] = False
    needs_importance: ClassVar[bool] = False

    @classmethod
    def bits_per_weight(cls) -> float:
        """Bits that a weight takes, scales included."""
        return 8 * cls.block_bytes / cls.block_size

    @classmethod
    def row_bytes(cls, n: int) -> int:
        """Bytes of a row of ``n`` weights. Raises: QlabError if no whole blocks fit."""
        if n % cls.block_size:
            raise QlabError(
                f"{cls.name} stores rows in blocks of {cls.block_size}, and a row of {n} does not "
                "divide: choose a type with smaller blocks for this tensor"
            )
        return n // cls.block_size * cls.block_bytes

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        """Rows to bytes.

        Args:
            x: float32 (rows, blocks, block_size), finite.
            importance: float32 (blocks, block_size) or None.

        Returns: uint8 (rows, blocks, block_bytes).
        """
        raise QlabError(f"{cls.name} can be read but not written here: choose another type")

    @classmethod
    def decode(cls, data: Array) -> Array:
        """Bytes to weights.

        Args:
            data: uint8 (blocks, block_bytes).

        Returns: float32 (blocks, block_size).
        """
        raise NotImplementedError


BLOCK_TYPES: dict[str, type[BlockType]] = {}
_BY_ID: dict[int, type[BlockType]] = {}

T = TypeVar("T", bound=type[BlockType])


def register(cls: T) -> T:
    """Decorator: put a block type on the list."""
    assert cls.name not in BLOCK_TYPES and cls.type_id not in _BY_ID
    BLOCK_TYPES[cls.name] = cls
    _BY_ID[cls.type_id] = cls
    return cls


def block_type(name: str | int) -> type[BlockType]:
    """The block type of a name, in any case, or of a number in a file.

    Raises: QlabError for a name or number that nothing has.
    """
    found = BLOCK_TYPES.get(name.upper()) if isinstance(name, str) else _BY_ID.get(name)
    if found is None:
        raise QlabError(f"no GGUF type {name!r}: choose one of {', '.join(BLOCK_TYPES)}")
    return found


# --- packing that several types share ---------------------------------------------------------


def pack_nibbles(codes: Array) -> Array:
    """Two codes a byte: the first half of the last axis in the low four bits. uint8."""
    half = codes.shape[-1] // 2
    return (codes[..., :half] | codes[..., half:] << 4).astype(np.uint8)


def unpack_nibbles(data: Array) -> Array:
    """The other way round: uint8 (..., n) to (..., 2n)."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def pack_bits(bits: Array) -> Array:
    """0 or 1 (..., 8n) to bytes (..., n), the first in the lowest bit."""
    return np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little")


def unpack_bits(data: Array) -> Array:
    """Bytes (..., n) to 0 or 1 (..., 8n), the lowest bit first."""
    return np.unpackbits(np.ascontiguousarray(data), axis=-1, bitorder="little")


def halves(*values: Array) -> list[Array]:
    """float16 values of each block (...,) as little-endian bytes (..., 2)."""
    from qlab.gguf.arithmetic import to_half

    return [to_half(v)[..., None].view(np.uint8) for v in values]


def read_half(data: Array, at: int) -> Array:
    """The float16 at a byte of each block, as float32 (blocks,)."""
    from qlab.gguf.arithmetic import from_half

    return from_half(np.ascontiguousarray(data[..., at : at + 2]).view("<u2")[..., 0])


def join(*parts: Array) -> Array:
    """Pieces of a block one after the other, uint8."""
    return np.concatenate([np.asarray(p, dtype=np.uint8) for p in parts], axis=-1)
