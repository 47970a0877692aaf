"""Fake quantization: the values of QTensor, the gradients of the straight-through estimator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import from_params
from qlab.errors import QlabError
from qlab.training import (
    LSQ,
    PACT,
    LearnedRange,
    StraightThroughQuantizer,
    fake_quantize,
    first_step_size,
    lsq_quantize,
    pact_quantize,
)

SCHEMES = (
    "int8-tensor", "int4-channel", "int4-asym-g16", "int3-full-g32", "int2-asym-channel",
    "int4-channel1", "uint4-token", "int8-asym-token", "int4-b4x16", "ternary-channel",
    "binary-channel", "fp4_e2m1-g16", "nf4-g32", "fp8_e4m3-tensor", "mxfp4", "nvfp4",
    "int4-g16-sfp16", "fp16", "int1-channel",
)  # fmt: skip


def data(kind, seed=0, shape=(8, 32)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "zeros":
        x[3:] = 0
    elif kind == "outlier":
        x[2, 5] = 1e4
    elif kind == "constant":
        x[:] = -0.3
    elif kind == "denormal":
        x *= 1e-40
    elif kind == "huge":
        x *= 1e30
    return x


KINDS = ("normal", "zeros", "outlier", "constant", "denormal", "huge")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), word=st.sampled_from(SCHEMES), kind=st.sampled_from(KINDS),
    clip=st.booleans(),
)  # fmt: skip
def test_values_are_those_of_the_qtensor_and_every_weight_learns(seed, word, kind, clip):
    x = data(kind, seed).requires_grad_()
    y = fake_quantize(x, word, clip=clip)
    assert torch.equal(y, qlab.quantize(x.detach(), word).dequantize())
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y.backward(g)
    # The gradient is handed through, whole or not at all.
    assert torch.equal(x.grad, g) or (clip and bool(((x.grad == g) | (x.grad == 0)).all()))
    q = qlab.Scheme.parse(word)
    if q.format.affine and not q.full and q.format.bits > 1 and q.scale_word == "sfp32":
        assert torch.equal(x.grad, g)  # a range from min to max clips nothing


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), s=st.floats(1e-3, 1.0))
def test_the_clip_mask_stops_what_is_outside(seed, bits, s):
    x = data("normal", seed).requires_grad_()
    scale = torch.full((8, 1), s)
    y = fake_quantize(x, f"int{bits}-channel", scale)
    assert torch.equal(
        y,
        from_params(x.detach(), scale, None, qlab.Scheme.parse(f"int{bits}-channel")).dequantize(),
    )
    y.sum().backward()
    top = 2 ** (bits - 1) - 1
    assert torch.equal(x.grad.bool(), (x.detach() / scale).round().abs() <= top)
    free = x.detach().clone().requires_grad_()
    fake_quantize(free, f"int{bits}-channel", scale, clip=False).sum().backward()
    assert bool((free.grad == 1).all())


def test_dtypes_and_shapes():
    x = torch.randn(2, 3, 32, dtype=torch.bfloat16, requires_grad=True)
    y = fake_quantize(x, "int8-token")
    assert y.dtype == torch.bfloat16 and y.shape == x.shape
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    # One scale a token: a token by itself gives the same.
    assert torch.equal(y[1, 2], fake_quantize(x[1, 2][None], "int8-token")[0])


# The formula, written down once more, elementwise and in float64.
def lsq_by_the_paper(v, s, qn, qp):
    r = v / s
    if r <= -qn:
        return -qn, 0.0
    if r >= qp:
        return qp, 0.0
    return round(r) - r, 1.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), s=st.floats(0.01, 1.0))
def test_lsq_has_the_gradient_of_the_paper(seed, bits, s):
    v = data("normal", seed, (4, 8)).requires_grad_()
    scale = torch.full((4, 1), s, requires_grad=True)
    g = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    lsq_quantize(v, scale, None, f"int{bits}-full-channel", grad_scale=0.25).backward(g)
    qn, qp = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    want = torch.zeros(4, 1, dtype=torch.float64)
    passes = torch.zeros(4, 8)
    for i in range(4):
        for j in range(8):
            # The quotient in float32, as the layer computes it: float64 may round another way.
            r = (v[i, j] / scale[i, 0]).item()
            d, passes[i, j] = lsq_by_the_paper(r, 1.0, qn, qp)
            want[i] += g[i, j].item() * d * 0.25
    # Sums of 8 float32 products of size up to qp.
    torch.testing.assert_close(scale.grad.double(), want, rtol=1e-4, atol=2e-6 * qp)
    assert torch.equal(v.grad, g * passes)


def test_lsq_starts_and_scales_its_gradient_as_the_paper_says():
    v = torch.tensor([[1.0, -3.0, 2.0, -2.0]])
    assert first_step_size(v, "int4-channel").item() == pytest.approx(2 * 2.0 / 7**0.5)
    # g = 1 / sqrt(N Q_P)
    assert LSQ("int4-channel", torch.ones(1, 1), count=4).grad_scale == pytest.approx(28**-0.5)
    # Along the paper's figure 2: the gradient of s grows towards the border and is Q_P beyond it.
    for x, want in ((0.4, -0.4), (0.6, 0.4), (1.4, -0.4), (2.9, 3.0), (3.1, 3.0), (-9.0, -3.0)):
        s = torch.ones(1, 1, requires_grad=True)
        lsq_quantize(torch.tensor([[x]]), s, None, "int3-channel").backward()
        assert s.grad.item() == pytest.approx(want if abs(x) != 2.9 else 0.1, abs=1e-6)


def test_learned_range_gradients_by_finite_differences():
    # What is clipped moves with its end of the range; that derivative exists, so measure it.
    x = torch.tensor([[5.0, 9.0, -7.0, 40.0]])
    r = LearnedRange("int8-asym-channel", torch.tensor([[0.05]]), torch.tensor([[0]]))
    y = r(x)
    assert torch.equal(y, r.qtensor(x).dequantize())
    y[0, 3].backward()  # above the range: its value is about high
    assert r.high.grad.item() == pytest.approx(1.0, abs=0.02)
    assert r.low.grad.item() == pytest.approx(0.0, abs=0.02)
    r.zero_grad()
    r(x)[0, 2].backward()  # below: low
    assert r.low.grad.item() == pytest.approx(1.0, abs=0.02)


def test_pact_is_the_paper_on_activations():
    x = torch.tensor([[-1.0, 0.0, 0.4, 0.9, 1.0, 3.0]], requires_grad=True)
    alpha = torch.tensor([[1.0]], requires_grad=True)
    y = pact_quantize(x, alpha, "uint2-tensor")
    # round(clip(x, 0, α) · 3) / 3
    assert torch.allclose(y, torch.tensor([[0, 0, 1, 3, 3, 3]]) / 3)
    y.sum().backward()
    assert alpha.grad.item() == 2  # the elements >= α
    assert x.grad.tolist() == [[0, 1, 1, 1, 0, 0]]
    signed = torch.tensor([[1.0]], requires_grad=True)
    pact_quantize(torch.tensor([[-5.0, 0.2, 5.0, 7.0]]), signed, "int4-channel").sum().backward()
    assert signed.grad.item() == 1  # two above, one below


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), kind=st.sampled_from(KINDS),
    word=st.sampled_from(["int4-channel", "int3-asym-g16", "uint4-g16", "int2-full-channel",
                          "fp4_e2m1-g16", "ternary-channel", "int4-g16-sfp16", "nf4-g32"]),
    make=st.sampled_from([LSQ, LearnedRange, PACT]),
)  # fmt: skip
def test_what_is_learned_is_what_is_packed(seed, kind, word, make):
    x, scheme = data(kind, seed), qlab.Scheme.parse(word)
    start = qlab.quantize(x, word)
    if make is PACT and not (
        scheme.format.affine and (scheme.symmetric or not scheme.format.signed)
    ):
        if scheme.format.name != "ternary":
            with pytest.raises(QlabError, match="PACT learns"):
                make(word, start.scale, start.zero_point)
            return
    quantizer = make(word, start.scale, start.zero_point, count=16)
    torch.manual_seed(seed)
    for p in quantizer.parameters():  # somewhere else, as after training
        p.data *= 1 + 0.3 * torch.rand_like(p)
    x.requires_grad_()
    y = quantizer(x)
    assert torch.equal(y, quantizer.qtensor(x).dequantize())
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [x, *quantizer.parameters()])


def test_a_scale_that_passes_zero_still_counts():
    q = LSQ("int4-channel", torch.tensor([[0.01]]))
    q.scale.data -= 0.03
    x = torch.tensor([[0.05, -0.02]])
    assert torch.equal(q(x), fake_quantize(x, "int4-channel", torch.tensor([[0.02]])))


@pytest.mark.parametrize("word", ["kmeans4-channel", "vq8x4", "int8-global"])
def test_schemes_without_a_gradient_say_so(word):
    with pytest.raises(QlabError, match="cannot be trained"):
        fake_quantize(torch.randn(8, 8), word)
    with pytest.raises(QlabError, match="cannot be trained"):
        StraightThroughQuantizer(word)


def test_bad_input():
    x = torch.randn(4, 30)
    with pytest.raises(QlabError, match="does not divide"):
        fake_quantize(x, "int4-g16")
    with pytest.raises(QlabError, match="does not divide"):
        fake_quantize(x, "int4-g16", torch.ones(4, 2))
    x[1, 2] = float("nan")
    with pytest.raises(QlabError, match=r"nan at position \(1, 2\)"):
        fake_quantize(x, "int4-channel")
    with pytest.raises(QlabError, match=r"nan at position \(1, 2\)"):
        lsq_quantize(x, torch.ones(4, 1), None, "int4-channel")
    with pytest.raises(QlabError, match="needs a zero_point"):
        fake_quantize(torch.randn(4, 4), "int4-asym-channel", torch.ones(4, 1))
    with pytest.raises(QlabError, match="no scale to learn"):
        LSQ("fp16", torch.ones(1, 1))
    with pytest.raises(QlabError, match="depend on one another"):
        LSQ("nvfp4", torch.ones(1, 1))
