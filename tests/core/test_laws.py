"""The laws of the chapter on the mathematics, each measured on the quantizer itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.core import Scheme, from_params, mse, quantize, sqnr
from qlab.core.noise import gaussian_error, rounding_noise, sqnr_law

SYMMETRIC = ["int2", "int3", "int4", "int6", "int8"]
ASYMMETRIC = ["int2-asym", "int4-asym", "int8-asym", "uint3", "uint8"]

tensors = hnp.arrays(
    np.float32,
    st.integers(2, 64).map(lambda n: (1, n)),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)
scales = st.floats(2.0**-10, 2.0**6, width=32)


def one(value, dtype=np.float32):
    """A parameter of one block of a tensor with two axes."""
    return np.array([[value]], dtype)


def with_params(x, word, scale, zero_point):
    """Round to nearest with parameters that are given instead of fitted."""
    scheme = Scheme.parse(f"{word}-tensor")
    zero = None if scheme.symmetric else one(zero_point, np.int32)
    return from_params(x, one(scale), zero, scheme)


# --- half a step --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(x=tensors, word=st.sampled_from(SYMMETRIC + ASYMMETRIC), scale=scales, share=st.floats(0, 1))
def test_inside_the_range_the_error_is_at_most_half_a_step(x, word, scale, share):
    """And outside it is the distance to the edge: nothing else happens to a value."""
    fmt = Scheme.parse(f"{word}-tensor")
    qmin, qmax = fmt.format.range(fmt.symmetric)
    zero = round(qmin + share * (qmax - qmin))
    q = with_params(x, word, scale, zero)
    offset = 0 if fmt.symmetric else zero
    low, high = (qmin - offset) * float(scale), (qmax - offset) * float(scale)
    x64, back = x.astype(np.float64), q.dequantize().astype(np.float64)
    inside = (x64 >= low - scale / 2) & (x64 <= high + scale / 2)
    # float32: the quotient is right to half a unit in the last place, of at most 255 steps.
    slack = scale * 256 * 2.0**-22
    assert (np.abs(x64 - back)[inside] <= scale / 2 + slack).all()
    edge = np.where(x64 < low, low, high)
    np.testing.assert_allclose(back[~inside], edge[~inside], rtol=2.0**-20, atol=slack)


# --- twice --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(x=tensors, word=st.sampled_from(SYMMETRIC + ASYMMETRIC), scale=scales, share=st.floats(0, 1))
def test_with_the_same_parameters_quantizing_twice_changes_nothing(x, word, scale, share):
    """Idempotence: always, for any scale and zero point, since x̂ lies on the grid itself."""
    fmt = Scheme.parse(f"{word}-tensor")
    qmin, qmax = fmt.format.range(fmt.symmetric)
    zero = round(qmin + share * (qmax - qmin))
    first = with_params(x, word, scale, zero)
    second = with_params(first.dequantize(), word, scale, zero)
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.dequantize(), second.dequantize())


@settings(deadline=None, max_examples=200)
@given(x=tensors, word=st.sampled_from(SYMMETRIC))
def test_with_parameters_fitted_anew_it_holds_when_symmetric(x, word):
    """The largest magnitude is a level, so the same scale is found again (to a unit of 2^-23)."""
    first = quantize(x, f"{word}-tensor")
    second = quantize(first.dequantize(), f"{word}-tensor")
    np.testing.assert_allclose(second.scale, first.scale, rtol=2.0**-22)
    np.testing.assert_array_equal(first.codes, second.codes)


@settings(deadline=None, max_examples=200)
@given(x=tensors, word=st.sampled_from(ASYMMETRIC))
def test_with_parameters_fitted_anew_it_holds_when_asymmetric_but_for_ties(x, word):
    """Rounding the zero point moves both ends of the grid alike: the range keeps its length."""
    first = quantize(x, f"{word}-tensor")
    ends = np.array([min(x.min(), 0), max(x.max(), 0)], np.float64) / float(first.scale[0, 0])
    # Not where an end lies within float32's rounding of a tie: see the next test.
    assume((np.abs(np.abs(ends % 1) - 0.5) > 1e-3).all())
    second = quantize(first.dequantize(), f"{word}-tensor")
    np.testing.assert_allclose(second.scale, first.scale, rtol=2.0**-20)
    np.testing.assert_array_equal(first.zero_point, second.zero_point)
    np.testing.assert_array_equal(first.codes, second.codes)


def test_with_parameters_fitted_anew_it_fails_on_a_tie():
    """[-0.5, 254.5] at scale 1: half to even takes -0.5 to 0 and 254.5 to 254, one step short."""
    x = np.array([[-0.5, 0.0, 100.0, 254.5]], np.float32)
    first = quantize(x, "uint8-tensor")
    second = quantize(first.dequantize(), "uint8-tensor")
    assert first.dequantize().tolist() == [[0.0, 0.0, 100.0, 254.0]]
    assert float(first.scale[0, 0]) == 1.0 and float(second.scale[0, 0]) < 1.0


# --- 6.02 decibels a bit ------------------------------------------------------------------------


def slope(decibels):
    """dB a bit, by least squares."""
    bits = np.array(sorted(decibels))
    return float(np.polyfit(bits, [decibels[b] for b in bits], 1)[0])


def test_a_uniform_signal_gains_six_decibels_a_bit():
    """The whole range is used and nothing clipped: the law with no constant, 20 log10(levels)."""
    x = np.random.default_rng(0).uniform(-1, 1, (1, 400_000)).astype(np.float32)
    measured = {}
    for bits in range(3, 9):
        # 2^bits cells tile [-1, 1] exactly; the zero point is an end of the range.
        q = with_params(x + 1, f"uint{bits}", 2 / (2**bits - 1), 0)
        measured[bits] = sqnr(x, q.dequantize() - 1)
        # The outer levels lie on the ends: 2^b - 1 steps, two of the cells being half.
        assert measured[bits] == pytest.approx(20 * math.log10(2**bits - 1), abs=0.03)
        assert measured[bits] == pytest.approx(sqnr_law(math.log2(2**bits - 1)), abs=0.03)
    # 2^b - 1 instead of 2^b: each bit is worth a little more than 6.02 dB while bits are few.
    assert 6.02 < slope(measured) < 6.25
    assert measured[8] - measured[7] == pytest.approx(6.02, abs=0.06)


def test_a_gaussian_with_a_fixed_range_gains_six_decibels_a_bit():
    """Range of 6 σ, so that clipping (10^-10 σ²) plays no part up to 8 bits."""
    x = np.random.default_rng(1).standard_normal((1, 400_000)).astype(np.float32)
    measured = {}
    for bits in range(4, 9):
        scale = 6 / (2 ** (bits - 1) - 1)
        measured[bits] = sqnr(x, with_params(x, f"int{bits}", scale, 0))
        law = 10 * math.log10(1 / rounding_noise(scale))
        assert measured[bits] == pytest.approx(law, abs=0.05)
        exact = -10 * math.log10(gaussian_error(bits, 6.0))
        assert measured[bits] == pytest.approx(exact, abs=0.05)
    # qmax doubles and adds one, so the restricted range gains a little over 6.02 at few bits.
    assert 6.02 < slope(measured) < 6.35
    assert measured[8] - measured[7] == pytest.approx(20 * math.log10(127 / 63), abs=0.05)


def test_where_the_law_fails():
    """2 bits over 4 σ: a step of 4 σ, nearly all values become 0; the noise is the signal."""
    x = np.random.default_rng(2).standard_normal((1, 200_000)).astype(np.float32)
    q = with_params(x, "int2", 4.0, 0)
    assert rounding_noise(4.0) > 1.3  # the model promises more noise than there is signal
    assert 0.8 < mse(x, q) < 1.0  # there cannot be
    error = q.dequantize() - x
    assert np.corrcoef(x.ravel(), error.ravel())[0, 1] < -0.5
    # At 8 bits the error knows nothing of the signal: |r| is of the order of 1 / sqrt(n).
    fine = with_params(x, "int8", 4.5 / 127, 0).dequantize() - x
    assert abs(np.corrcoef(x.ravel(), fine.ravel())[0, 1]) < 0.02


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_no_error_is_beyond_the_model_s_bound(bits, seed):
    """Not scale² / 12, which is a mean over a flat density, but scale² / 4 bounds any signal."""
    x = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)
    q = quantize(x, f"int{bits}-channel")
    for row in range(4):
        bound = float(q.scale[row, 0]) ** 2 / 4 * (1 + 1e-5)
        assert mse(x[row], q.dequantize()[row]) <= bound


# --- the bug ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(tensors)
def test_an_unsigned_zero_point_with_signed_codes_loses_what_lies_above(x):
    """The unsigned zero point z puts x > (127 - z) · scale beyond a signed code, and only that."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    assume(high - low > 1e-3)
    scale = np.float32((high - low) / 255)
    zero = round(-low / float(scale))
    unclipped = np.round(x / scale) + zero
    wrong = (np.clip(unclipped, -128, 127) - zero) * scale
    right = quantize(x, "int8-asym-tensor").dequantize()
    top = (127 - zero) * float(scale)
    lost = unclipped > 127
    np.testing.assert_allclose(wrong[lost], top, rtol=1e-6)
    kept = ~lost & (unclipped >= 0) & (unclipped <= 255)
    # Half a step more where the two computed zero points round a tie apart.
    assert (np.abs(wrong - right)[kept] <= scale * 1.01).all()
    # Read as unsigned, the same parameters are right.
    mended = (np.clip(unclipped, 0, 255) - zero) * scale
    assert np.abs(mended - x).max() <= scale * 1.01


def test_both_mends_give_the_same_values():
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) + 0.3
    signed, unsigned = quantize(x, "int8-asym-tensor"), quantize(x, "uint8-tensor")
    assert torch.equal(signed.dequantize(), unsigned.dequantize())
    assert torch.equal(signed.codes.int() + 128, unsigned.codes.int())
    assert qlab.sqnr(x, signed) > 40
