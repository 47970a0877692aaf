"""What a token passes between the matrices: RMSNorm, RoPE, attention, SwiGLU; compiled.

All arrays are float32 unless said otherwise. Sums that a processor should add in lanes are written
in lanes: the compiler may not reorder them (``kernels/cpu/jit.py``), so the order stands here.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

import math

import numpy as np

from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.simd import fma, load_floats, load_int8, splat_float, to_floats
from qlab.kernels.cpu.simd import store as simd_store

f32, i32, u32 = np.float32, np.int32, np.uint32
LANES = 16  # numbers that one AVX-512 register holds; two AVX2 or four NEON registers do as well
TILE = 32  # tokens whose keys lie together, channel by channel

# e^r = Σ r^n / n! for |r| <= ln(2)/2; the term after the seventh is below 6e-9.
_T = tuple(1.0 / math.factorial(n) for n in range(8))
_LOG2_E = math.log2(math.e)
# ln 2 in two parts. The first has 9 bits, so that its product with a whole number is exact.
_LN2_HIGH = 355 / 512
_LN2_LOW = math.log(2.0) - _LN2_HIGH


@jit()
def exponential(x):
    """e^x of one float32, from arithmetic alone, so that a loop over it runs in lanes.

    x = n ln 2 + r with n whole and |r| <= ln(2)/2; e^r by its Taylor series, and 2^n by writing n
    into the bits of the exponent. Relative error below 3e-7. x is kept within -87 and 88, where
    float32 ends.
    """
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = np.floor(f32(f32(x * f32(_LOG2_E)) + f32(0.5)))
    r = f32(f32(x - f32(n * f32(_LN2_HIGH))) - f32(n * f32(_LN2_LOW)))
    p = f32(f32(f32(_T[7]) * r) + f32(_T[6]))
    p = f32(f32(p * r) + f32(_T[5]))
    p = f32(f32(p * r) + f32(_T[4]))
    p = f32(f32(p * r) + f32(_T[3]))
    p = f32(f32(p * r) + f32(_T[2]))
    p = f32(f32(p * r) + f32(1.0))
    p = f32(f32(p * r) + f32(1.0))
    return f32(p * u32(i32(i32(n) + i32(127)) << i32(23)).view(np.float32))


@jit()
def rms_norm(x, weight, eps, out):
    """out = x / sqrt(mean(x²) + eps) · weight, for one vector (n,).

    Source: Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    n = len(x)
    lanes = np.zeros(LANES, np.float32)
    whole = n - n % LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += x[i + j] * x[i + j]
    for j in range(n - whole):
        lanes[j] += x[whole + j] * x[whole + j]
    total = f32(0.0)
    for j in range(LANES):
        total += lanes[j]
    factor = f32(f32(1.0) / f32(math.sqrt(f32(total / f32(n)) + eps)))
    for i in range(n):
        out[i] = f32(x[i] * factor) * weight[i]


@jit()
def rotate(x, heads, turns):
    """RoPE in place, on ``heads`` vectors that lie behind each other in x (heads · d,).

    Channels j and j + d/2 are a point in the plane, turned by the angle of the position.

    Args:
        turns: (2, d/2), cosines and sines of the position.
    """
    half = turns.shape[1]
    cosine, sine = turns[0], turns[1]
    for h in range(heads):
        low = x[2 * h * half : (2 * h + 1) * half]
        high = x[(2 * h + 1) * half : (2 * h + 2) * half]
        for j in range(half):
            a, b = low[j], high[j]
            low[j] = f32(a * cosine[j]) - f32(b * sine[j])
            high[j] = f32(b * cosine[j]) + f32(a * sine[j])


@jit()
def swiglu(gate_up, out):
    """out = silu(gate) · up, silu(x) = x / (1 + e^-x); gate_up (2 n,), out (n,).

    Source: Shazeer 2020, arXiv 2002.05202, equation 6.
    """
    n = len(out)
    gate, up = gate_up[:n], gate_up[n:]
    for i in range(n):
        out[i] = f32(gate[i] / f32(f32(1.0) + exponential(f32(-gate[i])))) * up[i]


@jit()
def softmax(scores, n):
    """e^(s - max s) in place for the first n, and their sum.

    The division by the sum is left for later: there are fewer channels than tokens.
    """
    top = scores[0]
    for i in range(n):
        top = max(top, scores[i])
    for i in range(n):
        scores[i] = exponential(f32(scores[i] - top))
    lanes = np.zeros(LANES, np.float32)
    whole = n - n % LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += scores[i + j]
    for j in range(n - whole):
        lanes[j] += scores[whole + j]
    total = f32(0.0)
    for j in range(LANES):
        total += lanes[j]
    return total


