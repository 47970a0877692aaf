"""One tile of 16 rows times many tokens: each load of weights serves all of them.

The block of weights stays in eight registers while all tokens pass by; their sums lie in memory,
64 bytes a token, in the nearest cache. Integer kinds do for each token the operations of
``integer_kernels`` in the same order, so their results are the same bits.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.float_kernels import eight
from qlab.kernels.cpu.inputs import RECORD
from qlab.kernels.cpu.integer_kernels import (
    NO,
    YES,
    dot32,
    take_apart,
    weigh,
    weigh_affine,
    weigh_affine_sixteens,
    weigh_sixteens,
)
from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.simd import (
    fma,
    get_float,
    load_floats,
    load_halves,
    load_int8,
    load_ints,
    load_uint8,
    splat_float,
    store,
    to_floats,
)

f32, i64 = np.float32, np.int64


@jit(inline=True)
def _add(sums, t, part):
    """sums[t] += part."""
    store(sums, t * 64, load_floats(sums, t * 64) + part)


@jit(inline=True)
def _groups(
    bits,
    offset,
    halves,
    zeros,
    buffer,
    codes,
    scales,
    blocks,
    per_group,
    work,
    tokens,
    first,
    sums,
):
    step = 32 if halves else 128 if zeros else 64
    count = sums.size // 64
    for g in range((blocks + per_group - 1) // per_group):
        scale = load_halves(buffer, scales) if halves else load_floats(buffer, scales)
        zero = load_floats(buffer, scales + 64) if zeros else scale
        scales += step
        for b in range(g * per_group, min(blocks, (g + 1) * per_group)):
            w = take_apart(bits, buffer, codes + b * bits * 64)
            at = (b * tokens + first) * RECORD
            for t in range(count):
                _add(sums, t, weigh(bits, offset, w, scale, zeros, zero, work, at + t * RECORD))


@jit()
def q4_0(buffer, codes, scales, blocks, work, tokens, first, sums):
    _groups(
        i64(4), i64(8), i64(YES), i64(NO),
        buffer, codes, scales, blocks, i64(1), work, tokens, first, sums,
    )  # fmt: skip


@jit()
def q8_0(buffer, codes, scales, blocks, work, tokens, first, sums):
    _groups(
        i64(8), i64(128), i64(YES), i64(NO),
        buffer, codes, scales, blocks, i64(1), work, tokens, first, sums,
    )  # fmt: skip


@jit()
def ternary(buffer, codes, scales, blocks, work, tokens, first, sums):
    _groups(
        i64(2), i64(1), i64(YES), i64(NO),
        buffer, codes, scales, blocks, i64(8), work, tokens, first, sums,
    )  # fmt: skip


@jit()
def int2(zeros, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    _groups(
        i64(2), i64(2), i64(NO), i64(zeros),
        buffer, codes, scales, blocks, per_group, work, tokens, first, sums,
    )  # fmt: skip


@jit()
def int3(zeros, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    _groups(
        i64(3), i64(4), i64(NO), i64(zeros),
        buffer, codes, scales, blocks, per_group, work, tokens, first, sums,
    )  # fmt: skip


@jit()
def int4(zeros, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    _groups(
        i64(4), i64(8), i64(NO), i64(zeros),
        buffer, codes, scales, blocks, per_group, work, tokens, first, sums,
    )  # fmt: skip


@jit()
def int8(zeros, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    _groups(
        i64(8), i64(128), i64(NO), i64(zeros),
        buffer, codes, scales, blocks, per_group, work, tokens, first, sums,
    )  # fmt: skip


@jit(inline=True)
def _affine(bits, buffer, codes, scales, blocks, work, tokens, first, sums):
    count = sums.size // 64
    for b in range(blocks):
        j = b % 8
        d, dmin = load_halves(buffer, scales), load_halves(buffer, scales + 32)
        scale = d * to_floats(load_uint8(buffer, scales + 64 + 32 * j))
        minimum = dmin * to_floats(load_uint8(buffer, scales + 80 + 32 * j))
        w = take_apart(bits, buffer, codes + b * bits * 64)
        at = (b * tokens + first) * RECORD
        for t in range(count):
            _add(sums, t, weigh_affine(bits, w, scale, minimum, work, at + t * RECORD))
        if j == 7:
            scales += 320


@jit()
def q4_k(buffer, codes, scales, blocks, work, tokens, first, sums):
    _affine(i64(4), buffer, codes, scales, blocks, work, tokens, first, sums)


@jit()
def q5_k(buffer, codes, scales, blocks, work, tokens, first, sums):
    _affine(i64(6), buffer, codes, scales, blocks, work, tokens, first, sums)


@jit(inline=True)
def _affine_32(bits, buffer, codes, scales, blocks, work, tokens, first, sums):
    count = sums.size // 64
    for b in range(blocks):
        scale = load_halves(buffer, scales + 64 * b)
        minimum = load_halves(buffer, scales + 64 * b + 32)
        w = take_apart(bits, buffer, codes + b * bits * 64)
        at = (b * tokens + first) * RECORD
        for t in range(count):
            _add(sums, t, weigh_affine(bits, w, scale, minimum, work, at + t * RECORD))


@jit()
def q4_1(buffer, codes, scales, blocks, work, tokens, first, sums):
    _affine_32(i64(4), buffer, codes, scales, blocks, work, tokens, first, sums)


@jit()
def q5_1(buffer, codes, scales, blocks, work, tokens, first, sums):
    _affine_32(i64(6), buffer, codes, scales, blocks, work, tokens, first, sums)


@jit()
def q2_k(buffer, codes, scales, blocks, work, tokens, first, sums):
    count = sums.size // 64
    for b in range(blocks):
        j = b % 8
        d, dmin = load_halves(buffer, scales), load_halves(buffer, scales + 32)
        here = scales + 64 + 32 * j
        below, above = load_uint8(buffer, here), load_uint8(buffer, here + 16)
        low, high = d * to_floats(below & 15), d * to_floats(above & 15)
        low_minimum, high_minimum = dmin * to_floats(below >> 4), dmin * to_floats(above >> 4)
        w = take_apart(i64(2), buffer, codes + b * 128)
        at = (b * tokens + first) * RECORD
        for t in range(count):
            part = weigh_affine_sixteens(
                i64(2), w, low, high, low_minimum, high_minimum, work, at + t * RECORD
            )
            _add(sums, t, part)
        if j == 7:
            scales += 320


@jit()
def q6_k(buffer, codes, scales, blocks, work, tokens, first, sums):
    count = sums.size // 64
    for b in range(blocks):
        j = b % 8
        d = load_halves(buffer, scales)
        low = d * to_floats(load_int8(buffer, scales + 32 + 32 * j))
        high = d * to_floats(load_int8(buffer, scales + 48 + 32 * j))
        w = take_apart(i64(6), buffer, codes + b * 384)
        at = (b * tokens + first) * RECORD
        for t in range(count):
            record = at + t * RECORD
            _add(sums, t, weigh_sixteens(i64(6), i64(32), w, low, high, work, record))
        if j == 7:
            scales += 288


@jit()
def int8_channel(buffer, codes, scales, blocks, work, tokens, first, sums):
    count = sums.size // 64
    for b in range(blocks):
        w = take_apart(i64(8), buffer, codes + b * 512)
        at = (b * tokens + first) * RECORD
        for t in range(count):
            part = dot32(i64(8), i64(128), w, work, at + t * RECORD)
            store(sums, t * 64, load_ints(sums, t * 64) + part)
    scale = load_floats(buffer, scales)
    for t in range(count):
        of_input = splat_float(get_float(work, (first + t) * RECORD + 32))
        store(sums, t * 64, to_floats(load_ints(sums, t * 64)) * (scale * of_input))


@jit(inline=True)
def _floats(
    kind, size, scaled, buffer, codes, scales, blocks, per_group, work, tokens, first, sums
):
    table = load_floats(buffer, 0)
    count = sums.size // 64
    for block in range(blocks):
        w = eight(kind, buffer, codes + block * size, table)
        scale = load_floats(buffer, scales + block // per_group * 64) if scaled else table
        for t in range(count):
            at = (block * tokens + first + t) * 32
            a = w[0] * splat_float(get_float(work, at))
            b = w[1] * splat_float(get_float(work, at + 4))
            a = fma(w[2], splat_float(get_float(work, at + 8)), a)
            b = fma(w[3], splat_float(get_float(work, at + 12)), b)
            a = fma(w[4], splat_float(get_float(work, at + 16)), a)
            b = fma(w[5], splat_float(get_float(work, at + 20)), b)
            a = fma(w[6], splat_float(get_float(work, at + 24)), a)
            b = fma(w[7], splat_float(get_float(work, at + 28)), b)
            total = load_floats(sums, t * 64)
            total = fma(a + b, scale, total) if scaled else total + (a + b)
            store(sums, t * 64, total)


@jit()
def f32_(buffer, codes, blocks, work, tokens, first, sums):
    _floats(
        i64(0),
        i64(512),
        i64(NO),
        buffer,
        codes,
        i64(0),
        blocks,
        i64(1),
        work,
        tokens,
        first,
        sums,
    )


@jit()
def f16(buffer, codes, blocks, work, tokens, first, sums):
    _floats(
        i64(1),
        i64(256),
        i64(NO),
        buffer,
        codes,
        i64(0),
        blocks,
        i64(1),
        work,
        tokens,
        first,
        sums,
    )


@jit()
def bf16(buffer, codes, blocks, work, tokens, first, sums):
    _floats(
        i64(2),
        i64(256),
        i64(NO),
        buffer,
        codes,
        i64(0),
        blocks,
        i64(1),
        work,
        tokens,
        first,
        sums,
    )


@jit()
def codebook4(buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    _floats(
        i64(3), i64(64), i64(YES),
        buffer, codes, scales, blocks, per_group, work, tokens, first, sums,
    )  # fmt: skip


@jit()
def int8_weight(buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    _floats(
        i64(4), i64(128), i64(YES),
        buffer, codes, scales, blocks, per_group, work, tokens, first, sums,
    )  # fmt: skip
