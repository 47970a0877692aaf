"""Error measures: their laws, NumPy against torch, and input at the edge of the range."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.core import cosine, max_error, mse, sqnr

vectors = hnp.arrays(
    np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3).map(lambda v: round(v, 3))
)
pairs = vectors.flatmap(
    lambda x: st.tuples(
        st.just(x),
        hnp.arrays(np.float64, x.shape, elements=st.floats(-1e3, 1e3).map(lambda v: round(v, 3))),
    )
)


@given(pairs)
def test_measures_are_what_their_formulas_say(pair):
    x, y = pair
    error = [a - b for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert mse(x, y) == pytest.approx(sum(e * e for e in error) / len(error))
    assert max_error(x, y) == pytest.approx(max(abs(e) for e in error))
    signal, noise = sum(v * v for v in x.tolist()), sum(e * e for e in error)
    if noise == 0:
        assert sqnr(x, y) == math.inf
    elif signal == 0:
        assert sqnr(x, y) == -math.inf
    else:
        assert sqnr(x, y) == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)
    lengths = math.hypot(*x.tolist()) * math.hypot(*y.tolist())
    expected = float(np.dot(x, y)) / lengths if lengths else 0.0
    assert cosine(x, y) == pytest.approx(expected, abs=1e-12)


@given(pairs)
def test_one_measure_bounds_the_other(pair):
    """mse <= max² ; |cosine| <= 1; the same array has no error."""
    x, y = pair
    assert mse(x, y) <= max_error(x, y) ** 2 * (1 + 1e-12)
    assert abs(cosine(x, y)) <= 1 + 1e-12
    assert mse(x, x) == max_error(x, x) == 0 and sqnr(x, x) == math.inf


@given(pairs, st.integers(-60, 60))
def test_ratios_do_not_depend_on_the_unit(pair, power):
    """Units that are powers of two change no bit of a ratio; mse scales with the square."""
    x, y = pair
    unit = 2.0**power
    assert sqnr(x * unit, y * unit) == pytest.approx(sqnr(x, y), abs=1e-9)
    assert cosine(x * unit, y) == pytest.approx(cosine(x, y), abs=1e-12)
    assert mse(x * unit, y * unit) == pytest.approx(mse(x, y) * unit**2)


@given(pairs)
def test_numpy_and_torch_agree(pair):
    """Summation orders differ, hence the tolerance of a few units of 2^-52."""
    x, y = pair
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    for measure in (mse, max_error, sqnr, cosine):
        assert measure(tx, ty) == pytest.approx(measure(x, y), rel=1e-12, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_a_quantized_tensor_is_dequantized_first(bits, seed):
    w = np.random.default_rng(seed).standard_normal((4, 32)).astype(np.float32)
    q = qlab.quantize(w, f"int{bits}-channel")
    for measure in (mse, max_error, sqnr, cosine):
        assert measure(w, q) == measure(w, q.dequantize())


@pytest.mark.parametrize("size", [1e-200, 1e-45, 1e30, 1e200])
def test_ratios_survive_very_small_and_very_large_values(size):
    """Squares of 1e200 overflow float64 and squares of 1e-200 vanish; the ratio is defined."""
    x = np.array([3.0, -4.0, 12.0]) * size
    y = np.array([3.0, -4.0, 11.0]) * size
    assert sqnr(x, y) == pytest.approx(10 * math.log10(169), rel=1e-6)
    assert cosine(x, y) == pytest.approx(cosine(x / size, y / size), rel=1e-9)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # deprecated, still in use
def test_torch_tensors_keep_float64_and_torchs_quantized_ones_are_read():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert max_error(x, x + 2.0**-40) == 2.0**-40
    q = torch.quantize_per_tensor(torch.tensor([0.1, 0.9]), 0.25, 0, torch.qint8)
    assert max_error(torch.tensor([0.1, 0.9]), q) == pytest.approx(0.1)


def test_many_small_errors_are_not_lost():
    """float32 sums of a million terms lose digits; these do not."""
    x = torch.full((1 << 20,), 1.0)
    assert mse(x, x + 2.0**-12) == 2.0**-24
    assert mse(x.bfloat16(), x.bfloat16() + 2.0**-7) == 2.0**-14


def test_empty_arrays_have_no_error():
    x = np.zeros((0, 8), np.float32)
    assert mse(x, x) == 0 and max_error(x, x) == 0 and sqnr(x, x) == math.inf
    assert cosine(x, x) == 0 and mse(torch.zeros(0), torch.zeros(0)) == 0


def test_a_parameter_that_learns_can_be_measured():
    w = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    q = qlab.quantize(w.detach(), "int4-channel")
    assert mse(w, q) > 0 and w.grad is None


@pytest.mark.parametrize("measure", [mse, max_error, sqnr, cosine])
def test_shapes_and_kinds_must_match(measure):
    with pytest.raises(qlab.QlabError, match=r"shapes differ: x \(2, 3\), x̂ \(3, 2\)"):
        measure(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(qlab.QlabError, match="do not mix"):
        measure(np.zeros(3), torch.zeros(3))
