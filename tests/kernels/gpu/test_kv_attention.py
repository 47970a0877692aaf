"""Attention over a 4-bit cache against float64 attention over what the cache stands for."""

from __future__ import annotations

import math

import pytest
import torch

import qlab
from qlab.cache import quantize_offset
from qlab.kernels.gpu.kv_attention import decode_attention

KIVI = ("int4-asym-b32x1-sfp16", "int4-asym-g32-sfp16")


def exact(q, k, v):
    shared = q.shape[0] // k.shape[0]
    k, v = (x.double().repeat_interleave(shared, 0) for x in (k, v))
    score = torch.einsum("hd,htd->ht", q.double(), k) / math.sqrt(q.shape[1])
    return torch.einsum("ht,htd->hd", score.softmax(1), v)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shared", [1, 4])
@pytest.mark.parametrize("schemes", [KIVI, ("int4-asym-g32", "int4-asym-g64")])
@pytest.mark.parametrize("split", [1, 3])
def test_against_float64(shared, schemes, split):
    k, v = numbers(2, 96, 64), numbers(2, 96, 64, seed=1)
    keys, values = quantize_offset(k, schemes[0]), quantize_offset(v, schemes[1])
    q = numbers(2 * shared, 64, seed=2) * 3
    y = decode_attention(q, keys, values, split=split)
    # float32 throughout.
    torch.testing.assert_close(
        y.double(), exact(q, keys.dequantize(), values.dequantize()), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_and_recent_tokens_and_odd_sizes(dtype):
    """80 channels are no power of two; 37 tokens are no whole blocks."""
    k, v = numbers(1, 37, 80), numbers(1, 37, 80, seed=1)
    keys, values = (quantize_offset(x, "int4-asym-g16-sfp16") for x in (k, v))
    recent = numbers(1, 5, 80, seed=3).to(dtype), numbers(1, 5, 80, seed=4).to(dtype)
    q = numbers(3, 80, seed=2).to(dtype)
    y = decode_attention(q, keys, values, recent)
    whole = [
        torch.cat([x.dequantize(), r.float()], 1)
        for x, r in zip((keys, values), recent, strict=True)
    ]
    # Keys, values and weights are rounded to 16 bits; bfloat16 is cut by the interpreter.
    unit = 2.0**-11 if dtype == torch.float16 else 2.0**-7
    assert (y.double() - exact(q, *whole)).abs().max() < 8 * unit


def test_huge_scores_and_more_parts_than_tokens():
    k = numbers(1, 32, 32) * 1000
    keys, values = (
        quantize_offset(k, "int4-asym-g32"),
        quantize_offset(numbers(1, 32, 32, seed=1), KIVI[1]),
    )
    q = numbers(1, 32, seed=2)
    y = decode_attention(q, keys, values, split=8)
    assert y.isfinite().all()
    torch.testing.assert_close(
        y.double(), exact(q, keys.dequantize(), values.dequantize()), rtol=1e-3, atol=1e-3
    )


def test_bad_input():
    keys = quantize_offset(numbers(2, 32, 32), "int4-asym-g32")
    with pytest.raises(qlab.QlabError, match="do not fit"):
        decode_attention(numbers(2, 16), keys, keys)
    with pytest.raises(qlab.QlabError, match="3 query heads cannot share 2"):
        decode_attention(numbers(3, 32), keys, keys)
    with pytest.raises(qlab.QlabError, match="4 bits"):
        three = quantize_offset(numbers(2, 32, 32), "int3-asym-g32")
        decode_attention(numbers(2, 32), three, three)
