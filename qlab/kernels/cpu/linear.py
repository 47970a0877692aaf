"""y = W x and Y = X Wᵀ for packed weights of any kind.

For Python: ``matvec`` and ``matmul``, or, with arrays that are used again, ``quantize_input`` and
``gemv``, ``quantize_inputs`` and ``gemm``. A kind is compiled when it is first used, alone.
Compiled code that multiplies calls the functions of a tile (``integer_kernels``, ``float_kernels``,
``tokens``).

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import prange

from qlab.errors import QlabError
from qlab.kernels.cpu import float_kernels as floats
from qlab.kernels.cpu import integer_kernels as integers
from qlab.kernels.cpu import tokens as many
from qlab.kernels.cpu.inputs import quantize_input as quantize_input
from qlab.kernels.cpu.inputs import quantize_inputs as quantize_inputs
from qlab.kernels.cpu.inputs import work_bytes as work_bytes
from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.kinds import HEADER, LAYOUTS, Kind
from qlab.kernels.cpu.pack import PackedWeight
from qlab.kernels.cpu.simd import (
    get_float,
    load_floats,
    put_float,
    splat_int,
    store,
)

i64 = np.int64
ROWS = 16
# Weights below which one thread is quicker than waking the others.
SMALL = 1 << 18
PARTS = 64  # into which the tiles are cut; each thread takes its share in one go
TOKENS = 256  # at a time, so that their sums stay in the nearest cache
F32, F16, BF16, CODEBOOK4, INT8_WEIGHT = (int(k) for k in list(Kind)[:5])
Q4_0, Q8_0, Q4_K, Q5_K, Q6_K, TERNARY = (int(k) for k in list(Kind)[5:11])
INT2_GROUP, INT3_GROUP, INT4_GROUP, INT8_GROUP = (int(k) for k in list(Kind)[11:15])
INT2_ZERO, INT3_ZERO, INT4_ZERO, INT8_ZERO = (int(k) for k in list(Kind)[15:19])
INT8_CHANNEL = int(Kind.INT8_CHANNEL)
Q4_1, Q5_1, Q2_K = (int(k) for k in (Kind.Q4_1, Kind.Q5_1, Kind.Q2_K))
FIRST_INTEGER = Q4_0
# What compiled code must know of the layouts, by kind.
BITS = tuple(LAYOUTS[k].bits for k in Kind)
GROUP = tuple(LAYOUTS[k].group for k in Kind)
SCALES = tuple(LAYOUTS[k].scales for k in Kind)


@jit()
def measures(kind, in_features, group_size):
    """(blocks in a row, blocks a group, bytes of a tile's codes, bytes of a tile)."""
    block = 8 if kind < FIRST_INTEGER else 32
    unit = max(block, GROUP[kind])
    inputs = (in_features + unit - 1) // unit * unit
    group = GROUP[kind]
    if group == 0:
        group = group_size if group_size > 0 else inputs
    codes = inputs * ROWS * BITS[kind] // 8
    scales = (inputs + group - 1) // group * SCALES[kind]
    return inputs // block, group // block, codes, codes + (scales + 63) // 64 * 64


# Below ``kind`` is a constant, so Numba drops all branches but one before it compiles anything. The
# tiles are counted in each of the two functions, since a compiled function that another one closes
# over cannot be kept on disk.


@cache
def _for_one_token(kind: int) -> Any:
    @jit(parallel=True)
    def multiply(buffer, out_features, in_features, group_size, work, out, parts):
        tiles = (out_features + ROWS - 1) // ROWS
        blocks, each, codes, size = measures(i64(kind), in_features, group_size)
        for part in prange(parts):
            rest = np.empty(ROWS, np.float32)
            for tile in range(part * tiles // parts, (part + 1) * tiles // parts):
                c = HEADER + tile * size
                s = c + codes
                if kind == Q4_0:
                    y = integers.tile_q4_0(buffer, c, s, blocks, work)
                elif kind == Q8_0:
                    y = integers.tile_q8_0(buffer, c, s, blocks, work)
                elif kind == Q4_K:
                    y = integers.tile_q4_k(buffer, c, s, blocks, work)
                elif kind == Q5_K:
                    y = integers.tile_q5_k(buffer, c, s, blocks, work)
                elif kind == Q6_K:
                    y = integers.tile_q6_k(buffer, c, s, blocks, work)
                elif kind == Q4_1:
                    y = integers.tile_q4_1(buffer, c, s, blocks, work)
                elif kind == Q5_1:
                    y = integers.tile_q5_1(buffer, c, s, blocks, work)
                elif kind == Q2_K:
                    y = integers.tile_q2_k(buffer, c, s, blocks, work)
                elif kind == TERNARY:
                    y = integers.tile_ternary(buffer, c, s, blocks, work)
                elif kind == INT8_CHANNEL:
                    y = integers.tile_int8_channel(buffer, c, s, blocks, work)
                elif kind == INT2_GROUP:
                    y = integers.tile_int2(i64(0), buffer, c, s, blocks, each, work)
                elif kind == INT2_ZERO:
                    y = integers.tile_int2(i64(1), buffer, c, s, blocks, each, work)
                elif kind == INT3_GROUP:
                    y = integers.tile_int3(i64(0), buffer, c, s, blocks, each, work)
                elif kind == INT3_ZERO:
                    y = integers.tile_int3(i64(1), buffer, c, s, blocks, each, work)
                elif kind == INT4_GROUP:
                    y = integers.tile_int4(i64(0), buffer, c, s, blocks, each, work)
                elif kind == INT4_ZERO:
                    y = integers.tile_int4(i64(1), buffer, c, s, blocks, each, work)
                elif kind == INT8_GROUP:
                    y = integers.tile_int8(i64(0), buffer, c, s, blocks, each, work)
                elif kind == INT8_ZERO:
                    y = integers.tile_int8(i64(1), buffer, c, s, blocks, each, work)
                elif kind == F32:
                    y = floats.tile_f32(buffer, c, blocks, work)
                elif kind == F16:
                    y = floats.tile_f16(buffer, c, blocks, work)
                elif kind == BF16:
                    y = floats.tile_bf16(buffer, c, blocks, work)
                elif kind == CODEBOOK4:
                    y = floats.tile_codebook4(buffer, c, s, blocks, each, work)
                else:
                    y = floats.tile_int8_weight(buffer, c, s, blocks, each, work)
                if (tile + 1) * ROWS <= out_features:
                    store(out, tile * 64, y)
                else:
                    store(rest, 0, y)
                    for r in range(out_features - tile * ROWS):
                        put_float(out, tile * 64 + 4 * r, get_float(rest, 4 * r))

    return multiply


@cache
def _for_many_tokens(kind: int) -> Any:
    @jit(parallel=True)
    def multiply(buffer, out_features, in_features, group_size, tokens, work, out, parts):
        tiles = (out_features + ROWS - 1) // ROWS
        blocks, each, codes, size = measures(i64(kind), in_features, group_size)
        for part in prange(parts):
            room = np.empty(64 * min(tokens, TOKENS) + 63, np.uint8)
            room = room[-room.ctypes.data % 64 :]  # whole cache lines are quick to store
            for start in range(0, tokens, TOKENS):
                count = min(tokens - start, TOKENS)
                sums = room[: 64 * count]
                for tile in range(part * tiles // parts, (part + 1) * tiles // parts):
                    c = HEADER + tile * size
                    s = c + codes
                    for t in range(count):
                        store(sums, 64 * t, splat_int(0))
                    if kind == Q4_0:
                        many.q4_0(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == Q8_0:
                        many.q8_0(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == Q4_K:
                        many.q4_k(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == Q5_K:
                        many.q5_k(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == Q6_K:
                        many.q6_k(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == Q4_1:
                        many.q4_1(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == Q5_1:
                        many.q5_1(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == Q2_K:
                        many.q2_k(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == TERNARY:
                        many.ternary(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == INT8_CHANNEL:
                        many.int8_channel(buffer, c, s, blocks, work, tokens, start, sums)
                    elif kind == INT2_GROUP:
                        many.int2(i64(0), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == INT2_ZERO:
                        many.int2(i64(1), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == INT3_GROUP:
                        many.int3(i64(0), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == INT3_ZERO:
                        many.int3(i64(1), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == INT4_GROUP:
                        many.int4(i64(0), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == INT4_ZERO:
                        many.int4(i64(1), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == INT8_GROUP:
                        many.int8(i64(0), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == INT8_ZERO:
                        many.int8(i64(1), buffer, c, s, blocks, each, work, tokens, start, sums)
                    elif kind == F32:
                        many.f32_(buffer, c, blocks, work, tokens, start, sums)
                    elif kind == F16:
                        many.f16(buffer, c, blocks, work, tokens, start, sums)
                    elif kind == BF16:
                        many.bf16(buffer, c, blocks, work, tokens, start, sums)
                    elif kind == CODEBOOK4:
                        many.codebook4(buffer, c, s, blocks, each, work, tokens, start, sums)
                    else:
                        many.int8_weight(buffer, c, s, blocks, each, work, tokens, start, sums)
                    rows = min(ROWS, out_features - tile * ROWS)
                    for t in range(count):
                        there = 4 * ((start + t) * out_features + tile * ROWS)
                        if rows == ROWS:
                            store(out, there, load_floats(sums, 64 * t))
                        else:
                            for r in range(rows):
                                put_float(out, there + 4 * r, get_float(sums, 64 * t + 4 * r))

    return multiply


def _parts(out_features: int, weights: int) -> int:
    return 1 if weights < SMALL else min(-(-out_features // ROWS), PARTS)


def gemv(
    kind: int,
    buffer: np.ndarray,
    out_features: int,
    in_features: int,
    group_size: int,
    work: np.ndarray,
    out: np.ndarray,
) -> None:
    """out = W x of one token.

    Args:
        kind, buffer, out_features, in_features, group_size: of the packed weight
            (``PackedWeight.arguments``).
        work: what ``quantize_input(kind, x, work)`` wrote.
        out: float32 (out_features,), contiguous; written.

    The result does not depend on the number of threads.

    Chapter: A CPU kernel in Numba.
    """
    parts = _parts(out_features, out_features * in_features)
    _for_one_token(kind)(buffer, out_features, in_features, group_size, work, out, parts)


def gemm(
    kind: int,
    buffer: np.ndarray,
    out_features: int,
    in_features: int,
    group_size: int,
    tokens: int,
    work: np.ndarray,
    out: np.ndarray,
) -> None:
    """out = X Wᵀ of many tokens.

    Args:
        kind, buffer, out_features, in_features, group_size: as in ``gemv``.
        tokens: how many, at least 1.
        work: what ``quantize_inputs(kind, x, work)`` wrote.
        out: float32 (tokens, out_features), contiguous; written.

    Integer kinds give the bits that ``gemv`` gives for each token. The result does not depend on
    the number of threads.

    Chapter: A CPU kernel in Numba.
    """
    parts = _parts(out_features, out_features * in_features * tokens)
    multiply = _for_many_tokens(kind)
    multiply(buffer, out_features, in_features, group_size, tokens, work, out, parts)


def matvec(packed: PackedWeight, x: Any) -> np.ndarray:
    """y = W x.

    Args:
        packed: from ``pack``.
        x: (in_features,), NumPy or torch, any floating dtype.

    Returns: float32 (out_features,). Raises: QlabError for another shape.

    Chapter: A CPU kernel in Numba.
    """
    x = as_float32(x)
    if x.shape != (packed.in_features,):
        raise QlabError(
            f"matvec needs a vector of {packed.in_features} inputs, got shape {x.shape}"
        )
    work = np.empty(work_bytes(x.size), np.uint8)
    out = np.empty(packed.out_features, np.float32)
    quantize_input(int(packed.kind), x, work)
    gemv(*packed.arguments, work, out)
    return out


def matmul(packed: PackedWeight, x: Any) -> np.ndarray:
    """Y = X Wᵀ.

    Args:
        packed: from ``pack``.
        x: (tokens, in_features), NumPy or torch, any floating dtype.

    Returns: float32 (tokens, out_features). Raises: QlabError for another shape.

    Chapter: A CPU kernel in Numba.
    """
    x = as_float32(x)
    if x.ndim != 2 or x.shape[1] != packed.in_features:
        raise QlabError(f"matmul needs (tokens, {packed.in_features}) inputs, got shape {x.shape}")
    tokens = x.shape[0]
    out = np.empty((tokens, packed.out_features), np.float32)
    if tokens:
        work = np.empty(work_bytes(packed.in_features, tokens), np.uint8)
        quantize_inputs(int(packed.kind), x, work)
        gemm(*packed.arguments, tokens, work, out)
    return out


def as_float32(x: Any) -> np.ndarray:
    """A contiguous float32 array of a NumPy array or a torch tensor (bfloat16 too)."""
    if hasattr(x, "detach"):
        x = x.detach().float().cpu().numpy()
    return np.array(x, dtype=np.float32, order="C", ndmin=1)
