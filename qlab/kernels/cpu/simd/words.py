"""The words of the vocabulary: what can be done with vectors.

Memory is always a contiguous array and a place in it, counted in bytes whatever the array holds;
nothing is checked, so a kernel must know its layout.

Operators: ``+ - *`` of two Ints or two Floats (int32 wraps around); ``& >> <<`` of Bytes or Ints
with an integer, where ``>>`` moves zeros in; and ``|`` of two Bytes or two Ints.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from qlab.kernels.cpu.simd import lower
from qlab.kernels.cpu.simd.types import (
    Bytes,
    BytesType,
    Floats,
    FloatsType,
    Ints,
    IntsType,
    Vector,
)

I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def _address(context, builder, array_type, array, at):
    """Pointer to byte ``at`` of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(builder.bitcast(data, I8.as_pointer()), [at], source_etype=I8)


def _load(builder, pointer, kind):
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def _reader(name, result, read, doc):
    """An intrinsic (buffer, at) -> result."""

    def word(typingctx, buffer, at):
        def lower_it(context, builder, sig, args):
            where = context.cast(builder, args[1], sig.args[1], types.intp)
            return read(builder, _address(context, builder, sig.args[0], args[0], where))

        return signature(result, buffer, at), lower_it

    word.__name__, word.__qualname__, word.__doc__ = name, name, doc
    return intrinsic(word)


load_bytes = _reader(
    "load_bytes", Bytes, lambda b, p: _load(b, p, Bytes.vector), "64 bytes -> Bytes."
)
load_ints = _reader("load_ints", Ints, lambda b, p: _load(b, p, Ints.vector), "16 int32 -> Ints.")
load_floats = _reader(
    "load_floats", Floats, lambda b, p: _load(b, p, Floats.vector), "16 float32 -> Floats."
)
load_uint8 = _reader(
    "load_uint8",
    Ints,
    lambda b, p: b.zext(_load(b, p, ir.VectorType(I8, 16)), Ints.vector),
    "16 unsigned bytes -> Ints.",
)
load_int8 = _reader(
    "load_int8",
    Ints,
    lambda b, p: b.sext(_load(b, p, ir.VectorType(I8, 16)), Ints.vector),
    "16 signed bytes -> Ints.",
)
load_halves = _reader(
    "load_halves",
    Floats,
    lambda b, p: lower.halves_to_floats(b, _load(b, p, ir.VectorType(I16, 16))),
    "16 finite float16 -> Floats.",
)
splat_bytes = _reader(
    "splat_bytes",
    Bytes,
    lambda b, p: b.bitcast(lower.splat(b, _load(b, p, I32), 16), Bytes.vector),
    "4 bytes, sixteen times -> Bytes.",
)
get_float = _reader("get_float", types.float32, lambda b, p: _load(b, p, F32), "One float32.")
get_int = _reader("get_int", types.int32, lambda b, p: _load(b, p, I32), "One int32.")


@intrinsic
def prefetch(typingctx, buffer, at):
    """Ask for the cache line of a byte, for reading, and do not wait. Any place may be named."""

    def lower_it(context, builder, sig, args):
        where = context.cast(builder, args[1], sig.args[1], types.intp)
        pointer = _address(context, builder, sig.args[0], args[0], where)
        lower.prefetch(builder, pointer)
        return context.get_dummy_value()

    return types.void(buffer, at), lower_it


def _writer(name, accepts, narrow, doc):
    """An intrinsic (buffer, at, value) -> nothing."""

    def word(typingctx, buffer, at, value):
        def lower_it(context, builder, sig, args):
            where = context.cast(builder, args[1], sig.args[1], types.intp)
            pointer = _address(context, builder, sig.args[0], args[0], where)
            what = narrow(context, builder, sig.args[2], args[2])
            builder.store(what, builder.bitcast(pointer, what.type.as_pointer()), align=1)
            return context.get_dummy_value()

        if isinstance(value, accepts):
            return types.void(buffer, at, value), lower_it

    word.__name__, word.__qualname__, word.__doc__ = name, name, doc
    return intrinsic(word)


store = _writer("store", Vector, lambda c, b, t, v: v, "Write the 64 bytes of a vector.")
put_bytes = _writer(
    "put_bytes",
    IntsType,
    lambda c, b, t, v: b.trunc(v, ir.VectorType(I8, 16)),
    "Write Ints as 16 bytes, the lowest of each.",
)
put_float = _writer(
    "put_float",
    types.Number,
    lambda c, b, t, v: c.cast(b, v, t, types.float32),
    "Write one float32.",
)
put_int = _writer(
    "put_int", types.Integer, lambda c, b, t, v: c.cast(b, v, t, types.int32), "Write one int32."
)


@intrinsic
def splat_int(typingctx, number):
    """One integer, sixteen times -> Ints."""

    def lower_it(context, builder, sig, args):
        one = context.cast(builder, args[0], sig.args[0], types.int32)
        return lower.splat(builder, one, 16)

    return Ints(number), lower_it


@intrinsic
def splat_float(typingctx, number):
    """One float32, sixteen times -> Floats."""

    def lower_it(context, builder, sig, args):
        one = context.cast(builder, args[0], sig.args[0], types.float32)
        return lower.splat(builder, one, 16)

    return Floats(number), lower_it


@intrinsic
def to_floats(typingctx, ints):
    """Ints -> Floats, rounded to nearest (exact below 2^24)."""

    def lower_it(context, builder, sig, args):
        return builder.sitofp(args[0], Floats.vector)

    return Floats(ints), lower_it


