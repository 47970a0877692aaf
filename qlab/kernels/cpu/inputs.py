"""What the inputs become before they meet the weights.

Integer kinds: 32 inputs share a scale, and a block of them is a record of 48 bytes:

    byte 0 .. 31    32 .. 35     36 .. 39              40 .. 43           44 .. 47
    int8 codes      scale        sum of the first 16   of the last 16     of all, int32

The sums pay for offsets and zero points: Σ (q - z) x = Σ q x - z Σ x. Record (b, t) of block b and
token t lies at (b · tokens + t) · 48, so that a kernel which has block b of the weights at hand
walks over all tokens in a row. Float kinds: the same order, with records of 8 float32.

A block with NaN or infinity gets the scale NaN, so that the result says so.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

import numpy as np

from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.kinds import BLOCK, FLOAT, WIDE, Kind
from qlab.kernels.cpu.simd import (
    add_up,
    bits_to_float,
    get_float,
    largest,
    load_floats,
    magnitudes,
    nearest,
    put_bytes,
    put_float,
    put_int,
    splat_float,
)

RECORD = 48
_FIRST_INTEGER = int(max(FLOAT)) + 1
_PER_TOKEN = int(Kind.INT8_CHANNEL)
_Q4_K, _Q5_K, _Q6_K, _TERNARY = (int(k) for k in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.TERNARY))
_Q2_K = int(Kind.Q2_K)
f32, i64 = np.float32, np.int64
# Below this magnitude a block counts as zeros: 127 / amax would not be a float32.
_TINY = f32(1e-35)
_INFINITY = 0x7F800000


def work_bytes(in_features: int, tokens: int = 1) -> int:
    """Bytes that the inputs of any kind fit in."""
    return -(-in_features // 256) * 256 * 4 * tokens


@jit()
def _scale_of(bits):
    """(amax / 127, 127 / amax) of the bits of amax; (NaN, 0) where an input is not finite."""
    if bits >= _INFINITY:
        return f32(np.nan), f32(0)
    amax = bits_to_float(bits)
    if amax < _TINY:
        return f32(0), f32(0)
    return f32(amax / f32(127)), f32(f32(127) / amax)


@jit()
def _quantize_block(a, b, scale, inverse, work, at):
    """32 inputs, as two Floats, to a record."""
    if inverse == f32(0):  # not finite, or zeros
        a = splat_float(f32(0))
        b = a
    low, high = nearest(a * splat_float(inverse)), nearest(b * splat_float(inverse))
    put_bytes(work, at, low)
    put_bytes(work, at + 16, high)
    first, last = add_up(low), add_up(high)
    put_float(work, at + 32, scale)
    put_int(work, at + 36, first)
    put_int(work, at + 40, last)
    put_int(work, at + 44, first + last)


@jit()
def _last_block(x, start, stop, rest):
    """Copy the inputs of a block that is not full to 32 float32, filled up with zeros."""
    for i in range(BLOCK):
        put_float(rest, 4 * i, f32(0))
    for i in range(stop - start):
        put_float(rest, 4 * i, get_float(x, 4 * (start + i)))


@jit()
def quantize_token(kind, x, work, token, tokens):
    """Write the records of one token.

    Args:
        kind: of the weights.
        x: float32 (in_features,), contiguous.
        work: uint8, at least ``work_bytes(in_features, tokens)``; written.
        token, tokens: which of how many.
    """
    count = x.size
    if kind < _FIRST_INTEGER:
        for b in range((count + WIDE - 1) // WIDE):
            at = (b * tokens + token) * 4 * WIDE
            for i in range(WIDE):
                k = b * WIDE + i
                put_float(work, at + 4 * i, get_float(x, 4 * k) if k < count else f32(0))
        return
    unit = BLOCK
    supers = kind == _Q4_K or kind == _Q5_K or kind == _Q6_K or kind == _TERNARY
    if supers or kind == _Q2_K:
        unit = 256
    blocks = (count + unit - 1) // unit * unit // BLOCK
    whole = count // BLOCK
    rest = np.empty(BLOCK, np.float32)
    _last_block(x, whole * BLOCK, count, rest)
    scale, inverse = f32(0), f32(0)
    if kind == _PER_TOKEN:
        top = max(largest(magnitudes(load_floats(rest, 0))),
                  largest(magnitudes(load_floats(rest, 64))))  # fmt: skip
        for b in range(whole):
            at = 4 * b * BLOCK
            top = max(top, largest(magnitudes(load_floats(x, at))))
            top = max(top, largest(magnitudes(load_floats(x, at + 64))))
        scale, inverse = _scale_of(top)
    for b in range(blocks):
        if b < whole:
            at = 4 * b * BLOCK
            low, high = load_floats(x, at), load_floats(x, at + 64)
        else:
            if b > whole:  # blocks that only fill up
                _last_block(x, count, count, rest)
            low, high = load_floats(rest, 0), load_floats(rest, 64)
        if kind != _PER_TOKEN:
            top = max(largest(magnitudes(low)), largest(magnitudes(high)))
            scale, inverse = _scale_of(top)
        _quantize_block(low, high, scale, inverse, work, (b * tokens + token) * RECORD)


@jit()
def quantize_input(kind, x, work):
    """The inputs of one token, float32 (in_features,), to ``work``."""
    quantize_token(kind, x, work, i64(0), i64(1))


@jit()
def quantize_inputs(kind, x, work):
    """The inputs of all tokens, float32 (tokens, in_features), to ``work``."""
    tokens = x.shape[0]
    for t in range(tokens):
        quantize_token(kind, x[t], work, t, tokens)
