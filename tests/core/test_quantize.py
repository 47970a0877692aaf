"""Round-to-nearest on any scheme: its laws, NumPy against torch, and torch's own quantizers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.core import Scheme, quantize
from qlab.core.granularity import expand, to_blocks
from qlab.core.scheme import SCALE_DTYPES

SCHEMES = [
    f"{fmt}{sym}-{granularity}{scale}"
    for fmt in ("int8", "int5", "int4", "int3", "int2", "uint4", "uint8")
    for sym in ("", "-asym")
    for granularity in ("tensor", "channel", "channel1", "token", "g8", "b4x8")
    for scale in ("", "-sfp16")
    if not (fmt.startswith("u") and sym)
]

finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
weights = hnp.arrays(
    np.float32, st.tuples(st.sampled_from([4, 8]), st.sampled_from([8, 16])), elements=finite
)
# Magnitudes at which every scale is a normal float16, so that the law below holds for sfp16 too.
moderate = hnp.arrays(
    np.float32,
    st.tuples(st.sampled_from([4, 8]), st.sampled_from([8, 16])),
    elements=st.floats(-1000, 1000, width=32).map(lambda v: np.float32(round(v * 8) / 8)),
)


@settings(max_examples=60, deadline=None)
@given(w=moderate, word=st.sampled_from(SCHEMES))
def test_the_error_is_at_most_half_a_step(w, word):
    """|x - x̂| <= scale / 2 for every element, plus what rounding the scale itself clips off."""
    q = quantize(w, word)
    block = q.scheme.granularity.block_shape(w.shape)
    scale = expand(q.scale.astype(np.float64), block)
    error, _ = to_blocks(np.abs(w.astype(np.float64) - q.dequantize().astype(np.float64)), block)
    steps = q.scheme.format.qmax - q.scheme.format.qmin
    # A scale rounded down to float16 (relative error 2^-11) shortens the range by up to
    # steps * scale * 2^-11 at its end; float32 arithmetic adds a few units of 2^-24.
    shortened = steps * 2.0**-11 if q.scheme.scale_word == "sfp16" else 0.0
    # An asymmetric zero point is rounded, which may shift the range by half a step more.
    shifted = 0.0 if q.zero_point is None else 0.5
    assert (error <= scale * (0.5 + shortened + shifted + steps * 2.0**-22) + 1e-30).all()


@settings(max_examples=60, deadline=None)
@given(w=weights, word=st.sampled_from(SCHEMES))
def test_numpy_and_torch_give_the_same_codes(w, word):
    a, b = quantize(w, word), quantize(torch.from_numpy(w), word)
    np.testing.assert_array_equal(a.packed, b.packed.numpy())
    np.testing.assert_array_equal(a.scale, b.scale.numpy())
    if a.zero_point is not None:
        np.testing.assert_array_equal(a.zero_point, b.zero_point.numpy())
    np.testing.assert_array_equal(a.dequantize(), b.dequantize().numpy())


@settings(max_examples=60, deadline=None)
@given(w=moderate, word=st.sampled_from([s for s in SCHEMES if "sfp16" not in s]))
def test_zero_stays_zero_and_codes_stay_in_range(w, word):
    w = w.copy()
    w[0, 0] = 0.0
    q = quantize(w, word)
    assert q.dequantize()[0, 0] == 0.0
    low, high = q.scheme.format.range(q.scheme.symmetric)
    assert q.codes.min() >= low and q.codes.max() <= high


@settings(max_examples=60, deadline=None)
@given(w=moderate, word=st.sampled_from([s for s in SCHEMES if "asym" not in s and s[0] == "i"]))
def test_quantizing_twice_changes_nothing(w, word):
    """Symmetric: x̂ has the same largest magnitude up to rounding, hence the same codes."""
    once = quantize(w, word)
    twice = quantize(once.dequantize(), word)
    np.testing.assert_array_equal(once.codes, twice.codes)


def test_symmetric_negation_negates_the_codes():
    w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    for word in ("int8-channel", "int4-g16", "int2-tensor"):
        np.testing.assert_array_equal(quantize(-w, word).codes, -quantize(w, word).codes)


@pytest.mark.parametrize("axis", [0, 1])
def test_codes_equal_torch_per_channel(axis):
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(1)) * 3
    q = quantize(w, "int8-asym-channel" + ("1" if axis else ""))
    scale, zero = q.scale.flatten(), q.zero_point.flatten()
    theirs = torch.quantize_per_channel(w, scale, zero, axis, torch.qint8)
    # torch multiplies by 1 / scale where qlab divides; the two differ only on a rounding tie.
    differ = theirs.int_repr() != q.codes
    assert differ.float().mean() <= 0.002
    if not differ.any():
        torch.testing.assert_close(theirs.dequantize(), q.dequantize(), rtol=0, atol=0)


def test_fake_quantize_equals_torch():
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    for word in ("int8-asym-tensor", "int4-asym-tensor", "uint4-tensor"):
        q = quantize(w, word)
        fmt = q.scheme.format
        theirs = torch.fake_quantize_per_tensor_affine(
            w, float(q.scale.flatten()[0]), int(q.zero_point.flatten()[0]), fmt.qmin, fmt.qmax
        )
        torch.testing.assert_close(q.dequantize(), theirs, rtol=1e-6, atol=1e-6)


def test_sqnr_grows_six_decibels_a_bit():
    """A uniform signal on 2^b levels: SQNR = 20 log10(2^b - 1) dB, so 6.02 dB a bit in the limit.

    The noise of a step of 2 / (2^b - 1) is step^2 / 12, the signal's power is 1/3. The zero point
    moves the grid by up to half a step, which clips one end: hence the 0.15 dB at few bits.
    """
    x = np.random.default_rng(3).uniform(-1, 1, 200_000).astype(np.float32)
    measured = {b: qlab.sqnr(x, quantize(x, f"int{b}-asym-tensor")) for b in range(4, 9)}
    for bits, decibels in measured.items():
        assert decibels == pytest.approx(20 * math.log10(2**bits - 1), abs=0.15)
    assert measured[8] - measured[7] == pytest.approx(20 * math.log10(2), abs=0.1)


@pytest.mark.parametrize("word", ["int4-channel", "int4-asym-channel", "int4-g8-sfp16"])
def test_degenerate_input_is_defined(word):
    for fill in (0.0, 1e-45, -3.0, 3e38, 1e-8):
        w = np.full((2, 8), fill, np.float32)
        back = quantize(w, word).dequantize()
        assert np.isfinite(back).all()
        if fill in (0.0, -3.0):
            np.testing.assert_allclose(back, w, rtol=1e-3)
    mixed = np.array([[-3e38, 3e38, 0, 1, 0, 0, 0, 0]], np.float32)
    assert np.isfinite(quantize(mixed, word).dequantize()).all()
    assert quantize(np.zeros((0, 8), np.float32), word).dequantize().shape == (0, 8)
    assert float(quantize(np.float32(2.5), "int8-tensor").dequantize()) == pytest.approx(2.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_position(value):
    w = np.ones((4, 8), np.float32)
    w[2, 5] = value
    for x in (w, torch.from_numpy(w)):
        with pytest.raises(qlab.QlabError, match=r"position \(2, 5\)"):
            quantize(x, "int4-channel")
    with pytest.raises(qlab.QlabError, match="floating"):
        quantize(np.ones((4, 8), np.int32), "int4-channel")
    with pytest.raises(qlab.QlabError, match="NumPy arrays or torch"):
        quantize([1.0, 2.0], "int4-tensor")


def test_groups_that_do_not_divide_are_an_explicit_choice():
    w = np.random.default_rng(4).standard_normal((3, 172)).astype(np.float32)
    with pytest.raises(qlab.QlabError, match=r"172 = 1 x 128 \+ 44.*such as 86.*pad=True"):
        quantize(w, "int4-g128")
    q = quantize(w, "int4-g128", pad=True)
    assert q.dequantize().shape == (3, 172)
    whole = quantize(np.pad(w, ((0, 0), (0, 84))), "int4-g128")
    np.testing.assert_array_equal(q.dequantize(), whole.dequantize()[:, :172])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_comes_back(dtype):
    w = torch.randn(4, 16, dtype=dtype)
    q = quantize(w, "int8-channel")
    assert q.dequantize().dtype == dtype
    assert qlab.sqnr(w, q) > 30


def test_size_counts_every_stored_bit():
    w = np.zeros((64, 256), np.float32)
    assert quantize(w, "int4-g128").nbytes == 64 * 128 + 64 * 2 * 4
    assert quantize(w, "int4-g128-sfp16").bits_per_weight == 4 + 16 / 128
    assert quantize(w, "int4-asym-g32-sfp16").bits_per_weight == 4 + (16 + 4) / 32
    assert quantize(w, "int3-channel").bits_per_weight == 3 + 32 / 256
    q = quantize(w, "int5-asym-channel")
    stored = q.packed.nbytes + q.scale.nbytes + -(-64 * 5 // 8)
    assert q.nbytes == stored


@pytest.mark.parametrize("word", SCHEMES)
def test_a_scheme_is_its_word(word):
    scheme = Scheme.parse(word)
    assert Scheme.parse(scheme.name) == scheme == Scheme.parse(scheme)
    assert scheme.scale_word in SCALE_DTYPES


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("int17", "int7"),
        ("int0", "int"),
        ("in4-g128", "int4"),
        ("int4-g0", "at least 1"),
        ("int4-g128-channel", "two granularities"),
        ("int4-fast", "'fast' is not understood"),
        ("", "a scheme is a word"),
        ("uint4-sym", "no negative codes"),
        ("int4-b0x4", "at least 1"),
    ],
)
def test_bad_words_name_the_remedy(word, says):
    with pytest.raises(qlab.QlabError, match=says):
        Scheme.parse(word)
