"""Q4_K: products with the blocks of a GGUF file as they lie there, 144 bytes for 256 weights.

A block is 36 words of 32 bits. Word 0 holds d and dmin, two float16. Words 1 to 3 hold eight scales
and eight minima of six bits. Words 4 to 35 are four *runs* of eight words; run r holds the codes of
sub-block 2r in the low halves of its bytes, of sub-block 2r + 1 in the high ones::

    w = (d * scale) * code - (dmin * minimum)

Source: llama.cpp, ggml-common.h ``block_q4_K`` and ggml-quants.c ``get_scale_min_k4``.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from qlab.kernels.gpu.runtime import load_triton
from qlab.kernels.gpu.split import gather

triton, tl = load_triton()


@triton.jit
def halves(word):
    """The two float16 of a word, as float32: (low, high)."""
    low = (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    high = ((word >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def scale_and_minimum(d, dmin, a, b, c, run, HIGH: tl.constexpr):
    """Of sub-block 2 * run + HIGH, float32; a, b, c: words 1 to 3 of the block.

    The first four sub-blocks have six whole bits in bytes of a and b. The others have four bits in
    a byte of c, and two that were left over at the top of a and b.
    """
    byte = 8 * (2 * (run % 2) + HIGH)
    upper = run >= 2
    scale = tl.where(upper, ((c >> byte) & 15) | (((a >> (byte + 6)) & 3) << 4), (a >> byte) & 63)
    least = tl.where(
        upper, ((c >> (byte + 4)) & 15) | (((b >> (byte + 6)) & 3) << 4), (b >> byte) & 63
    )
    return d * scale.to(tl.float32), dmin * least.to(tl.float32)


@triton.jit
def gemv_kernel(
    x, words, out, partial, counters, N, BLOCKS,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """x (256 * BLOCKS,), words int32 (N, BLOCKS, 36) -> out (N,). A tile is BLOCK_B blocks wide."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    run = tl.arange(0, 4)[None, None, :, None]
    lane = tl.arange(0, 8)[None, None, None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_B, 4, 8), dtype=tl.float32)
    for first in range(split * BLOCK_B, BLOCKS, SPLIT * BLOCK_B):
        block = first + tl.arange(0, BLOCK_B)
        ok = ((rows[:, None] < N) & (block[None, :] < BLOCKS))[:, :, None, None]
        place = ((rows[:, None] * BLOCKS + block[None, :]) * 36)[:, :, None, None]
        d, dmin = halves(tl.load(words + place, mask=ok, other=0))
        a = tl.load(words + place + 1, mask=ok, other=0)
        b = tl.load(words + place + 2, mask=ok, other=0)
        c = tl.load(words + place + 3, mask=ok, other=0)
        word = tl.load(words + place + 4 + 8 * run + lane, mask=ok, other=0)
        start = block[None, :, None, None] * 256 + 64 * run + 4 * lane
        for high in tl.static_range(2):
            scale, least = scale_and_minimum(d, dmin, a, b, c, run, high)
            for byte in tl.static_range(4):
                k = start + 32 * high + byte
                xs = tl.load(x + k, mask=block[None, :, None, None] < BLOCKS, other=0)
                code = (word >> (8 * byte + 4 * high)) & 15
                acc += (scale * code.to(tl.float32) - least) * xs.to(tl.float32)
    y = tl.sum(tl.sum(tl.sum(acc, axis=3), axis=2), axis=1)
    counter = counters + tl.program_id(0)
    y, store = gather(y, rows, rows < N, partial, counter, N, split, SPLIT)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=store)


@triton.jit
def gemm_kernel(
    x, words, out, partial, counters, M, N, BLOCKS,
    DOT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """x (M, 256 * BLOCKS) -> out (M, N), on the matrix units. Weights are rounded to x's dtype."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    word_in_block = tl.arange(0, 32)
    run = (word_in_block // 8)[None, :]
    ok = rows[:, None] < N
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for block in range(split, BLOCKS, SPLIT):
        place = (rows[:, None] * BLOCKS + block) * 36
        d, dmin = halves(tl.load(words + place, mask=ok, other=0))
        a = tl.load(words + place + 1, mask=ok, other=0)
        b = tl.load(words + place + 2, mask=ok, other=0)
        c = tl.load(words + place + 3, mask=ok, other=0)
        word = tl.load(words + place + 4 + word_in_block[None, :], mask=ok, other=0)
        start = block * 256 + 64 * (word_in_block // 8) + 4 * (word_in_block % 8)
        for high in tl.static_range(2):
            scale, least = scale_and_minimum(d, dmin, a, b, c, run, high)
            for byte in tl.static_range(4):
                k = start + 32 * high + byte
                place_x = m[None, :] * (BLOCKS * 256) + k[:, None]
                xs = tl.load(x + place_x, mask=m[None, :] < M, other=0)
                code = (word >> (8 * byte + 4 * high)) & 15
                w = (scale * code.to(tl.float32) - least).to(xs.dtype)
                acc = tl.dot(w.to(DOT), xs.to(DOT), acc, input_precision="ieee")
    offsets = m[None, :] * N + rows[:, None]
    store = ok & (m[None, :] < M)
    counter = counters + tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    acc, store = gather(acc, offsets, store, partial, counter, M * N, split, SPLIT)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=store)
