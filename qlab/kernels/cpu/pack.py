"""Bring a weight into the order in which a kernel reads it, once.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.core import IntFormat, QTensor
from qlab.core import scales as core_scales
from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.kernels.cpu.kinds import (
    BLOCK,
    FLOAT,
    HEADER,
    LAYOUTS,
    ROWS,
    WIDE,
    Kind,
    packed_bytes,
    padded_inputs,
    tile_bytes,
)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A matrix (out_features, in_features) in the order of its kernel. Immutable.

    Attributes:
        kind: how it is stored (``Kind``).
        out_features, in_features: its shape.
        buffer: uint8, one-dimensional, starts at a multiple of 64 bytes.
        group_size: inputs that share a scale, where the kind leaves it open; else 0.
    """

    kind: Kind
    out_features: int
    in_features: int
    buffer: np.ndarray
    group_size: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the kernel reads."""
        return int(self.buffer.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits read for each weight, scales and padding counted."""
        return 8 * self.nbytes / (self.out_features * self.in_features)

    @property
    def arguments(self) -> tuple[int, np.ndarray, int, int, int]:
        """What ``gemv`` and ``gemm`` ask for first."""
        return (
            int(self.kind),
            self.buffer,
            self.out_features,
            self.in_features,
            self.group_size,
        )


def aligned(count: int) -> np.ndarray:
    """``count`` zeroed bytes that start at a multiple of 64, the length of a cache line."""
    raw = np.zeros(count + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]


def pack(weight: Any, inputs: str = "blocks") -> PackedWeight:
    """Pack a weight for its kernel.

    Args:
        weight: a QTensor, or a float matrix (out_features, in_features), NumPy or torch.
        inputs: what the kernel makes of the inputs. ``blocks``: int8, with a scale for each 32 of
            a token, wherever weights are integers. ``token``: int8, one scale a token (W8A8; needs
            int8 with one scale a row). ``float``: nothing, they stay float32.

    Returns: the packed weight. A scheme that has no kernel is dequantized to F32, with a warning
    the first time.

    Raises: QlabError for what is no matrix, an unknown word for ``inputs``, or ``token`` where it
        does not fit.

    Chapter: A CPU kernel in Numba.
    """
    if inputs not in ("blocks", "token", "float"):
        raise QlabError(f"inputs='{inputs}' is unknown: use 'blocks', 'token' or 'float'")
    if len(weight.shape) != 2:
        raise QlabError(f"a kernel needs a matrix, got shape {tuple(weight.shape)}")
    if not isinstance(weight, QTensor):
        return pack_floats(weight)
    if weight.scheme.is_cast:
        return _pack_cast(weight)
    found = _pack_integers(weight, inputs)
    if found is None and inputs == "token":
        raise QlabError(
            f"scheme '{weight.scheme}' with inputs='token': W8A8 needs 'int8-channel' weights with "
            "at most 132104 inputs"
        )
    return found or _fall_back(str(weight.scheme), to_numpy(weight.dequantize()))


_warned: set[str] = set()


def _fall_back(what: str, dense: np.ndarray) -> PackedWeight:
    if what not in _warned:
        _warned.add(what)
        warnings.warn(
            f"no kernel for {what}: it is dequantized to float32, which is exact and slow",
            stacklevel=3,
        )
    return pack_floats(dense)


# --- floats -----------------------------------------------------------------------------------


def pack_floats(weight: Any) -> PackedWeight:
    """A float matrix as it is: float32, or the 16 bits of float16 and bfloat16."""
    name = str(weight.dtype).removeprefix("torch.")
    if name == "bfloat16":
        w = _bits_of_bfloat16(weight)
        return _place(Kind.BF16, *w.shape, 0, _pairs(_tiles(w, WIDE)))
    w = to_numpy(weight)
    kind = Kind.F16 if name == "float16" and np.isfinite(w).all() else Kind.F32
    w = w.astype(np.float16 if kind is Kind.F16 else np.float32)
    return _place(kind, *w.shape, 0, _tiles(w, WIDE))


