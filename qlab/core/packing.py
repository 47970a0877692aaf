"""Packing codes of 1 to 32 bits into bytes.

Codes are packed along the last axis into a stream of bits, first code in the lowest bits of the
first byte ("little-endian bit order": what GPTQ and most kernels use). For 4 bits this puts the
first code of a pair into the low nibble, as ONNX, torchao's MX formats and GPTQ have it;
``high_first=True`` gives the other order in the world, the first code in the high nibble, as
bitsandbytes has it. GGUF's Q4_0 is a third: byte i of a block of 32 holds codes i and i + 16, which
``pack`` gives for codes brought into that order.

Chapter: Number formats.
"""

from __future__ import annotations

from typing import Any

from qlab.core._array import Array, namespace
from qlab.errors import QlabError


def packed_length(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack(codes: Array, bits: int, high_first: bool = False) -> Array:
    """Pack unsigned codes (..., n) in [0, 2**bits) to uint8 (..., ceil(n * bits / 8)).

    The last byte of a row is filled with zero bits.
    """
    _check_bits(bits)
    xp = namespace(codes)
    codes = xp.astype(codes, xp.uint8 if bits <= 8 else xp.int64)
    if bits == 8:
        return codes
    if bits in (1, 2, 4):
        return _pack_whole(codes, bits, high_first)
    # Otherwise cut the codes into pieces that do fit a byte: whole bytes, or single bits.
    piece = 8 if bits % 8 == 0 else 1
    shifts = _shifts(bits, piece, high_first)
    pieces = xp.stack([(codes >> i) & (2**piece - 1) for i in shifts], axis=-1)
    pieces = xp.reshape(pieces, (*codes.shape[:-1], codes.shape[-1] * bits // piece))
    return _pack_whole(xp.astype(pieces, xp.uint8), piece, high_first)


def unpack(packed: Array, bits: int, count: int, high_first: bool = False) -> Array:
    """The inverse of ``pack``: uint8 (..., nbytes) to codes (..., count).

    The codes are uint8, from 9 bits on uint16, and from 17 bits on uint32.

    Raises: QlabError if the bytes do not hold exactly ``count`` codes.
    """
    _check_bits(bits)
    xp = namespace(packed)
    if packed.shape[-1] != packed_length(count, bits):
        raise QlabError(
            f"{packed.shape[-1]} bytes a row cannot hold {count} codes of {bits} bits "
            f"({packed_length(count, bits)} bytes): the data is cut or the shape is wrong"
        )
    if bits == 8:
        return packed
    if bits in (1, 2, 4):
        return _unpack_whole(packed, bits, high_first)[..., :count]
    piece = 8 if bits % 8 == 0 else 1
    pieces = _unpack_whole(packed, piece, high_first)[..., : count * bits // piece]
    pieces = xp.reshape(pieces, (*packed.shape[:-1], count, bits // piece))
    if bits > 8:
        pieces = xp.astype(pieces, xp.int64)
    codes = xp.zeros_like(pieces[..., 0])
    for i, shift in enumerate(_shifts(bits, piece, high_first)):
        codes = codes | (pieces[..., i] << shift)
    return xp.astype(codes, _type_of(bits, xp))


def _pack_whole(codes: Array, bits: int, high_first: bool) -> Array:
    """Pack when a whole number of codes fits a byte."""
    xp = namespace(codes)
    per_byte = 8 // bits
    n = codes.shape[-1]
    short = -n % per_byte
    if short:
        fill = xp.zeros_like(codes[..., :1])
        codes = xp.concat([codes] + [fill] * short, axis=-1)
    out = None
    for i in range(per_byte):
        shift = bits * (per_byte - 1 - i if high_first else i)
        part = codes[..., i::per_byte] << shift
        out = part if out is None else out | part
    return out


def _unpack_whole(packed: Array, bits: int, high_first: bool) -> Array:
    xp = namespace(packed)
    per_byte = 8 // bits
    mask = 2**bits - 1
    parts = []
    for i in range(per_byte):
        shift = bits * (per_byte - 1 - i if high_first else i)
        parts.append((packed >> shift) & mask)
    codes = xp.stack(parts, axis=-1)
    return xp.reshape(codes, (*packed.shape[:-1], packed.shape[-1] * per_byte))


def _shifts(bits: int, piece: int, high_first: bool) -> list[int]:
    """Where the pieces of a code begin, in the order of the stream."""
    places = list(range(0, bits, piece))
    return places[::-1] if high_first else places


def _type_of(bits: int, xp: Any) -> Any:
    return xp.uint8 if bits <= 8 else xp.uint16 if bits <= 16 else xp.uint32


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 32:
        raise QlabError(f"cannot pack codes of {bits} bits: 1 to 32 are supported")
