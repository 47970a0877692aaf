"""One tile of 16 rows times quantized inputs: the dot products are integers.

Each kind is the same few lines, with other numbers in them: take 32 inputs of 16 rows apart into
eight registers, multiply, and weigh the sums with the scales of weights and inputs. The functions
that are put into their callers (``inline``) get those numbers as constants, so that nothing is
decided in the loop. They are wrapped (``i64``), because Numba would else compile a version of each
function for each constant, long before LLVM has a chance to.

Products and sums of floats are rounded one by one, so all paths give the same bits.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.inputs import RECORD
from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.simd import (
    dot4,
    dot4_small,
    get_float,
    get_int,
    load_bytes,
    load_floats,
    load_halves,
    load_int8,
    load_uint8,
    prefetch,
    splat_bytes,
    splat_float,
    splat_int,
    to_floats,
)

f32, i64 = np.float32, np.int64
NO, YES = 0, 1
# Processors read ahead by themselves, but stop at each page of 4096 bytes, and a tile's scales lie
# apart from its codes. Asking 2048 bytes ahead hides that: from memory 6% more bytes a second.
AHEAD = 2048


@jit(inline=True)
def ask_ahead(bits, buffer, at):
    """Ask for the codes that come ``AHEAD`` bytes after those of a block."""
    for k in range(bits):
        prefetch(buffer, at + AHEAD + 64 * k)


# --- taking codes apart -----------------------------------------------------------------------


@jit(inline=True)
def take_apart(bits, buffer, at):
    """32 inputs of 16 rows: eight Bytes, four inputs in each."""
    a, b = load_bytes(buffer, at), load_bytes(buffer, at + 64)
    if bits == 2:
        return (
            a & 3, (a >> 2) & 3, (a >> 4) & 3, a >> 6,
            b & 3, (b >> 2) & 3, (b >> 4) & 3, b >> 6,
        )  # fmt: skip
    c = load_bytes(buffer, at + 128)
    if bits == 3:  # two bits as above, and a third register with the upper bit of all
        return (
            (a & 3) | ((c & 1) << 2),
            ((a >> 2) & 3) | ((c << 1) & 4),
            ((a >> 4) & 3) | (c & 4),
            (a >> 6) | ((c >> 1) & 4),
            (b & 3) | ((c >> 2) & 4),
            ((b >> 2) & 3) | ((c >> 3) & 4),
            ((b >> 4) & 3) | ((c >> 4) & 4),
            (b >> 6) | ((c >> 5) & 4),
        )
    d = load_bytes(buffer, at + 192)
    if bits == 4:
        return a & 15, a >> 4, b & 15, b >> 4, c & 15, c >> 4, d & 15, d >> 4
    e, f = load_bytes(buffer, at + 256), load_bytes(buffer, at + 320)
    if bits == 6:  # four bits as above, and two registers with the upper two bits
        return (
            (a & 15) | ((e << 4) & 48), (a >> 4) | ((e << 2) & 48),
            (b & 15) | (e & 48), (b >> 4) | ((e >> 2) & 48),
            (c & 15) | ((f << 4) & 48), (c >> 4) | ((f << 2) & 48),
            (d & 15) | (f & 48), (d >> 4) | ((f >> 2) & 48),
        )  # fmt: skip
    return a, b, c, d, e, f, load_bytes(buffer, at + 384), load_bytes(buffer, at + 448)


@jit(inline=True)
def dot16(bits, total, a, b, c, d, work, at):
    """total + the products of four registers with 16 input codes."""
    if bits == 8:
        total = dot4(total, a, splat_bytes(work, at))
        total = dot4(total, b, splat_bytes(work, at + 4))
        total = dot4(total, c, splat_bytes(work, at + 8))
        return dot4(total, d, splat_bytes(work, at + 12))
    total = dot4_small(total, a, splat_bytes(work, at))
    total = dot4_small(total, b, splat_bytes(work, at + 4))
    total = dot4_small(total, c, splat_bytes(work, at + 8))
    return dot4_small(total, d, splat_bytes(work, at + 12))


@jit(inline=True)
def dot32(bits, offset, w, work, at):
    """Σ (q - offset) x of a block, in each row: Ints.

    In two sums: each ``dot4`` waits for the one before it in its sum.
    """
    first = splat_int(-offset * get_int(work, at + 44))
    first = dot16(bits, first, w[0], w[1], w[2], w[3], work, at)
    last = dot16(bits, splat_int(0), w[4], w[5], w[6], w[7], work, at + 16)
    return first + last


# --- weighing the sums of a block -------------------------------------------------------------


@jit(inline=True)
def weigh(bits, offset, w, scale, zeros, zero, work, at):
    """scale · input scale · Σ (q - offset - zero) x: Floats."""
    total = to_floats(dot32(bits, offset, w, work, at))
    if zeros:
        total = total - zero * splat_float(f32(get_int(work, at + 44)))
    return total * (scale * splat_float(get_float(work, at + 32)))


@jit(inline=True)
def weigh_affine(bits, w, scale, minimum, work, at):
    """input scale · (scale · Σ q x - minimum · Σ x): Floats."""
    total = to_floats(dot32(bits, i64(0), w, work, at)) * scale
    total = total - minimum * splat_float(f32(get_int(work, at + 44)))
    return total * splat_float(get_float(work, at + 32))


@jit(inline=True)
def weigh_sixteens(bits, offset, w, low, high, work, at):
    """input scale · (low · Σ of the first 16 + high · Σ of the last 16): Floats."""
    first = splat_int(-offset * get_int(work, at + 36))
    first = dot16(bits, first, w[0], w[1], w[2], w[3], work, at)
    last = splat_int(-offset * get_int(work, at + 40))
    last = dot16(bits, last, w[4], w[5], w[6], w[7], work, at + 16)
    total = to_floats(first) * low + to_floats(last) * high
    return total * splat_float(get_float(work, at + 32))


@jit(inline=True)
def weigh_affine_sixteens(bits, w, low, high, low_minimum, high_minimum, work, at):
    """input scale · (as ``weigh_sixteens`` - minimum · Σ x of each 16): Floats."""
    first = dot16(bits, splat_int(0), w[0], w[1], w[2], w[3], work, at)
    last = dot16(bits, splat_int(0), w[4], w[5], w[6], w[7], work, at + 16)
    total = to_floats(first) * low + to_floats(last) * high
    total = total - low_minimum * splat_float(f32(get_int(work, at + 36)))
    total = total - high_minimum * splat_float(f32(get_int(work, at + 40)))
    return total * splat_float(get_float(work, at + 32))


# --- a tile times one token -------------------------------------------------------------------


@jit(inline=True)
def _groups(bits, offset, halves, zeros, buffer, codes, scales, blocks, per_group, work):
    """Kinds whose groups have a scale, and perhaps a zero point."""
    total = splat_float(f32(0))
    step = 32 if halves else 128 if zeros else 64
    for g in range((blocks + per_group - 1) // per_group):
        scale = load_halves(buffer, scales) if halves else load_floats(buffer, scales)
        zero = load_floats(buffer, scales + 64) if zeros else scale
        scales += step
        for b in range(g * per_group, min(blocks, (g + 1) * per_group)):
            ask_ahead(bits, buffer, codes + b * bits * 64)
            w = take_apart(bits, buffer, codes + b * bits * 64)
            total = total + weigh(bits, offset, w, scale, zeros, zero, work, b * RECORD)
    return total


@jit()
def tile_q4_0(buffer, codes, scales, blocks, work):
    return _groups(i64(4), i64(8), i64(YES), i64(NO), buffer, codes, scales, blocks, i64(1), work)


@jit()
def tile_q8_0(buffer, codes, scales, blocks, work):
    return _groups(i64(8), i64(128), i64(YES), i64(NO), buffer, codes, scales, blocks, i64(1), work)


@jit()
def tile_ternary(buffer, codes, scales, blocks, work):
    return _groups(i64(2), i64(1), i64(YES), i64(NO), buffer, codes, scales, blocks, i64(8), work)


@jit()
def tile_int2(zeros, buffer, codes, scales, blocks, per_group, work):
    return _groups(
        i64(2), i64(2), i64(NO), i64(zeros), buffer, codes, scales, blocks, per_group, work
    )


@jit()
def tile_int3(zeros, buffer, codes, scales, blocks, per_group, work):
    return _groups(
        i64(3), i64(4), i64(NO), i64(zeros), buffer, codes, scales, blocks, per_group, work
    )


@jit()
def tile_int4(zeros, buffer, codes, scales, blocks, per_group, work):
    return _groups(
        i64(4), i64(8), i64(NO), i64(zeros), buffer, codes, scales, blocks, per_group, work
    )


@jit()
def tile_int8(zeros, buffer, codes, scales, blocks, per_group, work):
    return _groups(
        i64(8), i64(128), i64(NO), i64(zeros), buffer, codes, scales, blocks, per_group, work
    )


@jit(inline=True)
def _affine(bits, buffer, codes, scales, blocks, work):
    """Q4_K and Q5_K: d · s and dmin · m of each 32 inputs."""
    total = splat_float(f32(0))
    for b in range(0, blocks, 8):
        d, dmin = load_halves(buffer, scales), load_halves(buffer, scales + 32)
        for j in range(8):
            at = scales + 64 + 32 * j
            scale = d * to_floats(load_uint8(buffer, at))
            minimum = dmin * to_floats(load_uint8(buffer, at + 16))
            ask_ahead(bits, buffer, codes + (b + j) * bits * 64)
            w = take_apart(bits, buffer, codes + (b + j) * bits * 64)
            total = total + weigh_affine(bits, w, scale, minimum, work, (b + j) * RECORD)
        scales += 320
    return total


@jit()
def tile_q4_k(buffer, codes, scales, blocks, work):
    return _affine(i64(4), buffer, codes, scales, blocks, work)


@jit()
def tile_q5_k(buffer, codes, scales, blocks, work):
    return _affine(i64(6), buffer, codes, scales, blocks, work)


@jit(inline=True)
def _affine_32(bits, buffer, codes, scales, blocks, work):
    """Q4_1 and Q5_1: a scale and a minimum of each 32 inputs."""
    total = splat_float(f32(0))
    for b in range(blocks):
        scale = load_halves(buffer, scales + 64 * b)
        minimum = load_halves(buffer, scales + 64 * b + 32)
        ask_ahead(bits, buffer, codes + b * bits * 64)
        w = take_apart(bits, buffer, codes + b * bits * 64)
        total = total + weigh_affine(bits, w, scale, minimum, work, b * RECORD)
    return total


@jit()
def tile_q4_1(buffer, codes, scales, blocks, work):
    return _affine_32(i64(4), buffer, codes, scales, blocks, work)


@jit()
def tile_q5_1(buffer, codes, scales, blocks, work):
    return _affine_32(i64(6), buffer, codes, scales, blocks, work)


@jit()
def tile_q2_k(buffer, codes, scales, blocks, work):
    total = splat_float(f32(0))
    for b in range(0, blocks, 8):
        d, dmin = load_halves(buffer, scales), load_halves(buffer, scales + 32)
        for j in range(8):
            at = scales + 64 + 32 * j
            low, high = load_uint8(buffer, at), load_uint8(buffer, at + 16)
            ask_ahead(i64(2), buffer, codes + (b + j) * 128)
            w = take_apart(i64(2), buffer, codes + (b + j) * 128)
            total = total + weigh_affine_sixteens(
                i64(2), w, d * to_floats(low & 15), d * to_floats(high & 15),
                dmin * to_floats(low >> 4), dmin * to_floats(high >> 4), work, (b + j) * RECORD,
            )  # fmt: skip
        scales += 320
    return total


@jit()
def tile_q6_k(buffer, codes, scales, blocks, work):
    total = splat_float(f32(0))
    for b in range(0, blocks, 8):
        d = load_halves(buffer, scales)
        for j in range(8):
            at = scales + 32 + 32 * j
            low = d * to_floats(load_int8(buffer, at))
            high = d * to_floats(load_int8(buffer, at + 16))
            ask_ahead(i64(6), buffer, codes + (b + j) * 384)
            w = take_apart(i64(6), buffer, codes + (b + j) * 384)
            total = total + weigh_sixteens(i64(6), i64(32), w, low, high, work, (b + j) * RECORD)
        scales += 288
    return total


@jit()
def tile_int8_channel(buffer, codes, scales, blocks, work):
    """W8A8: one scale a row and one for the inputs, so the sum stays an integer to the end.

    The sum is below 2^31 for in_features up to 132 104; on its way there it may wrap around.
    """
    first, last = splat_int(0), splat_int(0)
    sums = 0
    for b in range(blocks):
        ask_ahead(i64(8), buffer, codes + b * 512)
        w = take_apart(i64(8), buffer, codes + b * 512)
        sums += get_int(work, b * RECORD + 44)
        first = dot16(i64(8), first, w[0], w[1], w[2], w[3], work, b * RECORD)
        last = dot16(i64(8), last, w[4], w[5], w[6], w[7], work, b * RECORD + 16)
    total = first + last + splat_int(-128 * sums)
    return to_floats(total) * (load_floats(buffer, scales) * splat_float(get_float(work, 32)))
