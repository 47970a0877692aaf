"""EETQ's int8: its definition, the tools that share parts of it, and its layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import Scheme
from qlab.methods.eetq import ORDER, eetq, eetq_layout, from_eetq_layout

HALF = Scheme.parse("int8-full-channel-sfp16")
SINGLE = Scheme.parse("int8-full-channel")


def by_hand(w):
    """FasterTransformer's loop, one weight at a time: codes and float32 scales."""
    codes, scales = [], []
    for row in np.asarray(w, np.float32):
        scale = np.float32(max(abs(float(v)) for v in row) / 128)
        scales.append(scale)
        codes.append([])
        for v in row:
            y = float(np.float32(v) / scale) if scale else 0.0
            away = math.copysign(math.floor(abs(y) + 0.5), y)  # float64: the sum is exact
            codes[-1].append(max(-128, min(127, int(away))))
    return np.array(codes, np.int8), np.array(scales, np.float32)


def inputs():
    """name -> float32 (8, 64): ordinary, then hard."""
    rng = np.random.default_rng(0)
    normal = (rng.standard_normal((8, 64)) * 0.05).astype(np.float32)
    outlier, gaps, halves = normal.copy(), normal.copy(), normal.copy()
    outlier[::2, 7] = 50
    gaps[2:4] = 0
    halves[:] = (np.arange(64) - 32.5) / 128
    halves[:, 0] = -1
    return {
        "normal": normal,
        "outlier": outlier,
        "rows of zeros": gaps,
        "constant rows": np.repeat(np.linspace(-2, 2, 8, dtype=np.float32)[:, None], 64, 1),
        "halves": halves,
        "below a half": np.full((8, 64), 0.49999997, np.float32) * np.eye(8, 64, dtype=np.float32)
        + np.float32(128) * np.eye(8, 64, k=9, dtype=np.float32),
        "tiny": normal * np.float32(1e-30),
        "huge": normal * np.float32(1e38),
    }


@pytest.mark.parametrize("what", inputs())
def test_it_is_the_published_loop(what):
    w = inputs()[what]
    codes, scales = by_hand(w)
    q = eetq(torch.from_numpy(w), None, SINGLE)
    assert np.array_equal(q.codes.numpy(), codes)
    there = scales > 0
    assert np.array_equal(q.scale.numpy()[there, 0], scales[there])
    assert (q.dequantize().numpy()[~there] == 0).all()
    assert np.array_equal(eetq(w, None, SINGLE).codes, codes)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_scales_of_half_precision_weights_are_exact(seed):
    """Division by 128 only lowers the exponent; division by 127 rounds."""
    w = torch.from_numpy(np.random.default_rng(seed).standard_normal((8, 32))).half()
    one, other = eetq(w, None, HALF), eetq(w, None, SINGLE)
    assert one.scale.dtype == torch.float16 and torch.equal(one.scale.float(), other.scale)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale.float() * 128, w.abs().amax(1, keepdim=True).float())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_errors_are_below_half_a_step_except_at_the_positive_end(seed):
    w = torch.from_numpy(np.random.default_rng(seed).standard_normal((4, 64))).float()
    q = eetq(w, None, SINGLE)
    steps = (q.dequantize() - w) / q.scale
    inside = w / q.scale < 127.5
    assert steps[inside].abs().max() <= 0.5 * (1 + 1e-5)
    assert (steps[~inside] >= -1 - 1e-5).all() and (steps[~inside] <= -0.5 + 1e-5).all()


@pytest.mark.oracle("method eetq", "torch", "equal codes")
def test_torch_gives_the_same_codes():
    """torch.quantize_per_channel with these scales; it rounds halves to even, and none is here."""
    w = torch.from_numpy(inputs()["normal"])
    scale = w.abs().amax(1) / 128
    theirs = torch.quantize_per_channel(
        w, scale.double(), torch.zeros(8, dtype=torch.long), 0, torch.qint8
    )
    q = eetq(w, None, SINGLE)
    assert torch.equal(q.codes, theirs.int_repr())
    assert torch.allclose(q.dequantize(), theirs.dequantize(), rtol=1e-6)


