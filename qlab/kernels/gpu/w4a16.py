"""W4A16: weights of 4 bits in groups, inputs of 16 (or 32) bits. One vector, or several.

    y[m, n] = sum over groups g of  scale[n, g] * sum over k in g of
              (code[n, k] - zero[n, g]) * x[m, k]

The codes are integers, with or without zero points, or places in a table of 16 numbers (NF4, FP4).
Weights lie in lanes (``qlab.kernels.gpu.lanes``). A program takes ``BLOCK_N`` rows of the weight,
and every ``SPLIT``-th part of the inputs (``qlab.kernels.gpu.split``). It reads each weight once,
turns it into a float in registers and multiplies: nothing is written back but the sums.

Sources: the layout and the split follow the idea of Frantar et al., "MARLIN: Mixed-Precision
Auto-Regressive Parallel Inference on Large Language Models", 2024 (arXiv 2408.11743), sections 3.2
and 3.4; codes in the mantissa of a float: Kim et al., "Who Says Elephants Can't Run", 2022
(arXiv 2211.10017), section 4.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from qlab.kernels.gpu.runtime import load_triton
from qlab.kernels.gpu.split import gather

triton, tl = load_triton()


@triton.jit
def decode(word, zero, table, PLANE: tl.constexpr, TABLE: tl.constexpr):
    """The float32 values, before the scale, of the codes in plane PLANE of the words."""
    if TABLE:
        return tl.load(table + ((word >> (4 * PLANE)) & 15))
    else:
        # A float32 has 23 bits of mantissa. With the exponent of 2^(23 - b), its mantissa counts in
        # steps of 2^-b: a code written b bits up in it makes the number 2^(23 - b) + code. So one
        # "and" and one "or" convert an integer to a float, and the difference below is exact.
        b: tl.constexpr = 4 * (PLANE % 4)
        if PLANE >= 4:
            word = word >> 16
        bits = (word & (15 << b)) | ((150 - b) << 23)
        return bits.to(tl.float32, bitcast=True) - ((1 << (23 - b)) + zero)


@triton.jit
def gemv_kernel(
    x, words, scales, zeros, table, out, partial, counters,
    N, K, CHUNKS, GROUPS,
    GROUP: tl.constexpr, TABLE: tl.constexpr, ZEROS: tl.constexpr, OFFSET: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One vector x (K,) -> out (N,). A tile is BLOCK_N rows, BLOCK_C chunks of 128 inputs."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    lane = tl.arange(0, 16)
    acc = tl.zeros((BLOCK_N, BLOCK_C, 16), dtype=tl.float32)
    for first in range(split * BLOCK_C, CHUNKS, SPLIT * BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        ok = (rows[:, None] < N) & (chunk[None, :] < CHUNKS)
        place = (rows[:, None] * CHUNKS + chunk[None, :]) * 16
        word = tl.load(words + place[:, :, None] + lane, mask=ok[:, :, None], other=0)
        part = tl.zeros((BLOCK_N, BLOCK_C, 16), dtype=tl.float32)
        for plane in tl.static_range(8):
            if (plane * 16) % GROUP == 0:  # a group begins
                group = rows[:, None] * GROUPS + (chunk[None, :] * 128 + plane * 16) // GROUP
                # The last chunk can be longer than the row, and then its groups are not there.
                has = ok & (group < (rows[:, None] + 1) * GROUPS)
                zero = tl.full((1, 1, 1), OFFSET, dtype=tl.float32)
                if ZEROS:
                    zero = tl.load(zeros + group, mask=has, other=0).to(tl.float32)[:, :, None]
                scale = tl.load(scales + group, mask=has, other=0).to(tl.float32)[:, :, None]
            k = chunk[:, None] * 128 + plane * 16 + lane[None, :]
            xs = tl.load(x + k, mask=k < K, other=0).to(tl.float32)
            part += decode(word, zero, table, plane, TABLE) * xs[None, :, :]
            if (plane * 16 + 16) % GROUP == 0 or plane == 7:  # a group, or the chunk, ends
                acc += part * scale
                part = tl.zeros((BLOCK_N, BLOCK_C, 16), dtype=tl.float32)
    y = tl.sum(tl.sum(acc, axis=2), axis=1)
    counter = counters + tl.program_id(0)
    y, store = gather(y, rows, rows < N, partial, counter, N, split, SPLIT)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=store)


@triton.jit
def gemm_kernel(
    x, words, scales, zeros, table, out, partial, counters,
    M, N, K, CHUNKS, GROUPS,
    GROUP: tl.constexpr, TABLE: tl.constexpr, ZEROS: tl.constexpr, OFFSET: tl.constexpr,
    EVEN: tl.constexpr, DOT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """M vectors x (M, K) -> out (M, N), on the matrix units.

    The tile of sums is (BLOCK_N, BLOCK_M), the weights on the left: they come out of registers,
    where they have just been decoded. Codes go into the product as whole numbers, which 16 bits
    hold exactly; the scale multiplies the float32 sums of its group. EVEN: K is whole chunks.
    DOT: the dtype of the products, that of x (the interpreter multiplies no bf16: float32 there).
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, 16)
    ok = rows < N
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for chunk in range(split, CHUNKS, SPLIT):
        place = (rows * CHUNKS + chunk) * 16
        word = tl.load(words + place[:, None] + lane[None, :], mask=ok[:, None], other=0)
        part = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for plane in tl.static_range(8):
            if (plane * 16) % GROUP == 0:
                group = rows * GROUPS + (chunk * 128 + plane * 16) // GROUP
                has = ok & (group < (rows + 1) * GROUPS)
                zero = tl.full((1, 1), OFFSET, dtype=tl.float32)
                if ZEROS:
                    zero = tl.load(zeros + group, mask=has, other=0).to(tl.float32)[:, None]
                scale = tl.load(scales + group, mask=has, other=0).to(tl.float32)
            k = chunk * 128 + plane * 16 + lane
            inside = ((k[:, None] < K) | EVEN) & (m[None, :] < M)
            xs = tl.load(x + m[None, :] * K + k[:, None], mask=inside, other=0)
            w = decode(word, zero, table, plane, TABLE).to(xs.dtype)
            part = tl.dot(w.to(DOT), xs.to(DOT), part, input_precision="ieee")
            if (plane * 16 + 16) % GROUP == 0 or plane == 7:
                acc += part * scale[:, None]
                part = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    offsets = m[None, :] * N + rows[:, None]
    store = ok[:, None] & (m[None, :] < M)
    counter = counters + tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    acc, store = gather(acc, offsets, store, partial, counter, M * N, split, SPLIT)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=store)
