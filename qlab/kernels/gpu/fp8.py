"""FP8: weights and inputs in fp8_e4m3, a sign, four bits of exponent and three of mantissa.

    y[m, n] = x_scale[m] * w_scale[n] * sum over k of  value(x[m, k]) * value(w[n, k])

GPUs from compute capability 8.9 (Ada, Hopper) on multiply such numbers themselves: ``NATIVE``.
Elsewhere, and under the interpreter, ``widen`` turns each into a float16 with three operations,
exactly, and the same sum is taken of those.

Sources: Micikevicius et al., "FP8 Formats for Deep Learning", 2022 (arXiv 2209.05433), section 3;
the sums of Hopper's units: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024 (arXiv 2412.19437),
section 3.3.2.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from qlab.kernels.gpu.runtime import load_triton
from qlab.kernels.gpu.split import gather

triton, tl = load_triton()


@triton.jit
def widen(code):
    """uint8 patterns -> float16 of value / 256.

    float16 has five bits of exponent, biased by 15, not 7: with the same bits in the field the
    number is 2^-8 of what it was; subnormal numbers too. (NaN, 0x7f, becomes 480 / 256: what qlab
    writes has none.)
    """
    code = code.to(tl.uint16)
    bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
    return bits.to(tl.float16, bitcast=True)


@triton.jit
def fp8_kernel(
    x, w, x_scales, w_scales, out, partial, counters, M, N, K,
    NATIVE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """x: fp8 (M, K), w: fp8 (N, K), scales float32 (M,) and (N,) -> out (M, N).

    NATIVE: x and w point to float8 numbers; otherwise to uint8 with the same bits.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(split * BLOCK_K, K, SPLIT * BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < K) | EVEN
        in_x, in_w = (m[:, None] < M) & inside[None, :], (n[None, :] < N) & inside[:, None]
        a = tl.load(x + m[:, None] * K + k[None, :], mask=in_x, other=0.0)
        b = tl.load(w + n[None, :] * K + k[:, None], mask=in_w, other=0.0)
        if NATIVE:
            # Hopper's units keep about 14 bits of such sums: move them to float32 every 128 inputs.
            acc = tl.dot(a, b, acc, max_num_imprecise_acc=128)
        else:
            acc = tl.dot(widen(a), widen(b), acc)
    offsets = m[:, None] * N + n[None, :]
    store = (m[:, None] < M) & (n[None, :] < N)
    counter = counters + tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    acc, store = gather(acc, offsets, store, partial, counter, M * N, split, SPLIT)
    scale = tl.load(x_scales + m, mask=m < M, other=0)[:, None]
    scale = scale * tl.load(w_scales + n, mask=n < N, other=0)[None, :]
    if not NATIVE:
        scale = scale * 65536  # 256 for either factor
    tl.store(out + offsets, (acc * scale).to(out.dtype.element_ty), mask=store)
