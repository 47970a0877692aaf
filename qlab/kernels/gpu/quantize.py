"""Quantize on the GPU: weights to 4-bit lanes, packed at once; inputs to rows of 8 bits.

The arithmetic is that of ``qlab.quantize``, operation by operation, so the codes and the scales are
the same bits: the scale divides (``div_rn``: rounded to nearest, not the fast approximation), and
rounding is half to even.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from qlab.kernels.gpu.runtime import load_triton

triton, tl = load_triton()

TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal float32


@triton.jit
def round_even(y):
    """To the nearest integer, half to even, for |y| < 2^22.

    1.5 * 2^23 has no bits left for fractions: adding it makes the processor round.
    """
    return (y + 12582912.0) - 12582912.0


@triton.jit
def positive(scale, amax):
    """A scale fit to divide by: 1 for a block of zeros, and never subnormal."""
    return tl.where(amax == 0, 1.0, tl.maximum(scale, TINY))


@triton.jit
def int4_kernel(
    w, words, scales, zeros, N, K, CHUNKS, GROUPS,
    GROUP: tl.constexpr, ASYM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """w (N, K) -> lanes int32 (N, CHUNKS, 16), scales (N, GROUPS), zeros uint8 (N, GROUPS) if ASYM.

    A program takes BLOCK_N rows of one chunk of 128 inputs: GROUP is 32, 64 or 128. Codes and zero
    points are stored from 0 to 15.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = tl.program_id(1)
    group = tl.arange(0, 128 // GROUP)
    k = chunk * 128 + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (rows[:, None, None] < N) & (k[None, :, :] < K)
    x = tl.load(w + rows[:, None, None] * K + k[None, :, :], mask=inside, other=0).to(tl.float32)
    if ASYM:
        low = tl.minimum(tl.min(x, axis=2), 0.0)
        high = tl.maximum(tl.max(x, axis=2), 0.0)
        span = high - low
        steps = tl.full(span.shape, 15.0, dtype=tl.float32)
        whole = tl.div_rn(span, steps)
        halved = tl.div_rn(high, steps) - tl.div_rn(low, steps)  # where the span overflows
        scale = tl.where(span < float("inf"), whole, halved)
        scale = positive(scale, tl.maximum(high, -low))
        zero = -round_even(tl.maximum(tl.div_rn(low, scale), -15.0))
    else:
        amax = tl.max(tl.abs(x), axis=2)
        scale = positive(tl.div_rn(amax, tl.full(amax.shape, 7.0, dtype=tl.float32)), amax)
        zero = tl.full(scale.shape, 8.0, dtype=tl.float32)
    stored = scale
    if scales.dtype.element_ty == tl.float16:
        stored = tl.minimum(tl.maximum(scale, 5.9604644775390625e-08), 65504.0)  # 2^-24, largest
    stored = stored.to(scales.dtype.element_ty)
    lowest = 0.0 if ASYM else 1.0  # symmetric codes are -7 to 7, stored 1 to 15
    y = tl.div_rn(x, tl.broadcast_to(stored.to(tl.float32)[:, :, None], x.shape))
    y = round_even(tl.minimum(tl.maximum(y, -1000.0), 1000.0)) + zero[:, :, None]
    code = tl.minimum(tl.maximum(y, lowest), 15.0).to(tl.int32)
    code = tl.where(inside, code, 0)
    # 128 inputs are eight planes of sixteen. No two planes share a bit, so a sum joins them.
    planes = tl.reshape(code, (BLOCK_N, 8, 16)) << (4 * tl.arange(0, 8))[None, :, None]
    word = tl.sum(planes, axis=1)
    place = (rows[:, None] * CHUNKS + chunk) * 16 + tl.arange(0, 16)[None, :]
    tl.store(words + place, word, mask=rows[:, None] < N)
    at = chunk * (128 // GROUP) + group[None, :]
    there = (rows[:, None] < N) & (at < GROUPS)
    tl.store(scales + rows[:, None] * GROUPS + at, stored, mask=there)
    if ASYM:
        tl.store(zeros + rows[:, None] * GROUPS + at, zero.to(tl.uint8), mask=there)


@triton.jit
def encode_e4m3(y):
    """float32 -> fp8_e4m3 patterns (int32), to nearest even, saturating at 448."""
    bits = y.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.minimum(tl.abs(y), 448.0)
    # Normal: cut 20 of the 23 bits of mantissa; adding half a step (less one, if even) rounds.
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the steps are 2^-9 wide.
    small = round_even(size * 512.0).to(tl.int32)
    return sign | tl.where(size < 0.015625, small, normal)


@triton.jit
def rows_kernel(x, codes, scales, K, FP8: tl.constexpr, BLOCK_K: tl.constexpr):
    """x (M, K) -> codes int8, or e4m3 patterns uint8, (M, K); scales float32 (M,). A program a row.

    The row is read twice: for its largest magnitude, then for the codes.
    """
    row = tl.program_id(0)
    amax = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        xs = tl.load(x + row * K + k, mask=k < K, other=0).to(tl.float32)
        amax = tl.maximum(amax, tl.abs(xs))
    largest = tl.max(tl.reshape(amax, (1, BLOCK_K)), axis=1)  # (1,)
    top = 448.0 if FP8 else 127.0
    scale = tl.div_rn(largest, tl.full((1,), top, dtype=tl.float32))
    scale = positive(scale, largest)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        xs = tl.load(x + row * K + k, mask=k < K, other=0).to(tl.float32)
        if FP8:
            inverse = tl.div_rn(tl.full((1,), 1.0, dtype=tl.float32), scale)
            code = encode_e4m3(xs * inverse).to(tl.uint8)
        else:
            y = tl.div_rn(xs, tl.broadcast_to(scale, (BLOCK_K,)))
            code = round_even(tl.minimum(tl.maximum(y, -127.0), 127.0)).to(tl.int8)
        tl.store(codes + row * K + k, code, mask=k < K)
    tl.store(scales + row + tl.arange(0, 1), scale)