@jit()
def store(x, keys, scales, values, value_scales, position, as_int8):
    """Put key and value of one token and one head into the cache.

    Keys of 32 tokens make a tile (d, 32), so that one channel of all of them is one load. Values
    stay token by token, with zeros behind them up to a multiple of 16 channels. int8: code =
    round(x / scale), scale = max |x| / 127 of the vector.

    Args:
        x: (2, d), key after RoPE, and value.
        keys, values: uint8, flat: the bytes of tiles (tiles, d, 32) and of (tokens, channels).
        scales, value_scales: (tokens,), of the codes.
        as_int8: whether numbers are kept as codes, of one byte, or as they are, of four.
    """
    d = x.shape[1]
    wide = (d + LANES - 1) // LANES * LANES
    at = position // TILE * TILE * d + position % TILE  # of its channel 0
    if not as_int8:
        key, value = keys.view(np.float32)[at:], values.view(np.float32)[position * wide :]
        for j in range(d):
            key[j * TILE] = x[0, j]
            value[j] = x[1, j]
        return
    key_codes, value_codes = keys.view(np.int8)[at:], values.view(np.int8)[position * wide :]
    for which in range(2):
        top = f32(0.0)
        for j in range(d):
            top = max(top, abs(x[which, j]))
        scale = f32(top / f32(127.0))
        factor = f32(0.0) if scale == f32(0.0) else f32(f32(127.0) / top)
        codes = key_codes if which == 0 else value_codes
        step = TILE if which == 0 else 1
        for j in range(d):
            codes[j * step] = np.int8(np.rint(f32(x[which, j] * factor)))
        if which == 0:
            scales[position] = scale
        else:
            value_scales[position] = scale


@jit(inline=True)
def _load(buffer, at, as_int8):
    """16 numbers of the cache, the ``at``-th and those after it."""
    if as_int8:
        return to_floats(load_int8(buffer, at))
    return load_floats(buffer, 4 * at)


@jit()
def scores_of(query, keys, count, as_int8, scores):
    """scores[s] = query · key_s / √d for the tokens of all tiles that hold the first ``count``.

    A register holds one channel of 16 tokens, so the sum over channels runs down the tile and no
    sum across a register is needed. Four sums at a time: an fma takes four cycles, and two start
    in each.
    """
    d = len(query)
    factor = f32(f32(1.0) / f32(math.sqrt(d)))
    out = scores.view(np.uint8)
    for t in range((count + TILE - 1) // TILE):
        base = t * TILE * d
        a, b = splat_float(f32(0.0)), splat_float(f32(0.0))
        c, e = splat_float(f32(0.0)), splat_float(f32(0.0))
        for j in range(0, d - 1, 2):
            q, at = splat_float(f32(query[j] * factor)), base + j * TILE
            a = fma(q, _load(keys, at, as_int8), a)
            b = fma(q, _load(keys, at + LANES, as_int8), b)
            q, at = splat_float(f32(query[j + 1] * factor)), at + TILE
            c = fma(q, _load(keys, at, as_int8), c)
            e = fma(q, _load(keys, at + LANES, as_int8), e)
        simd_store(out, 4 * t * TILE, a + c)
        simd_store(out, 4 * (t * TILE + LANES), b + e)


@jit()
def mix_values(scores, values, count, as_int8, out):
    """out = Σ_s scores[s] value_s over the first ``count``; out has whole registers of channels."""
    wide = len(out)
    to = out.view(np.uint8)
    at = 0
    while at < wide:
        if at + 4 * LANES <= wide:
            a, b = splat_float(f32(0.0)), splat_float(f32(0.0))
            c, e = splat_float(f32(0.0)), splat_float(f32(0.0))
            for s in range(count):
                p, here = splat_float(scores[s]), s * wide + at
                a = fma(p, _load(values, here, as_int8), a)
                b = fma(p, _load(values, here + LANES, as_int8), b)
                c = fma(p, _load(values, here + 2 * LANES, as_int8), c)
                e = fma(p, _load(values, here + 3 * LANES, as_int8), e)
            simd_store(to, 4 * at, a)
            simd_store(to, 4 * (at + LANES), b)
            simd_store(to, 4 * (at + 2 * LANES), c)
            simd_store(to, 4 * (at + 3 * LANES), e)
            at += 4 * LANES
        else:
            a = splat_float(f32(0.0))
            for s in range(count):
                a = fma(splat_float(scores[s]), _load(values, s * wide + at, as_int8), a)
            simd_store(to, 4 * at, a)
            at += LANES


@jit()
def attend(query, keys, values, count, scores, out):
    """out = Σ_s softmax(query · key_s / √d) value_s over the first ``count`` tokens; one head.

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1.

    Args:
        query: (d,), d even.
        keys, values: of the head, float32 as ``store`` left them.
        scores: room for ``count`` rounded up to 32.
        out: (d rounded up to 16,).
    """
    scores_of(query, keys, count, False, scores)
    total = softmax(scores, count)
    mix_values(scores, values, count, False, out)
    for j in range(len(out)):
        out[j] = out[j] / total


@jit()
def attend_int8(query, keys, scales, values, value_scales, count, scores, out):
    """The same over int8. A scale is applied once a token, not once a channel:

    query · (codes · scale) = (query · codes) · scale.
    """
    scores_of(query, keys, count, True, scores)
    for s in range(count):
        scores[s] *= scales[s]
    total = softmax(scores, count)
    for s in range(count):
        scores[s] *= value_scales[s]
    mix_values(scores, values, count, True, out)
    for j in range(len(out)):
        out[j] = out[j] / total