def test_torchs_kernel_for_such_weights_multiplies_them():
    """_weight_int8pack_mm: half-width activations with int8 weights and a scale a row, on a CPU."""
    g = torch.Generator().manual_seed(1)
    w = torch.randn(96, 128, generator=g).bfloat16()
    x = torch.randn(5, 128, generator=g).bfloat16()
    q = eetq(w, None, SINGLE)
    theirs = torch._weight_int8pack_mm(x, q.codes, q.scale.flatten().bfloat16())
    exact = x.double() @ q.dequantize().double().T
    # Scales and results in bfloat16 are rounded to 2^-9 each.
    assert (theirs.double() - exact).abs().max() < 2**-7 * exact.abs().max()


def test_bitsandbytes_differs_by_the_divisor_alone():
    import bitsandbytes.functional as bnb

    w = torch.from_numpy(inputs()["normal"]).half()
    codes, absmax, _ = bnb.int8_vectorwise_quant(w)
    q = eetq(w, None, HALF)
    assert torch.equal(q.scale.flatten().float() * 128, absmax)
    assert (codes.int() - q.codes.int()).abs().max() <= 1
    assert codes.abs().max() == 127 and q.codes.min() == -128


def test_the_step_is_finer_by_the_divisor():
    """128/127 = 0.07 dB less noise, for weights that are not at the clipped end."""
    w = torch.randn(64, 4096, generator=torch.Generator().manual_seed(2))
    gain = qlab.sqnr(w, eetq(w, None, SINGLE)) - qlab.sqnr(w, qlab.quantize(w, "int8-channel"))
    assert gain == pytest.approx(20 * math.log10(128 / 127), abs=0.03)


def test_the_layout_moves_every_byte_to_where_the_source_says():
    """The index arithmetic of FasterTransformer's three loops, one byte at a time."""
    out, inside = 128, 192
    codes = np.random.default_rng(0).integers(-128, 128, (out, inside)).astype(np.int8)
    stored = eetq_layout(codes).reshape(-1)
    expected = np.empty(out * inside, np.int16)
    for o in range(out):
        for i in range(inside):
            within = i % 16
            source = i - within + 8 * (within % 4 // 2) + within % 2 + 2 * (within // 4)
            tile, at = divmod(i, 64)
            place = (o // 2) * 2 * inside + tile * 2 * 64 + (o % 2) * 64 + at
            place = place - place % 4 + (0, 2, 1, 3)[place % 4]
            expected[place] = int(codes[o, source]) + 128
    assert np.array_equal(stored.view(np.uint8), expected)
    assert eetq_layout(codes).shape == (inside, out)
    # The order in each 16 inputs, as the source's comment prints it.
    assert ORDER == (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_the_layout_can_be_undone(seed, rows, columns):
    shape = (64 * rows, 64 * columns)
    codes = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
    assert np.array_equal(from_eetq_layout(eetq_layout(codes)), codes)
    assert np.array_equal(from_eetq_layout(eetq_layout(torch.from_numpy(codes))), codes)


def test_scales_below_half_precision():
    """EETQ's scale would be 0 or nearly so; here the codes follow the scale that is stored."""
    w = torch.from_numpy(inputs()["normal"]) * 1e-5
    q = eetq(w, None, HALF)
    assert (q.dequantize() - w).abs().max() <= 2.0**-25 * (1 + 1e-3) + 1e-12
    zero = eetq(torch.zeros(2, 64), None, HALF)
    assert (zero.codes == 0).all() and (zero.scale == 1).all()


def test_what_is_refused_and_what_it_takes():
    w = torch.from_numpy(inputs()["normal"])
    for word in ("int4-channel", "int8-asym-channel", "int8-g64", "int8-tensor", "nf4-g64"):
        with pytest.raises(qlab.QlabError, match="int8-full-channel-sfp16"):
            eetq(w, None, Scheme.parse(word))
    with pytest.raises(qlab.QlabError, match="multiples of 64"):
        eetq_layout(np.zeros((64, 96), np.int8))
    with pytest.raises(qlab.QlabError, match="matrices"):
        eetq(w[0], None, SINGLE)
    bad = w.clone()
    bad[1, 2] = float("inf")
    with pytest.raises(qlab.QlabError, match=r"\(1, 2\)"):
        eetq(bad, None, SINGLE)
    q = eetq(w, None, Scheme.parse("int8-channel"))
    assert q.scheme.full and torch.equal(q.codes, eetq(w, None, SINGLE).codes)
    assert eetq(w.half(), None, HALF).bits_per_weight == 8 + 16 / 64
    model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    _, report = qlab.quantize_model(model, "eetq", "int8-full-channel-sfp16")
    assert report.layers[0].sqnr > 40
