"""Attention of one new token over a quantized KV cache, without writing the cache out as floats.

    out = softmax(q K^T / sqrt(d)) V,   K and V as codes * scale + minimum

A program takes one head of keys and values, with all query heads that share it, and every
``SPLIT``-th block of tokens. It keeps the largest score, the sum of exponentials and the weighted
sum of values so far, and rescales them when a larger score appears. The parts are joined after.

Sources: the running softmax: Dao et al., "FlashAttention", 2022 (arXiv 2205.14135), section 3.1;
parts of the tokens: Dao et al., "Flash-Decoding for long-context inference", 2023; keys with scales
along tokens, values along channels: Liu et al., "KIVI", 2024 (arXiv 2402.02750), section 3.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from qlab.errors import QlabError
from qlab.kernels.gpu.runtime import check_device, interpreted, load_triton

triton, tl = load_triton()


@triton.jit
def unpack(codes, scales, lows, head, t, d, tokens, D: tl.constexpr,
           ALONG_T: tl.constexpr, ALONG_D: tl.constexpr):  # fmt: skip
    """float32 (t, d) of 4-bit codes; ALONG_T tokens by ALONG_D channels share one scale."""
    inside = (t < tokens) & (d < D)
    byte = tl.load(codes + (head * tokens + t) * (D // 2) + d // 2, mask=inside, other=0)
    code = (byte >> (4 * (d % 2))) & 15
    block = (head * (tokens // ALONG_T) + t // ALONG_T) * (D // ALONG_D) + d // ALONG_D
    scale = tl.load(scales + block, mask=inside, other=0).to(tl.float32)
    return code.to(tl.float32) * scale + tl.load(lows + block, mask=inside, other=0).to(tl.float32)


@triton.jit
def attention_kernel(
    q, k_codes, k_scales, k_lows, v_codes, v_scales, v_lows, sums, largest, totals, tokens, shrink,
    SHARED: tl.constexpr, D: tl.constexpr, K_T: tl.constexpr, K_D: tl.constexpr,
    V_T: tl.constexpr, V_D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    SPLIT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """q (heads * SHARED, D) -> sums (SPLIT, heads * SHARED, D), largest and totals of each part."""
    head, split = tl.program_id(0), tl.program_id(1)
    h = tl.arange(0, 16)  # query heads that share this head of keys, at most 16
    d = tl.arange(0, BLOCK_D)
    row = head * SHARED + h
    own = (h[:, None] < SHARED) & (d[None, :] < D)
    query = tl.load(q + row[:, None] * D + d[None, :], mask=own, other=0)
    high = tl.full((16,), -1e30, dtype=tl.float32)
    total = tl.zeros((16,), dtype=tl.float32)
    acc = tl.zeros((16, BLOCK_D), dtype=tl.float32)
    for first in range(split * BLOCK_T, tokens, SPLIT * BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        keys = unpack(k_codes, k_scales, k_lows, head, t[None, :], d[:, None], tokens, D, K_T, K_D)
        keys = keys.to(query.dtype).to(DOT)
        score = tl.dot(query.to(DOT), keys, input_precision="ieee") * shrink
        score = tl.where(t[None, :] < tokens, score, -1e30)
        higher = tl.maximum(high, tl.max(score, axis=1))
        weight = tl.where(t[None, :] < tokens, tl.exp(score - higher[:, None]), 0.0)
        old = tl.exp(high - higher)
        total = total * old + tl.sum(weight, axis=1)
        value = unpack(v_codes, v_scales, v_lows, head, t[:, None], d[None, :], tokens, D, V_T, V_D)
        value = value.to(query.dtype).to(DOT)
        weight = weight.to(query.dtype).to(DOT)
        acc = acc * old[:, None] + tl.dot(weight, value, input_precision="ieee")
        high = higher
    part = split * tl.num_programs(0) * SHARED + row
    tl.store(sums + part[:, None] * D + d[None, :], acc, mask=own)
    tl.store(largest + part, high, mask=h < SHARED)
    tl.store(totals + part, total, mask=h < SHARED)


def decode_attention(
    q: torch.Tensor,
    keys: Any,
    values: Any,
    recent: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    split: int = 4,
) -> torch.Tensor:
    """Attention of one token: (query_heads, head_dim), of q's dtype.

    Args:
        q: (query_heads, head_dim); float16, bfloat16 or float32.
        keys, values: ``qlab.cache.OffsetTensor`` of shape (heads, tokens, head_dim), 4 bits, such
            as ``quantize_offset(k, "int4-asym-b32x1-sfp16")``.
        recent: keys and values (heads, few tokens, head_dim) that are not quantized yet.
        split: how many programs share the tokens of a head.

    Raises: QlabError for shapes that do not fit, other bits than 4, or more than 16 query heads
        for one of keys.

    Chapter: A GPU kernel in Triton.
    """
    heads, tokens, size = keys.shape
    if tuple(values.shape) != (heads, tokens, size) or q.ndim != 2 or q.shape[1] != size:
        raise QlabError(
            f"keys {tuple(keys.shape)}, values {tuple(values.shape)} and the query "
            f"{tuple(q.shape)} do not fit: use (heads, tokens, size) twice and (query heads, size)"
        )
    shared, rest = divmod(q.shape[0], heads)
    if rest or not 1 <= shared <= 16:
        raise QlabError(
            f"{q.shape[0]} query heads cannot share {heads} heads of keys: 1 to 16 each"
        )
    if keys.scheme.format.bits != 4 or values.scheme.format.bits != 4:
        raise QlabError("the attention kernel reads codes of 4 bits: use int4-asym")
    check_device(q, keys.packed, values.packed)
    blocks = [x.scheme.granularity.block_shape(tuple(x.shape))[-2:] for x in (keys, values)]
    device = q.device
    sums = torch.empty((split, q.shape[0], size), dtype=torch.float32, device=device)
    high, total = (torch.empty(sums.shape[:2], dtype=torch.float32, device=device) for _ in "ab")
    wide = interpreted() and q.dtype == torch.bfloat16
    dot = getattr(tl, str(torch.float32 if wide else q.dtype).removeprefix("torch."))
    parts = [p.contiguous() for x in (keys, values) for p in (x.packed, x.scale, x.minimum)]
    attention_kernel[(heads, split)](
        q.contiguous(), *parts, sums, high, total, tokens, 1 / math.sqrt(size), SHARED=shared,
        D=size, K_T=blocks[0][0], K_D=blocks[0][1], V_T=blocks[1][0], V_D=blocks[1][1],
        BLOCK_D=max(16, triton.next_power_of_2(size)), BLOCK_T=32, SPLIT=split, DOT=dot,
    )  # fmt: skip
    if recent is not None:
        k, v = (x.repeat_interleave(shared, 0).float() for x in recent)
        score = torch.einsum("hd,htd->ht", q.float(), k) / math.sqrt(size)
        top = score.amax(1)
        weight = (score - top[:, None]).exp()
        sums = torch.cat([sums, torch.einsum("ht,htd->hd", weight, v)[None]])
        high, total = torch.cat([high, top[None]]), torch.cat([total, weight.sum(1)[None]])
    # Parts have different largest scores: bring them to the largest of all.
    factor = (high - high.amax(0)).exp()
    return ((sums * factor[:, :, None]).sum(0) / (total * factor).sum(0)[:, None]).to(q.dtype)
