"""W8A8: weights and inputs of 8 bits, whole-number sums.

    y[m, n] = x_scale[m] * w_scale[n] * sum over k of  x_code[m, k] * w_code[n, k]

Products of 8-bit integers are summed in 32 bits: exact as long as K <= 133,143, that is
(2^31 - 1) / 127^2. The inputs are quantized before, each token with its own scale
(``qlab.kernels.gpu.quantize.rows``).

Source: Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022
(arXiv 2208.07339), section 3.1, without its outliers.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from qlab.kernels.gpu.runtime import load_triton
from qlab.kernels.gpu.split import gather

triton, tl = load_triton()


@triton.jit
def w8a8_kernel(
    x, w, x_scales, w_scales, out, partial, counters, M, N, K,
    EVEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """x: int8 (M, K), w: int8 (N, K), scales float32 (M,) and (N,) -> out (M, N)."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for first in range(split * BLOCK_K, K, SPLIT * BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < K) | EVEN
        in_x, in_w = (m[:, None] < M) & inside[None, :], (n[None, :] < N) & inside[:, None]
        a = tl.load(x + m[:, None] * K + k[None, :], mask=in_x, other=0)
        b = tl.load(w + n[None, :] * K + k[:, None], mask=in_w, other=0)
        acc = tl.dot(a, b, acc, out_dtype=tl.int32)
    offsets = m[:, None] * N + n[None, :]
    store = (m[:, None] < M) & (n[None, :] < N)
    counter = counters + tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    acc, store = gather(acc, offsets, store, partial, counter, M * N, split, SPLIT)
    scale = tl.load(x_scales + m, mask=m < M, other=0)[:, None]
    scale = scale * tl.load(w_scales + n, mask=n < N, other=0)[None, :]
    tl.store(out + offsets, (acc.to(tl.float32) * scale).to(out.dtype.element_ty), mask=store)
