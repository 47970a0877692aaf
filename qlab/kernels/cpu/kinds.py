"""The kinds of packed weights that have a kernel, and where the bytes of each lie.

A packed matrix is one row of bytes: tiles of 16 rows (out_features), one after the other, the last
filled up with zeros. So a register of 16 lanes has a row in each lane, and no sum runs across
lanes. A tile holds all its codes first, then the scales:

    codes of inputs 0 .. 31 | codes of inputs 32 .. 63 | ... | scales of group 0 | of group 1 | ...

Kinds with integer inputs (``INTEGER``): a load of 64 bytes holds four neighbouring inputs of each
of the 16 rows, as ``dot4`` wants them. Of 4 bits it holds four more inputs in the upper halves of
the bytes; of 2 bits, 16 inputs. Kinds with float inputs: see ``float_kernels``.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

ROWS = 16  # of a tile: the lanes of a register
BLOCK = 32  # inputs that share a scale where inputs are quantized
WIDE = 8  # inputs that a kernel for float inputs takes at a time


class Kind(IntEnum):
    """How a packed weight is stored, and so which kernel multiplies it."""

    F32 = 0
    F16 = 1
    BF16 = 2
    CODEBOOK4 = 3  # 4-bit places in a table of 16 numbers: NF4, fp4, int4 with float inputs
    INT8_WEIGHT = 4  # int8 with float inputs
    Q4_0 = 5
    Q8_0 = 6
    Q4_K = 7
    Q5_K = 8
    Q6_K = 9
    TERNARY = 10  # TQ2_0
    INT2_GROUP = 11
    INT3_GROUP = 12
    INT4_GROUP = 13
    INT8_GROUP = 14
    INT2_ZERO = 15  # the same four with zero points
    INT3_ZERO = 16
    INT4_ZERO = 17
    INT8_ZERO = 18
    INT8_CHANNEL = 19  # W8A8: one scale a row, one scale a token
    Q4_1 = 20
    Q5_1 = 21
    Q2_K = 22


# Inputs of these stay float32; those of the others become int8.
FLOAT = (Kind.F32, Kind.F16, Kind.BF16, Kind.CODEBOOK4, Kind.INT8_WEIGHT)


@dataclass(frozen=True)
class Layout:
    """The bytes of a kind.

    Attributes:
        bits: of a stored code.
        offset: what is taken from a stored code: value = (code - offset) · scale.
        group: inputs that share the bytes of ``scales``; 0 where the weight says (group_size).
        scales: bytes of the scales of a group, for 16 rows.
    """

    bits: int
    offset: int
    group: int
    scales: int


LAYOUTS = {
    Kind.F32: Layout(32, 0, 0, 0),
    Kind.F16: Layout(16, 0, 0, 0),
    Kind.BF16: Layout(16, 0, 0, 0),
    Kind.CODEBOOK4: Layout(4, 0, 0, 64),
    Kind.INT8_WEIGHT: Layout(8, 0, 0, 64),
    Kind.Q4_0: Layout(4, 8, 32, 32),  # float16
    Kind.Q8_0: Layout(8, 128, 32, 32),
    # d and dmin, float16; then for each 32 inputs the scale and the minimum, a byte each
    Kind.Q4_K: Layout(4, 0, 256, 64 + 8 * 32),
    Kind.Q5_K: Layout(6, 0, 256, 64 + 8 * 32),
    # d, float16; then for each 16 inputs the scale, a signed byte
    Kind.Q6_K: Layout(6, 32, 256, 32 + 16 * 16),
    Kind.TERNARY: Layout(2, 1, 256, 32),
    Kind.INT2_GROUP: Layout(2, 2, 0, 64),  # float32
    Kind.INT3_GROUP: Layout(3, 4, 0, 64),
    Kind.INT4_GROUP: Layout(4, 8, 0, 64),
    Kind.INT8_GROUP: Layout(8, 128, 0, 64),
    Kind.INT2_ZERO: Layout(2, 2, 0, 128),  # scales, then zero points, float32
    Kind.INT3_ZERO: Layout(3, 4, 0, 128),
    Kind.INT4_ZERO: Layout(4, 8, 0, 128),
    Kind.INT8_ZERO: Layout(8, 128, 0, 128),
    Kind.INT8_CHANNEL: Layout(8, 128, 0, 64),
    # the scale and the negative minimum, float16: value = code · scale - minimum
    Kind.Q4_1: Layout(4, 0, 32, 64),
    Kind.Q5_1: Layout(6, 0, 32, 64),
    # d and dmin, float16; then for each 16 inputs a byte: scale below, minimum in the upper half
    Kind.Q2_K: Layout(2, 0, 256, 64 + 16 * 16),
}
HEADER = 64  # bytes before the first tile: the table of CODEBOOK4


def padded_inputs(kind: Kind, in_features: int, group_size: int = 0) -> int:
    """in_features filled up to whole blocks (and to whole groups where the kind has its own)."""
    unit = WIDE if kind in FLOAT else BLOCK
    unit = max(unit, LAYOUTS[kind].group)
    return -(-in_features // unit) * unit


def group_inputs(kind: Kind, in_features: int, group_size: int) -> int:
    """Inputs that share a scale."""
    return LAYOUTS[kind].group or group_size or padded_inputs(kind, in_features)


def tile_bytes(kind: Kind, in_features: int, group_size: int) -> tuple[int, int]:
    """Bytes of a tile: (its codes, all)."""
    layout = LAYOUTS[kind]
    inputs = padded_inputs(kind, in_features)
    codes = inputs * ROWS * layout.bits // 8
    groups = -(-inputs // group_inputs(kind, in_features, group_size))
    # Whole cache lines, so that loads of 64 bytes never cross one.
    return codes, codes + -(-groups * layout.scales // 64) * 64


def packed_bytes(kind: Kind, out_features: int, in_features: int, group_size: int) -> int:
    """Bytes of a packed matrix."""
    tiles = -(-out_features // ROWS)
    return HEADER + tiles * tile_bytes(kind, in_features, group_size)[1]
