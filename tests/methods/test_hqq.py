"""HQQ: what its steps guarantee, what a real zero point costs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import Scheme
from qlab.methods.hqq import (
    HqqOptions,
    RealZeroTensor,
    half_quadratic,
    half_quadratic_scale,
    hqq,
    shrink,
)

seeds = st.integers(0, 2**32 - 1)


def normal(seed, shape=(8, 64), size=0.05):
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(size)
    return torch.from_numpy(w)


def quantized(w, word, **options):
    return hqq(w, None, Scheme.parse(word), HqqOptions(**options))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, bits=st.integers(1, 8), size=st.sampled_from([1e-2, 0.1, 1.0]))
def test_without_shrinkage_the_squared_error_never_grows(seed, bits, size):
    """Then the two steps are those of Lloyd: nearest codes, then the mean."""
    w = normal(seed, size=size)
    o = HqqOptions(lp_norm=1.0, beta=1e-9, early_stop=False, iterations=12)
    found = half_quadratic(w, bits, o)
    top = 2**bits - 1
    before = None
    for z in found.zeros:
        codes = (w / found.scale + z).round().clamp(0, top)
        error = (((codes - z) * found.scale - w).double() ** 2).sum(1)
        if before is not None:
            # float32 of z and of 1/scale, each some 2^-24 of the largest magnitude of a group
            slack = (w.abs().amax(1).double() * 2**-20) ** 2 * w.shape[1] + 1e-5 * before
            assert (error <= before + slack).all()
        before = error


@settings(max_examples=40, deadline=None)
@given(seed=seeds, p=st.floats(0.1, 1.0), beta=st.floats(0.1, 1e4))
def test_shrinkage_never_changes_a_sign_nor_adds(seed, p, beta):
    x = normal(seed, size=1.0).double()
    y = shrink(x, beta, p)
    assert (y * x >= 0).all() and (y.abs() <= x.abs()).all()
    border = beta ** (-1 / (2 - p))
    assert (y[x.abs() < border * (1 - 1e-9)] == 0).all()
    assert (y[x.abs() > border * (1 + 1e-9)] != 0).all()
    larger = x.abs().flatten().sort().values
    assert (shrink(larger, beta, p).diff() >= -1e-12).all()


def test_shrinkage_with_p_1_solves_its_problem():
    """Soft thresholding is the exact minimum of |y| + β/2 (y - x)²: checked on a fine grid."""
    grid = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    for x in (-2.0, -0.3, 0.0, 0.1, 0.7, 2.5):
        for beta in (0.5, 3.0, 40.0):
            best = grid[(grid.abs() + beta / 2 * (grid - x) ** 2).argmin()]
            ours = shrink(torch.tensor([x], dtype=torch.float64), beta, 1.0)
            assert ours.item() == pytest.approx(best.item(), abs=2e-4)  # two steps of the grid


@settings(max_examples=25, deadline=None)
@given(seed=seeds, bits=st.integers(2, 8))
def test_the_default_never_shrinks_small_weights(seed, bits):
    """Below 10^(-1/1.3) = 0.17 every error is erased: any p and any β up to 10 do the same."""
    w = normal(seed)
    most = half_quadratic(w, bits)
    for o in (HqqOptions(lp_norm=1.0, beta=1.0), HqqOptions(beta=1e-6)):
        other = half_quadratic(w, bits, o)
        assert torch.equal(most.zero, other.zero) and torch.equal(most.codes, other.codes)


@settings(max_examples=8, deadline=None)
@given(seed=seeds, word=st.sampled_from(["g32", "channel", "tensor", "b4x16"]))
def test_blocks_of_any_form_are_those_of_the_rows(seed, word):
    w = normal(seed)
    q = quantized(w, f"uint4-{word}", early_stop=False)
    block = q.scheme.granularity.block_shape((8, 64))
    for i in range(0, 8, block[0]):
        for j in range(0, 64, block[1]):
            part = w[i : i + block[0], j : j + block[1]]
            alone = half_quadratic(part.reshape(1, -1), 4, HqqOptions(early_stop=False))
            at = (i // block[0], j // block[1])
            # Sums over rows of another number may be taken in another order: some 2^-22.
            assert float(q.zero_point[at]) == pytest.approx(alone.zero.item(), rel=1e-5, abs=1e-5)
            assert float(q.scale[at]) == alone.scale.item()


def test_numpy_and_torch_agree():
    w = normal(3, (16, 128))
    for word in ("int4-asym-g32", "int3-g32"):
        a, b = quantized(w, word), quantized(w.numpy(), word)
        np.testing.assert_allclose(a.dequantize().numpy(), b.dequantize(), atol=2e-6)
        assert isinstance(b.packed, np.ndarray)


def test_signed_and_unsigned_codes_stand_for_the_same():
    w = normal(4, (16, 128))
    for bits in range(1, 9):
        a, b = quantized(w, f"int{bits}-asym-g32"), quantized(w, f"uint{bits}-g32")
        assert torch.equal(a.codes.int() + 2 ** (bits - 1), b.codes.int())
        # The shifted zero point loses its last bits: 2^-24 of 128 steps.
        step = float(b.scale.max())
        assert (a.dequantize() - b.dequantize()).abs().max() <= step * 2**-15


def test_bits_are_counted_with_the_zero_points_as_they_are_stored():
    w = normal(5, (16, 128))
    q = quantized(w, "int4-asym-g64")
    assert isinstance(q, RealZeroTensor) and q.bits_per_weight == 4 + 64 / 64
    half = quantized(w, "int4-asym-g64-sfp16")
    assert half.bits_per_weight == 4 + 32 / 64 and half.zero_point.dtype == torch.float16
    whole = quantized(w, "int4-asym-g64-sfp16", zero="integer")
    assert not isinstance(whole, RealZeroTensor) and whole.bits_per_weight == 4 + (16 + 4) / 64
    assert whole.zero_point.dtype == torch.int32
    # Half precision costs next to nothing.
    assert abs(qlab.sqnr(w, q) - qlab.sqnr(w, half)) < 0.05


def test_what_a_real_zero_point_buys():
    """Normal weights in groups of 64: HQQ beats the range, and rounding z gives that back."""
    w = normal(6, (256, 256))
    for bits, least in ((4, 0.3), (3, 0.2), (2, 0.2)):
        real = qlab.sqnr(w, quantized(w, f"int{bits}-asym-g64"))
        whole = qlab.sqnr(w, quantized(w, f"int{bits}-asym-g64", zero="integer"))
        plain = qlab.sqnr(w, qlab.quantize(w, f"int{bits}-asym-g64"))
        assert real > plain + least
        assert real > whole + least and whole > plain - 0.3


@settings(max_examples=25, deadline=None)
@given(seed=seeds, bits=st.integers(2, 8))
def test_a_moving_scale_is_never_worse_than_the_range(seed, bits):
    w = normal(seed)
    qmax = 2 ** (bits - 1) - 1
    scale, errors = half_quadratic_scale(w, -qmax, qmax)

    def error(s):
        codes = (w / s).round().clamp(-qmax, qmax)
        return (codes * s - w).abs().mean(1)

    plain = w.abs().amax(1, keepdim=True) / qmax
    assert (error(scale) <= error(plain) * (1 + 1e-5)).all()
    assert len(errors) >= 1


def test_symmetric_schemes_gain_too():
    w = normal(7, (128, 256))
    for bits in (4, 3, 2):
        word = f"int{bits}-g64"
        assert qlab.sqnr(w, quantized(w, word)) > qlab.sqnr(w, qlab.quantize(w, word)) + 0.2
        full = quantized(w, f"int{bits}-full-g64")
        assert full.codes.min() >= -(2 ** (bits - 1)) and full.zero_point is None


@pytest.mark.parametrize("word", ["int4-asym-g16", "int2-g16", "int4-asym-g16-sfp16"])
def test_hard_input(word):
    w = torch.zeros(8, 32)
    w[1] = 3.0
    w[2] = -1e-7
    w[3, 5] = 1e4
    w[4] = torch.linspace(1e-40, 5e-40, 32)
    w[5] = torch.linspace(1.0, 1.0 + 1e-5, 32)
    w[6] = torch.linspace(-2e30, 1e30, 32) if "sfp16" not in word else 0
    q = quantized(w, word)
    x = q.dequantize()
    assert torch.isfinite(x).all()
    assert (x[0] == 0).all() and x[1].allclose(w[1], rtol=1e-3)
    # The library's limit: a range below 1e-4 becomes its mean.
    if "asym" in word:
        assert (x[5] - w[5]).abs().max() < 1e-4 and (x[4] == 0).all()
    assert abs(float(x[3, 5]) / 1e4 - 1) < 0.2


def test_what_is_refused():
    w = normal(0)
    for word, message in (
        ("nf4-g64", "quantizes to integers"),
        ("ternary-channel", "quantizes to integers"),
        ("int4-asym-g64-sbf16", "float32 or float16"),
        ("int4-asym-g48", "does not divide"),
    ):
        with pytest.raises(qlab.QlabError, match=message):
            quantized(w, word)
    bad = w.clone()
    bad[2, 3] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"\(2, 3\)"):
        quantized(bad, "int4-asym-g64")
    wide = torch.tensor([[-3e38, 3e38] * 32])
    with pytest.raises(qlab.QlabError, match="overflows float32"):
        quantized(wide, "int4-asym-g64")
    far = torch.linspace(1e3, 1e3 + 1e-2, 64)[None]
    with pytest.raises(qlab.QlabError, match="beyond float16"):
        quantized(far, "int4-asym-g64-sfp16")
    with pytest.raises(qlab.QlabError, match="empty"):
        quantized(torch.zeros(0, 64), "int4-asym-g64")
    for options in ({"lp_norm": 0.0}, {"beta": -1.0}, {"iterations": 0}, {"zero": "half"}):
        with pytest.raises(qlab.QlabError):
            HqqOptions(**options)


def test_padding_and_a_model():
    w = normal(8, (8, 100))
    q = quantized(w, "int4-asym-g64", pad=True)
    assert q.dequantize().shape == (8, 100) and qlab.sqnr(w, q) > 15

    layer = torch.nn.Linear(64, 32, bias=False)
    model = torch.nn.Sequential(layer)
    small, report = qlab.quantize_model(model, "hqq", "int4-asym-g64")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    expected = x @ quantized(layer.weight.detach(), "int4-asym-g64").dequantize().T
    assert torch.allclose(small(x), expected, atol=1e-5)
    assert report.layers[0].bits_per_weight == 5
