"""One tile of 16 rows times float32 inputs.

Eight inputs at a time, in four sums of their own, so that an addition need not wait for the one
before it. The bytes of eight inputs of 16 rows:

    F32          8 x 16 float32, a register for each input
    F16          8 x 16 float16
    BF16         4 registers; a 32-bit lane holds inputs 2j (lower half) and 2j + 1 of its row
    CODEBOOK4    1 register; a 32-bit lane holds the eight 4-bit places of its row, first lowest
    INT8_WEIGHT  8 x 16 int8

Products and sums are rounded once where the processor can (``fma``), so the last bits of the path
``portable`` differ from those of the others.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.simd import (
    bits_to_floats,
    fma,
    get_float,
    load_floats,
    load_halves,
    load_int8,
    load_ints,
    lookup,
    splat_float,
    to_floats,
)

f32, i64 = np.float32, np.int64
_F32, _F16, _BF16, _CODEBOOK4, _INT8 = 0, 1, 2, 3, 4  # of Kind


@jit(inline=True)
def eight(kind, buffer, at, table):
    """The weights of eight inputs: eight Floats."""
    if kind == _F32:
        return (
            load_floats(buffer, at), load_floats(buffer, at + 64),
            load_floats(buffer, at + 128), load_floats(buffer, at + 192),
            load_floats(buffer, at + 256), load_floats(buffer, at + 320),
            load_floats(buffer, at + 384), load_floats(buffer, at + 448),
        )  # fmt: skip
    if kind == _F16:
        return (
            load_halves(buffer, at), load_halves(buffer, at + 32),
            load_halves(buffer, at + 64), load_halves(buffer, at + 96),
            load_halves(buffer, at + 128), load_halves(buffer, at + 160),
            load_halves(buffer, at + 192), load_halves(buffer, at + 224),
        )  # fmt: skip
    if kind == _BF16:
        a, b = load_ints(buffer, at), load_ints(buffer, at + 64)
        c, d = load_ints(buffer, at + 128), load_ints(buffer, at + 192)
        upper = 0xFFFF0000
        return (
            bits_to_floats(a << 16), bits_to_floats(a & upper),
            bits_to_floats(b << 16), bits_to_floats(b & upper),
            bits_to_floats(c << 16), bits_to_floats(c & upper),
            bits_to_floats(d << 16), bits_to_floats(d & upper),
        )  # fmt: skip
    if kind == _CODEBOOK4:
        places = load_ints(buffer, at)
        return (
            lookup(table, places), lookup(table, places >> 4),
            lookup(table, places >> 8), lookup(table, places >> 12),
            lookup(table, places >> 16), lookup(table, places >> 20),
            lookup(table, places >> 24), lookup(table, places >> 28),
        )  # fmt: skip
    return (
        to_floats(load_int8(buffer, at)), to_floats(load_int8(buffer, at + 16)),
        to_floats(load_int8(buffer, at + 32)), to_floats(load_int8(buffer, at + 48)),
        to_floats(load_int8(buffer, at + 64)), to_floats(load_int8(buffer, at + 80)),
        to_floats(load_int8(buffer, at + 96)), to_floats(load_int8(buffer, at + 112)),
    )  # fmt: skip


@jit(inline=True)
def _stretch(kind, size, buffer, codes, first, last, table, work):
    """The sum over blocks first ... last - 1 of eight inputs."""
    a = splat_float(f32(0))
    b, c, d = a, a, a
    for block in range(first, last):
        w = eight(kind, buffer, codes + block * size, table)
        at = block * 32
        a = fma(w[0], splat_float(get_float(work, at)), a)
        b = fma(w[1], splat_float(get_float(work, at + 4)), b)
        c = fma(w[2], splat_float(get_float(work, at + 8)), c)
        d = fma(w[3], splat_float(get_float(work, at + 12)), d)
        a = fma(w[4], splat_float(get_float(work, at + 16)), a)
        b = fma(w[5], splat_float(get_float(work, at + 20)), b)
        c = fma(w[6], splat_float(get_float(work, at + 24)), c)
        d = fma(w[7], splat_float(get_float(work, at + 28)), d)
    return (a + b) + (c + d)


@jit()
def tile_f32(buffer, codes, blocks, work):
    return _stretch(i64(_F32), i64(512), buffer, codes, i64(0), blocks, splat_float(f32(0)), work)


@jit()
def tile_f16(buffer, codes, blocks, work):
    return _stretch(i64(_F16), i64(256), buffer, codes, i64(0), blocks, splat_float(f32(0)), work)


@jit()
def tile_bf16(buffer, codes, blocks, work):
    return _stretch(i64(_BF16), i64(256), buffer, codes, i64(0), blocks, splat_float(f32(0)), work)


@jit(inline=True)
def _groups(kind, size, buffer, codes, scales, blocks, per_group, work):
    table = load_floats(buffer, 0)
    total = splat_float(f32(0))
    for g in range((blocks + per_group - 1) // per_group):
        first, last = g * per_group, min(blocks, (g + 1) * per_group)
        part = _stretch(kind, size, buffer, codes, first, last, table, work)
        total = fma(part, load_floats(buffer, scales + 64 * g), total)
    return total


@jit()
def tile_codebook4(buffer, codes, scales, blocks, per_group, work):
    return _groups(i64(_CODEBOOK4), i64(64), buffer, codes, scales, blocks, per_group, work)


@jit()
def tile_int8_weight(buffer, codes, scales, blocks, per_group, work):
    return _groups(i64(_INT8), i64(128), buffer, codes, scales, blocks, per_group, work)
