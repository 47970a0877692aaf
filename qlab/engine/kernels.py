"""Functions with an address, so that only those in use are compiled.

The compiled decoder does not know the kinds of weights: with each matrix it finds the address of
the function that multiplies it, as a C program would. A model of two kinds compiles two kernels,
and a kernel that is changed leaves the decoder as it is. The rows of the embedding, the inputs of a
kernel, and the attention of a head are reached in the same way.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic, overload

from qlab.engine import layers
from qlab.kernels.cpu import float_kernels, gguf_decode, integer_kernels
from qlab.kernels.cpu import tokens as many_tokens
from qlab.kernels.cpu.inputs import quantize_token
from qlab.kernels.cpu.kinds import HEADER, Kind
from qlab.kernels.cpu.linear import measures
from qlab.kernels.cpu.simd import store

ROWS = 16  # of a tile
TOKENS = 256  # whose sums stay in the nearest cache
i64, f32 = np.int64, np.float32
# Kernel for one token, for many tokens, and what their arguments are.
PLAIN, GROUPED, ZEROS, FLOAT = "plain", "grouped", "zeros", "float"
KERNELS = {
    Kind.F32: (float_kernels.tile_f32, many_tokens.f32_, FLOAT),
    Kind.F16: (float_kernels.tile_f16, many_tokens.f16, FLOAT),
    Kind.BF16: (float_kernels.tile_bf16, many_tokens.bf16, FLOAT),
    Kind.CODEBOOK4: (float_kernels.tile_codebook4, many_tokens.codebook4, GROUPED),
    Kind.INT8_WEIGHT: (float_kernels.tile_int8_weight, many_tokens.int8_weight, GROUPED),
    Kind.Q4_0: (integer_kernels.tile_q4_0, many_tokens.q4_0, PLAIN),
    Kind.Q8_0: (integer_kernels.tile_q8_0, many_tokens.q8_0, PLAIN),
    Kind.Q4_K: (integer_kernels.tile_q4_k, many_tokens.q4_k, PLAIN),
    Kind.Q5_K: (integer_kernels.tile_q5_k, many_tokens.q5_k, PLAIN),
    Kind.Q6_K: (integer_kernels.tile_q6_k, many_tokens.q6_k, PLAIN),
    Kind.Q4_1: (integer_kernels.tile_q4_1, many_tokens.q4_1, PLAIN),
    Kind.Q5_1: (integer_kernels.tile_q5_1, many_tokens.q5_1, PLAIN),
    Kind.Q2_K: (integer_kernels.tile_q2_k, many_tokens.q2_k, PLAIN),
    Kind.TERNARY: (integer_kernels.tile_ternary, many_tokens.ternary, PLAIN),
    Kind.INT2_GROUP: (integer_kernels.tile_int2, many_tokens.int2, ZEROS),
    Kind.INT3_GROUP: (integer_kernels.tile_int3, many_tokens.int3, ZEROS),
    Kind.INT4_GROUP: (integer_kernels.tile_int4, many_tokens.int4, ZEROS),
    Kind.INT8_GROUP: (integer_kernels.tile_int8, many_tokens.int8, ZEROS),
    Kind.INT2_ZERO: (integer_kernels.tile_int2, many_tokens.int2, ZEROS),
    Kind.INT3_ZERO: (integer_kernels.tile_int3, many_tokens.int3, ZEROS),
    Kind.INT4_ZERO: (integer_kernels.tile_int4, many_tokens.int4, ZEROS),
    Kind.INT8_ZERO: (integer_kernels.tile_int8, many_tokens.int8, ZEROS),
    Kind.INT8_CHANNEL: (integer_kernels.tile_int8_channel, many_tokens.int8_channel, PLAIN),
}


def _f32(row, size, out, n):
    numbers, to = carray(row, size).view(np.float32), carray(out, n)
    for i in range(n):
        to[i] = numbers[i]


def _f16(row, size, out, n):
    gguf_decode.decode_f16(carray(row, size).view(np.uint16), carray(out, n))


def _bf16(row, size, out, n):
    gguf_decode.decode_bf16(carray(row, size).view(np.uint16), carray(out, n))


def _q8_0(row, size, out, n):
    gguf_decode.decode_q8_0(carray(row, (size // 34, 34)), carray(out, (n // 32, 32)))


def _q4_0(row, size, out, n):
    gguf_decode.decode_symmetric(carray(row, (size // 18, 18)), carray(out, (n // 32, 32)), 8)


def _q4_1(row, size, out, n):
    gguf_decode.decode_affine_32(carray(row, (size // 20, 20)), carray(out, (n // 32, 32)), 15)


def _q4_k(row, size, out, n):
    gguf_decode.decode_q4_k(carray(row, (size // 144, 144)), carray(out, (n // 256, 256)))


def _q6_k(row, size, out, n):
    gguf_decode.decode_q6_k(carray(row, (size // 210, 210)), carray(out, (n // 256, 256)))


# Block types whose rows are read as they are when a token is looked up.
TABLES = {
    "F32": _f32, "F16": _f16, "BF16": _bf16, "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1,
    "Q4_K": _q4_k, "Q6_K": _q6_k,
}  # fmt: skip


def tile(kind: Any, buffer: Any, codes: Any, scales: Any, blocks: Any, per_group: Any, work: Any):
    """16 rows times one token: Floats. Compiled code only."""
    raise NotImplementedError


def tile_many(kind: Any, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    """16 rows times many tokens, added to ``sums``. Compiled code only."""
    raise NotImplementedError


@overload(tile, prefer_literal=True, jit_options={"error_model": "numpy", "nogil": True})
def _tile(kind, buffer, codes, scales, blocks, per_group, work):
    if not isinstance(kind, types.IntegerLiteral):
        return None
    one, _, arguments = KERNELS[Kind(kind.literal_value)]
    zeros = int(Kind(kind.literal_value).name.endswith("ZERO"))

    def plain(kind, buffer, codes, scales, blocks, per_group, work):
        return one(buffer, codes, scales, blocks, work)

    def floats(kind, buffer, codes, scales, blocks, per_group, work):
        return one(buffer, codes, blocks, work)

    def grouped(kind, buffer, codes, scales, blocks, per_group, work):
        return one(buffer, codes, scales, blocks, per_group, work)

    def with_zeros(kind, buffer, codes, scales, blocks, per_group, work):
        return one(i64(zeros), buffer, codes, scales, blocks, per_group, work)

    return {PLAIN: plain, FLOAT: floats, GROUPED: grouped, ZEROS: with_zeros}[arguments]


@overload(tile_many, prefer_literal=True, jit_options={"error_model": "numpy", "nogil": True})
def _tile_many(kind, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
    if not isinstance(kind, types.IntegerLiteral):
        return None
    _, many, arguments = KERNELS[Kind(kind.literal_value)]
    zeros = int(Kind(kind.literal_value).name.endswith("ZERO"))

    def plain(kind, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
        many(buffer, codes, scales, blocks, work, tokens, first, sums)

    def floats(kind, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
        many(buffer, codes, blocks, work, tokens, first, sums)

    def grouped(kind, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
        many(buffer, codes, scales, blocks, per_group, work, tokens, first, sums)

    def with_zeros(kind, buffer, codes, scales, blocks, per_group, work, tokens, first, sums):
        many(i64(zeros), buffer, codes, scales, blocks, per_group, work, tokens, first, sums)

    return {PLAIN: plain, FLOAT: floats, GROUPED: grouped, ZEROS: with_zeros}[arguments]


_BYTES, _FLOATS = types.CPointer(types.uint8), types.CPointer(types.float32)
# An array is handed over as the place where it begins and its length.
_ARRAY, _NUMBERS = (_BYTES, types.int64), (_FLOATS, types.int64)
# weight, out_features, in_features, group_size, tokens, work, out, first and last tile
MULTIPLY = types.void(*_ARRAY, *[types.int64] * 4, *_ARRAY, *_NUMBERS, types.int64, types.int64)
# kind, the inputs of a token, work, which token of how many
PREPARE = types.void(types.int64, *_NUMBERS, *_ARRAY, types.int64, types.int64)
# the bytes of a row, out
EMBED = types.void(*_ARRAY, *_NUMBERS)
# query, keys, scales, values, scales, tokens, room, out
ATTEND = types.void(
    *_NUMBERS, *_ARRAY, *_NUMBERS, *_ARRAY, *_NUMBERS, types.int64, *_NUMBERS, *_NUMBERS
)


def _make(kind: int) -> Any:
    def kernel(weight, size, rows, columns, group, tokens, work, room, out, _, first, last):
        buffer, inputs = carray(weight, size), carray(work, room)
        y = carray(out, (tokens, rows))
        blocks, per_group, codes, step = measures(i64(kind), columns, group)
        if tokens == 1:
            to, rest = carray(out, rows).view(np.uint8), np.empty(64, np.uint8)
            for i in range(first, last):
                at = HEADER + i * step
                found = tile(kind, buffer, at, at + codes, blocks, per_group, inputs)
                if (i + 1) * ROWS <= rows:
                    store(to, i * 64, found)
                else:
                    store(rest, 0, found)
                    for j in range(rows * 4 - i * 64):
                        to[i * 64 + j] = rest[j]
            return
        space = np.empty(64 * min(tokens, TOKENS), np.uint8)
        for start in range(0, tokens, TOKENS):
            count = min(tokens - start, TOKENS)
            sums = space[: 64 * count]
            numbers = sums.view(np.float32)
            for i in range(first, last):
                at = HEADER + i * step
                for j in range(len(numbers)):
                    numbers[j] = f32(0.0)
                tile_many(
                    kind, buffer, at, at + codes, blocks, per_group, inputs, tokens, start, sums
                )
                here = min(ROWS, rows - i * ROWS)
                for t in range(count):
                    for r in range(here):
                        y[start + t, i * ROWS + r] = numbers[t * ROWS + r]

    return kernel


def prepare_inputs(kind, x, columns, work, size, token, tokens):
    """The inputs of one token as the kernel of a kind wants them. Compiled code only."""
    quantize_token(kind, carray(x, columns), carray(work, size), token, tokens)


def attend_floats(q, d, keys, a, scales, b, values, c, more, e, count, scores, room, out, wide):
    """``layers.attend`` on float32. Compiled code only."""
    layers.attend(carray(q, d), carray(keys, a), carray(values, c), count, carray(scores, room),
                  carray(out, wide))  # fmt: skip


def attend_codes(q, d, keys, a, scales, b, values, c, more, e, count, scores, room, out, wide):
    """``layers.attend_int8``. Compiled code only."""
    layers.attend_int8(
        carray(q, d), carray(keys, a), carray(scales, b), carray(values, c), carray(more, e), count,
        carray(scores, room), carray(out, wide),
    )  # fmt: skip


@cache
def address(kind: int) -> int:
    """Where the kernel of a kind begins; it is compiled, or loaded, when it is first asked for."""
    return _address(MULTIPLY, _make(int(kind)))


@cache
def prepare_address() -> int:
    """Where ``prepare_inputs`` begins."""
    return _address(PREPARE, prepare_inputs)


@cache
def attend_address(as_int8: bool) -> int:
    """Where the attention of one head begins."""
    return _address(ATTEND, attend_codes if as_int8 else attend_floats)


@cache
def embed_address(name: str) -> int:
    """Where the function begins that reads a row of an embedding kept as a GGUF block type."""
    return _address(EMBED, TABLES[name])


def _address(signature: Any, function: Any) -> int:
    options = {"error_model": "numpy", "nopython": True}
    try:
        compiled = numba.cfunc(signature, cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache
        compiled = numba.cfunc(signature, **options)(function)
    _kept.append(compiled)  # or its code would be let go
    return int(compiled.address)


_kept: list[Any] = []


@intrinsic
def call(typingctx, at, arguments):
    """Call the function at an address.

    Args:
        at: the address, a whole number.
        arguments: a tuple; an array is handed over as the place where it begins and its length
            along the first axis, so it must be contiguous.
    """

    def lower(context, builder, sig, args):
        values = []
        for i, kind in enumerate(sig.args[1]):
            one = builder.extract_value(args[1], i)
            if isinstance(kind, types.Array):
                made = context.make_array(kind)(context, builder, one)
                values += [made.data, builder.extract_value(made.shape, 0)]
            else:
                values.append(context.cast(builder, one, kind, types.int64))
        function = ir.FunctionType(ir.VoidType(), [v.type for v in values]).as_pointer()
        where = context.cast(builder, args[0], sig.args[0], types.int64)
        builder.call(builder.inttoptr(where, function), values)
        return context.get_dummy_value()

    return types.void(at, arguments), lower