def _pack_cast(q: QTensor) -> PackedWeight:
    """A QTensor of a float format that needs no scale."""
    w = to_numpy(q.dequantize()).astype(np.float32)
    if q.scheme.format.name == "bf16":  # the upper half of the bits, the lower being zeros
        bits = (w.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return _place(Kind.BF16, *w.shape, 0, _pairs(_tiles(bits, WIDE)))
    return pack_floats(w.astype(np.float16) if q.scheme.format.name == "fp16" else w)


def _bits_of_bfloat16(weight: Any) -> np.ndarray:
    if hasattr(weight, "detach"):
        import torch

        return weight.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
    return np.ascontiguousarray(weight).view(np.uint16)


# --- QTensors ---------------------------------------------------------------------------------


def _pack_integers(q: QTensor, inputs: str) -> PackedWeight | None:
    """The packed form of a QTensor, or None where there is none."""
    out_features, in_features = q.shape
    fmt = q.scheme.format
    rows, columns = q.scheme.granularity.block_shape(tuple(q.shape))
    whole = columns >= in_features
    signed = isinstance(fmt, IntFormat) or fmt.name == "binary"
    if not isinstance(q.packed, np.ndarray) and not hasattr(q.packed, "detach"):
        return None
    if type(q) is not QTensor or fmt.bits > 8 or (not signed and fmt.bits > 4):
        return None
    if not signed or (inputs == "float" and fmt.bits <= 4):
        kind = Kind.CODEBOOK4
    elif inputs == "float":
        kind = Kind.INT8_WEIGHT
    elif inputs == "token":
        kind = Kind.INT8_CHANNEL
    else:
        bits = {1: 2, 2: 2, 3: 3, 4: 4}.get(fmt.bits, 8)
        kind = Kind[f"INT{bits}_{'GROUP' if q.zero_point is None else 'ZERO'}"]
    if kind is Kind.INT8_CHANNEL and in_features > 2**31 // (128 * 127):
        return None  # a sum might overflow int32
    asymmetric = q.zero_point is not None
    if asymmetric and not kind.name.endswith("ZERO"):
        return None
    if not whole and (kind is Kind.INT8_CHANNEL or columns % (WIDE if kind in FLOAT else BLOCK)):
        return None
    codes = to_numpy(q.codes)[:out_features]
    scale = to_numpy(core_scales.used(q.scale, q.tensor_scale)).astype(np.float32)
    scale = np.repeat(scale, rows, axis=0)[:out_features]
    size = 0 if whole else columns
    if kind is Kind.CODEBOOK4:
        if signed:  # the place of a code in the table
            table, codes = np.arange(-8, 8, dtype=np.float32), codes.astype(np.int16) + 8
        else:
            table = np.zeros(16, np.float32)
            levels = to_numpy(fmt.decode(np.arange(2**fmt.bits, dtype=np.uint8)))
            table[: levels.size] = levels
        return pack_codebook(codes, table, scale, in_features, size)
    if kind is Kind.INT8_WEIGHT:
        w = _tiles(_cut(codes.astype(np.int8), kind, in_features), WIDE)
        return _place(kind, out_features, in_features, size, w, _by_group([scale]))
    offset = LAYOUTS[kind].offset
    parts = [scale]
    if asymmetric:
        zero = np.repeat(to_numpy(q.zero_point).astype(np.float32), rows, axis=0)[:out_features]
        if fmt.qmin == 0:  # stored as they are: the offset goes into the zero point
            zero, codes = zero - np.float32(offset), codes.astype(np.int16) - offset
        parts.append(zero)
    stored = (codes.astype(np.int16) + offset).astype(np.uint8)
    return _pack_codes(kind, stored, in_features, size, _by_group(parts))


def pack_codebook(
    codes: np.ndarray, table: np.ndarray, scale: np.ndarray, in_features: int, group_size: int
) -> PackedWeight:
    """4-bit places in a table, with a scale a group; the inputs stay float32.

    Args:
        codes: (out_features, in_features), 0 to 15.
        table: float32 (16,).
        scale: float32 (out_features, groups).
        group_size: a multiple of 8, or 0 for one group a row.
    """
    w = _tiles(_cut(codes.astype(np.uint32), Kind.CODEBOOK4, in_features), WIDE)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)[:, None]
    lanes = np.bitwise_or.reduce(w << shifts, axis=2)
    scales = _by_group([scale])
    return _place(Kind.CODEBOOK4, codes.shape[0], in_features, group_size, lanes, scales, table)


# --- GGUF -------------------------------------------------------------------------------------

# Types whose weights are those of another one, bit for bit, when the codes get more bits.
GGUF_TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "TQ2_0", "Q5_0", "IQ4_NL", "Q3_K",
    "Q4_1", "Q5_1", "Q2_K",
)  # fmt: skip