@intrinsic
def bits_to_floats(typingctx, ints):
    """The bits of Ints read as float32."""

    def lower_it(context, builder, sig, args):
        return builder.bitcast(args[0], Floats.vector)

    return Floats(ints), lower_it


@intrinsic
def nearest(typingctx, floats):
    """Floats -> Ints, half to even; for magnitudes below 2^22."""

    def lower_it(context, builder, sig, args):
        # At 1.5 · 2^23 a float32 has no bits after the point: the addition rounds.
        magic = ir.Constant(Floats.vector, [12582912.0] * 16)
        near = builder.bitcast(builder.fadd(args[0], magic), Ints.vector)
        return builder.sub(near, builder.bitcast(magic, Ints.vector))

    return Ints(floats), lower_it


@intrinsic
def magnitudes(typingctx, floats):
    """The bits of |Floats| as Ints: in the order of the magnitudes, infinity and NaN above all."""

    def lower_it(context, builder, sig, args):
        bits = builder.bitcast(args[0], Ints.vector)
        return builder.and_(bits, lower.constant(Ints.vector, 0x7FFFFFFF))

    return Ints(floats), lower_it


def _reducer(name, word, doc):
    """An intrinsic Ints -> int32."""

    def reduce(typingctx, ints):
        def lower_it(context, builder, sig, args):
            return lower.call(builder, f"llvm.vector.reduce.{word}.v16i32", I32, args[0])

        return types.int32(ints), lower_it

    reduce.__name__, reduce.__qualname__, reduce.__doc__ = name, name, doc
    return intrinsic(reduce)


largest = _reducer("largest", "smax", "The largest of 16 int32.")
add_up = _reducer("add_up", "add", "The sum of 16 int32; it wraps around.")


@intrinsic
def bits_to_float(typingctx, number):
    """The bits of an int32 read as float32."""

    def lower_it(context, builder, sig, args):
        return builder.bitcast(context.cast(builder, args[0], sig.args[0], types.int32), F32)

    return types.float32(number), lower_it


@intrinsic
def dot4(typingctx, total, codes, inputs):
    """total + the dot product of four bytes in each of the 16 lanes, int32.

    Args:
        total: Ints.
        codes: Bytes, unsigned, 0 to 255.
        inputs: Bytes that hold signed bytes, -128 to 127.

    Exact on all paths: nothing saturates.
    """

    def lower_it(context, builder, sig, args):
        return lower.dot4(builder, *args, small=False)

    return Ints(total, codes, inputs), lower_it


@intrinsic
def dot4_small(typingctx, total, codes, inputs):
    """``dot4`` for codes of at most 127 and inputs of at least -128; quicker on ``avx2``."""

    def lower_it(context, builder, sig, args):
        return lower.dot4(builder, *args, small=True)

    return Ints(total, codes, inputs), lower_it


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c of Floats, rounded once where the processor can (``portable``: twice)."""

    def lower_it(context, builder, sig, args):
        return lower.fma(builder, *args)

    return Floats(a, b, c), lower_it


@intrinsic
def lookup(typingctx, table, index):
    """table[index & 15] in each lane: Floats of Floats and Ints."""

    def lower_it(context, builder, sig, args):
        return lower.lookup(builder, *args)

    return Floats(table, index), lower_it


# --- operators --------------------------------------------------------------------------------


def _same(a, b):
    return isinstance(a, Vector) and a == b


def _operator(symbol, accepts, lowerings):
    """Teach Numba ``symbol`` for vectors.

    Args:
        accepts: (a, b) -> whether these types are meant.
        lowerings: pairs of type classes -> how LLVM is told.
    """

    @infer_global(symbol)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and accepts(*args):
                return signature(args[0], *args)

    for pair, how in lowerings.items():
        lower_builtin(symbol, *pair)(how)


def _plain(method):
    def lower_it(context, builder, sig, args):
        return getattr(builder, method)(*args)

    return lower_it


def _with_constant(method):
    """A vector and an integer, which is put into every element."""

    def lower_it(context, builder, sig, args):
        kind = sig.args[0]
        one = context.cast(builder, args[1], sig.args[1], types.int64)
        one = builder.trunc(one, kind.element)
        return getattr(builder, method)(args[0], lower.splat(builder, one, kind.count))

    return lower_it


def _with_integer(a, b):
    return isinstance(a, BytesType | IntsType) and isinstance(b, types.Integer)


for _symbol, _int, _float in (
    (operator.add, "add", "fadd"),
    (operator.sub, "sub", "fsub"),
    (operator.mul, "mul", "fmul"),
):
    _operator(
        _symbol,
        lambda a, b: _same(a, b) and not isinstance(a, BytesType),
        {(IntsType, IntsType): _plain(_int), (FloatsType, FloatsType): _plain(_float)},
    )
_operator(
    operator.or_,
    lambda a, b: _same(a, b) and not isinstance(a, FloatsType),
    {(IntsType, IntsType): _plain("or_"), (BytesType, BytesType): _plain("or_")},
)
for _symbol, _method in (
    (operator.and_, "and_"),
    (operator.rshift, "lshr"),
    (operator.lshift, "shl"),
):
    _operator(
        _symbol,
        _with_integer,
        {
            (BytesType, types.Integer): _with_constant(_method),
            (IntsType, types.Integer): _with_constant(_method),
        },
    )
