"""The quantizing kernels give the bits of qlab.quantize; lanes go there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.kernels import gpu
from qlab.kernels.gpu.lanes import from_lanes, to_lanes

SCHEMES = [
    f"int4{asym}-g{group}{scale}"
    for asym in ("", "-asym")
    for group in (32, 64, 128)
    for scale in ("", "-sfp16")
]


def same(w: torch.Tensor, scheme: str) -> None:
    ours, theirs = gpu.quantize_int4(w, scheme), gpu.pack(qlab.quantize(w, scheme))
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.scales, theirs.scales) and ours.scales.dtype == theirs.scales.dtype
    assert (ours.zeros is None) == (theirs.zeros is None)
    if ours.zeros is not None:
        assert torch.equal(ours.zeros, theirs.zeros)
    assert (ours.offset, ours.group_size) == (theirs.offset, theirs.group_size)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_bit_for_bit(scheme):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(19, 384, generator=g)
    w[1], w[2], w[3, 5] = 0, -0.37, 1e4
    w[4] *= 1e-41  # subnormal
    w[5] *= 3e37 if "sfp16" not in scheme else 1e4
    w[6] = w[6].abs()  # no number below zero
    w[7] = torch.arange(384) % 15 - 7  # ties and exact codes
    w[8] = (torch.arange(384) % 15 - 7) / 2
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        finite = w.to(dtype)
        same(torch.where(finite.isfinite(), finite, torch.ones_like(finite)), scheme)


@pytest.mark.parametrize("format", ["int8", "fp8_e4m3"])
def test_tokens_bit_for_bit(format):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(12, 1100, generator=g)  # more than one block of the kernel, with a tail
    x[1], x[2], x[3, 5] = 0, 0.4, -300
    x[4] *= 1e-38
    x[5] *= 1e36
    x[6] = torch.exp2(torch.linspace(-20, 8, 1100))  # every binade of e4m3, subnormal numbers too
    x[7] = torch.arange(1100) / 1099 * 448
    x[8] *= 1e-41
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        finite = x.to(dtype)
        finite = torch.where(finite.isfinite(), finite, torch.ones_like(finite))
        if dtype == torch.bfloat16:  # of these the interpreter reads subnormal numbers as zero
            finite[finite.abs() < torch.finfo(dtype).tiny] = 0
        codes, scales = gpu.quantize_rows(finite, format)
        q = qlab.quantize(finite, f"{format}-token")
        assert torch.equal(scales, q.scale.reshape(-1))
        assert torch.equal(codes, q.codes)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 5), inputs=st.integers(1, 400), seed=st.integers(0, 9))
def test_lanes_there_and_back(rows, inputs, seed):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, inputs), generator=g, dtype=torch.uint8)
    words = to_lanes(codes)
    assert words.shape == (rows, -(-inputs // 128), 16) and words.dtype == torch.int32
    assert torch.equal(from_lanes(words, inputs), codes)
    # Plane p of word j is input 16 p + j.
    k = inputs - 1
    word = int(words[0, k // 128, k % 16]) >> (4 * (k % 128 // 16))
    assert word & 15 == int(codes[0, k])


def test_bad_input():
    w = torch.ones(4, 128)
    for scheme in ("int8-g32", "int4-g16", "int4-full-g32", "int4-g32-se8m0", "nf4-g64"):
        with pytest.raises(qlab.QlabError, match="not quantized on the GPU"):
            gpu.quantize_int4(w, scheme)
    with pytest.raises(qlab.QlabError, match="96"):
        gpu.quantize_int4(torch.ones(4, 96), "int4-g64")
    with pytest.raises(qlab.QlabError, match="int8 or fp8_e4m3"):
        gpu.quantize_rows(w, "int4")
    with pytest.raises(qlab.QlabError, match="matrix"):
        gpu.quantize_rows(w[0])
    assert gpu.quantize_rows(w[:0])[0].shape == (0, 128)