def pack_gguf(data: Any, type_name: str, in_features: int) -> PackedWeight:
    """Pack the rows of a GGUF tensor.

    Args:
        data: uint8 (out_features, bytes of a row), as in the file.
        type_name: such as ``Q4_K``. Those of ``GGUF_TYPES`` have a kernel; Q5_0 and IQ4_NL are
            stored as Q8_0, and Q3_K as Q6_K, which holds their weights exactly.
        in_features: weights in a row.

    Returns: the packed weight. A type without a kernel is dequantized to F32, with a warning the
        first time. Raises: QlabError if the bytes do not fit the type.

    Chapter: A CPU kernel in Numba.
    """
    from qlab.gguf.blocks import block_type

    found = block_type(type_name)
    data = np.ascontiguousarray(data, dtype=np.uint8)
    if data.ndim != 2 or data.shape[1] != found.row_bytes(in_features):
        raise QlabError(
            f"{found.name}: a row of {in_features} weights takes {found.row_bytes(in_features)} "
            f"bytes, got an array of shape {data.shape}"
        )
    blocks = data.reshape(data.shape[0], -1, found.block_bytes)
    if found.name == "F32":
        return pack_floats(data.view(np.float32))
    if found.name == "F16" and np.isfinite(data.view(np.float16)).all():
        return pack_floats(data.view(np.float16))
    if found.name == "BF16":
        w = _tiles(data.view(np.uint16), WIDE)
        return _place(Kind.BF16, len(data), in_features, 0, _pairs(w))
    if found.name in GGUF_TYPES:
        kind, codes, scales = _take_apart(found.name, blocks)
        return _pack_codes(kind, codes.reshape(len(data), -1), in_features, 0, scales)
    dense = found.decode(blocks.reshape(-1, found.block_bytes)).reshape(len(data), -1)
    return _fall_back(f"GGUF's {found.name}", dense)


def _take_apart(name: str, blocks: np.ndarray) -> tuple[Kind, np.ndarray, np.ndarray]:
    """Kind, codes (rows, blocks, block_size) uint8, and the bytes of the scales of each group."""
    from qlab.gguf.blocks import _iq4, _k
    from qlab.gguf.blocks.base import unpack_bits, unpack_nibbles

    rows, count, size = blocks.shape
    flat = blocks.reshape(-1, size)
    if name == "Q4_0":
        return Kind.Q4_0, unpack_nibbles(blocks[..., 2:]), _by_group([_half(blocks, 0)])
    if name == "Q8_0":
        return Kind.Q8_0, blocks[..., 2:] ^ 128, _by_group([_half(blocks, 0)])
    if name == "Q5_0":
        fifth = unpack_bits(blocks[..., 2:6]) << 4
        return (
            Kind.Q8_0,
            (unpack_nibbles(blocks[..., 6:]) | fifth) + 112,
            _by_group([_half(blocks, 0)]),
        )
    if name in ("Q4_1", "Q5_1"):
        codes = unpack_nibbles(blocks[..., 4:] if name == "Q4_1" else blocks[..., 8:])
        if name == "Q5_1":
            codes = codes | unpack_bits(blocks[..., 4:8]) << 4
        minus_m = _half(blocks, 2) ^ np.uint16(0x8000)  # only the sign
        return Kind[name], codes, _by_group([_half(blocks, 0), minus_m])
    if name == "Q2_K":
        both = np.moveaxis(flat[:, :16].reshape(rows, count, 16), 2, 0)
        scales = _by_group([_half(blocks, 80), _half(blocks, 82), *both])
        return Kind.Q2_K, _k.unpack_crumbs(flat[:, 16:80]), scales
    if name == "IQ4_NL":
        levels = np.asarray(_iq4.LEVELS).astype(np.int16) + 128
        codes = levels.astype(np.uint8)[unpack_nibbles(blocks[..., 2:])]
        return Kind.Q8_0, codes, _by_group([_half(blocks, 0)])
    if name == "TQ2_0":
        return Kind.TERNARY, _k.unpack_crumbs(flat[:, :64]), _by_group([_half(blocks, 64)])
    if name in ("Q4_K", "Q5_K"):
        s, m = _k.unpack_six_bits(flat[:, 4:16])
        if name == "Q4_K":
            codes = _k.unpack_k_nibbles(flat[:, 16:])
        else:
            codes = _k.unpack_k_nibbles(flat[:, 48:]) | _k.unpack_planes(flat[:, 16:48]) << 4
        pairs = np.stack([s, m], axis=2).reshape(rows, count, 16)
        scales = _by_group([_half(blocks, 0), _half(blocks, 2), *np.moveaxis(pairs, 2, 0)])
        return Kind[name], codes, scales
    if name == "Q3_K":
        codes, s = _q3_k(flat)
        d = _half(blocks, 108)
    else:
        low = flat[:, :128].reshape(-1, 2, 1, 64)
        low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 256)
        codes = low | _k.unpack_crumbs(flat[:, 128:192]) << 4
        s, d = flat[:, 192:208], _half(blocks, 208)
    s = s.reshape(rows, count, 16)
    return Kind.Q6_K, codes, _by_group([d, *np.moveaxis(s, 2, 0)])


