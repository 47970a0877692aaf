"""What the words become in LLVM's language, for each path.

Chapter: A CPU kernel in Numba.
"""

from __future__ import annotations

from llvmlite import ir

from qlab.kernels.cpu.simd.path import path

I8, I16, I32, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def vector(element, count):
    return ir.VectorType(element, count)


def splat(builder, one, count):
    """One number in all elements of a vector."""
    kind = vector(one.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), one, ir.Constant(I32, 0))
    return builder.shuffle_vector(
        first, ir.Constant(kind, ir.Undefined), ir.Constant(vector(I32, count), [0] * count)
    )


def shuffle(builder, v, places):
    """The elements of ``v`` at ``places``."""
    mask = ir.Constant(vector(I32, len(places)), list(places))
    return builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), mask)


def join(builder, low, high):
    """Two vectors as one of twice the length."""
    n = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(vector(I32, n), list(range(n))))


def halves(builder, v):
    """The lower and the upper half of a vector."""
    n = v.type.count
    return shuffle(builder, v, range(n // 2)), shuffle(builder, v, range(n // 2, n))


def constant(kind, number):
    return ir.Constant(kind, [number] * kind.count)


def call(builder, name, result, *args):
    """Call an intrinsic of LLVM."""
    module = builder.module
    found = module.globals.get(name)
    if found is None:
        found = ir.Function(module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(found, args)


def prefetch(builder, pointer):
    """For reading, into all caches; a bad address is ignored."""
    settings = [ir.Constant(I32, n) for n in (0, 3, 1)]  # read, keep everywhere, data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, *settings)


def dot4(builder, total, codes, inputs, small):
    """total + four products in each lane. ``codes`` unsigned, ``inputs`` signed bytes."""
    use = path()
    if use == "avx512":  # one instruction
        name = "llvm.x86.avx512.vpdpbusd.512"
        return call(builder, name, total.type, total, codes, inputs)
    if use == "portable":
        return portable_dot4(builder, total, codes, inputs)
    parts = zip(*(halves(builder, v) for v in (total, codes, inputs)), strict=True)
    if use == "avxvnni":
        name = "llvm.x86.avx512.vpdpbusd.256"  # LLVM's name for both encodings
        done = [call(builder, name, t.type, t, c, x) for t, c, x in parts]
    elif small:
        done = [pairs_of_bytes(builder, *part) for part in parts]
    else:
        done = [pairs_of_int16(builder, *part) for part in parts]
    return join(builder, *done)


def pairs_of_bytes(builder, total, codes, inputs):
    """Products of bytes, pairs added in int16, pairs of those in int32.

    The first sum saturates at 32767, which codes up to 127 cannot reach: 2 · 127 · 128 = 32512.
    """
    twos = call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16), codes, inputs)
    ones = constant(twos.type, 1)
    return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", total.type, twos, ones))


def pairs_of_int16(builder, total, codes, inputs):
    """Even and odd bytes as int16; the products of each pair are added in int32."""
    wide = vector(I16, 16)
    eight = constant(wide, 8)
    c, x = builder.bitcast(codes, wide), builder.bitcast(inputs, wide)
    even = builder.and_(c, constant(wide, 255)), builder.ashr(builder.shl(x, eight), eight)
    odd = builder.lshr(c, eight), builder.ashr(x, eight)
    for a, b in (even, odd):
        total = builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", total.type, a, b))
    return total


def portable_dot4(builder, total, codes, inputs):
    """``pairs_of_int16`` in plain operations, which LLVM knows on every processor.

    LLVM has a word for such sums, ``vector.partial.reduce.add``. But it leaves open which products
    go to which lane, and here each lane is a row.
    """
    wide = vector(I16, 32)
    eight = constant(wide, 8)
    c, x = builder.bitcast(codes, wide), builder.bitcast(inputs, wide)
    even = builder.and_(c, constant(wide, 255)), builder.ashr(builder.shl(x, eight), eight)
    odd = builder.lshr(c, eight), builder.ashr(x, eight)
    for a, b in (even, odd):
        for first in (0, 1):
            places = range(first, 32, 2)
            left = builder.sext(shuffle(builder, a, places), total.type)
            right = builder.sext(shuffle(builder, b, places), total.type)
            total = builder.add(total, builder.mul(left, right))
    return total


def fma(builder, a, b, c):
    if path() == "portable":  # where there is no such instruction, LLVM would call a slow function
        return builder.fadd(builder.fmul(a, b), c)
    return call(builder, "llvm.fma.v16f32", a.type, a, b, c)


def halves_to_floats(builder, bits):
    """float16 (as int16) to float32; finite ones only on ``portable``."""
    floats = vector(F32, 16)
    if path() != "portable":
        return builder.fpext(builder.bitcast(bits, vector(ir.HalfType(), 16)), floats)
    # Put exponent and fraction where float32 has them. The exponent is then 127 - 15 = 112 too
    # small, for subnormal numbers too.
    ints = vector(I32, 16)
    wide = builder.zext(bits, ints)
    size = builder.shl(builder.and_(wide, constant(ints, 0x7FFF)), constant(ints, 13))
    sign = builder.shl(builder.and_(wide, constant(ints, 0x8000)), constant(ints, 16))
    number = builder.fmul(builder.bitcast(size, floats), constant(floats, 2.0**112))
    return builder.bitcast(builder.or_(builder.bitcast(number, ints), sign), floats)


def lookup(builder, table, index):
    """table[index & 15] in each lane."""
    use = path()
    if use == "avx512":
        name = "llvm.x86.avx512.permvar.sf.512"
        return call(builder, name, table.type, table, index)
    if use == "portable":
        places = builder.and_(index, constant(index.type, 15))
        out = ir.Constant(table.type, ir.Undefined)
        for lane in range(16):
            here = ir.Constant(I32, lane)
            one = builder.extract_element(table, builder.extract_element(places, here))
            out = builder.insert_element(out, one, here)
        return out
    low, high = halves(builder, table)
    done = []
    for part in halves(builder, index):
        from_low = call(builder, "llvm.x86.avx2.permps", low.type, low, part)
        from_high = call(builder, "llvm.x86.avx2.permps", low.type, high, part)
        upper = builder.and_(part, constant(part.type, 8))
        is_upper = builder.icmp_unsigned("!=", upper, constant(part.type, 0))
        done.append(builder.select(is_upper, from_high, from_low))
    return join(builder, *done)
