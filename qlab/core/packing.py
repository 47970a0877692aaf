"""Packing codes of 1 to 8 bits into bytes.

Codes are packed along the last axis into a stream of bits, first code in the lowest bits of the
first byte ("little-endian bit order": what GPTQ and most kernels use). For 4 bits this puts the
first code of a pair into the low nibble; ``high_first=True`` gives the other order in the world,
the first code in the high nibble (bitsandbytes, ONNX's older int4 notes).

Chapter: Number formats.
"""

from __future__ import annotations

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
    codes = xp.astype(codes, xp.uint8)
    if bits == 8:
        return codes
    n = codes.shape[-1]
    if bits in (1, 2, 4):
        return _pack_whole(codes, bits, high_first)
    # 3, 5, 6, 7 bits: eight codes fill exactly `bits` bytes. Write them as single bits first.
    lanes = _bits_of(codes, bits, high_first)
    lanes = xp.reshape(lanes, (*codes.shape[:-1], n * bits))
    return _pack_whole(lanes, 1, high_first)


def unpack(packed: Array, bits: int, count: int, high_first: bool = False) -> Array:
    """The inverse of ``pack``: uint8 (..., nbytes) to uint8 codes (..., count).

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
    lanes = _unpack_whole(packed, 1, high_first)[..., : count * bits]
    lanes = xp.reshape(lanes, (*packed.shape[:-1], count, bits))
    codes = xp.zeros_like(lanes[..., 0])
    for i in range(bits):
        shift = bits - 1 - i if high_first else i
        codes = codes | (lanes[..., i] << shift)
    return codes


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


def _bits_of(codes: Array, bits: int, high_first: bool) -> Array:
    """Single bits (..., n, bits) of codes (..., n), in stream order."""
    xp = namespace(codes)
    order = range(bits - 1, -1, -1) if high_first else range(bits)
    return xp.stack([(codes >> i) & 1 for i in order], axis=-1)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise QlabError(f"cannot pack codes of {bits} bits: 1 to 8 are supported")