def _q3_k(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of Q3_K with the offset of Q6_K's codes, 32 instead of 4."""
    from qlab.gguf.blocks import _k

    codes = _k.unpack_crumbs(flat[:, 32:96]) | _k.unpack_planes(flat[:, :32]) << 2
    low = np.concatenate([flat[:, 96:104] & 15, flat[:, 96:104] >> 4], axis=1)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (flat[:, None, 104:108] >> shifts & 3).reshape(-1, 16)
    s = (low | high << 4).astype(np.int8) - np.int8(32)
    return codes + 28, s.view(np.uint8)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, as bits."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<u2")[..., 0]


# --- placing ----------------------------------------------------------------------------------


def _cut(codes: np.ndarray, kind: Kind, in_features: int) -> np.ndarray:
    """Without the columns that only fill up a group."""
    return codes[:, : padded_inputs(kind, in_features)]


def _tiles(w: np.ndarray, unit: int) -> np.ndarray:
    """(out, in) to (tiles, blocks, unit, 16), filled up with zeros."""
    rows, columns = -w.shape[0] % ROWS, -w.shape[1] % unit
    if rows or columns:
        w = np.pad(w, ((0, rows), (0, columns)))
    w = w.reshape(-1, ROWS, w.shape[1] // unit, unit)
    return w.transpose(0, 2, 3, 1)


def _pairs(tiles: np.ndarray) -> np.ndarray:
    """Inputs 2j and 2j + 1 of a row side by side: (tiles, blocks, 4, 16, 2)."""
    t, b, unit, rows = tiles.shape
    return tiles.reshape(t, b, unit // 2, 2, rows).transpose(0, 1, 2, 4, 3)


def _by_group(parts: list[np.ndarray]) -> np.ndarray:
    """Arrays (out, groups) to the bytes of each group: uint8 (tiles, groups, bytes)."""
    done = []
    for part in parts:
        tiles = np.ascontiguousarray(_tiles(part, 1)[:, :, 0])  # (tiles, groups, 16)
        done.append(tiles.view(np.uint8).reshape(*tiles.shape[:2], -1))
    return np.concatenate(done, axis=2)


def _pack_codes(
    kind: Kind, codes: np.ndarray, in_features: int, group_size: int, scales: np.ndarray
) -> PackedWeight:
    """Codes uint8 (out, in) into the registers that ``take_apart`` reads."""
    out_features = codes.shape[0]
    codes = _cut(codes, kind, in_features)
    rows, columns = -out_features % ROWS, padded_inputs(kind, in_features) - codes.shape[1]
    if rows or columns:
        codes = np.pad(codes, ((0, rows), (0, columns)))
    w = codes.reshape(-1, ROWS, codes.shape[1] // BLOCK, 8, 4)
    w = w.transpose(0, 2, 3, 1, 4).reshape(w.shape[0], -1, 8, 64)  # eight registers a block
    w = np.concatenate(_squeeze(w, LAYOUTS[kind].bits), axis=2)
    return _place(kind, out_features, in_features, group_size, w, scales)


def _squeeze(w: np.ndarray, bits: int) -> list[np.ndarray]:
    """Eight registers of codes (..., 8, 64) into as many as ``bits``."""
    if bits == 8:
        return [w]
    if bits == 4:
        return [w[:, :, 0::2] | w[:, :, 1::2] << 4]
    if bits == 6:
        return [*_squeeze(w & 15, 4), *_squeeze(w >> 4, 2)]
    q = w & 3
    crumbs = q[:, :, 0::4] | q[:, :, 1::4] << 2 | q[:, :, 2::4] << 4 | q[:, :, 3::4] << 6
    if bits == 2:
        return [crumbs]
    places = np.arange(8, dtype=np.uint8)[:, None]
    third = np.bitwise_or.reduce((w >> 2) << places, axis=2, keepdims=True)
    return [crumbs, third]


def _place(
    kind: Kind,
    out_features: int,
    in_features: int,
    group_size: int,
    codes: np.ndarray,
    scales: np.ndarray | None = None,
    header: np.ndarray | None = None,
) -> PackedWeight:
    """Put codes (tiles, ...) and scales (tiles, ...) into one buffer."""
    size, whole = tile_bytes(kind, in_features, group_size)
    buffer = aligned(packed_bytes(kind, out_features, in_features, group_size))
    if header is not None:
        buffer[:HEADER].view(header.dtype)[: header.size] = header
    tiles = buffer[HEADER:].reshape(-1, whole)
    count = codes.shape[0]
    tiles[:, :size] = np.ascontiguousarray(codes).reshape(count, -1).view(np.uint8)
    if scales is not None:
        flat = scales.reshape(count, -1)
        tiles[:, size : size + flat.shape[1]] = flat
    return PackedWeight(kind, out_features, in_features, buffer, group_size)
