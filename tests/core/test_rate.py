"""The bounds of rate and distortion, and that nothing gets below them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import rate
from qlab.core.kmeans import kmeans_1d


@given(st.floats(0, 16), st.floats(1e-6, 1e6))
def test_rate_and_distortion_are_inverse(bits, variance):
    distortion = rate.gaussian_distortion(bits, variance)
    assert rate.gaussian_rate(distortion, variance) == pytest.approx(bits, abs=1e-9)
    # 6.02 dB a bit.
    drop = distortion / rate.gaussian_distortion(bits + 1, variance)
    assert rate.decibels(drop) == pytest.approx(6.0206, abs=1e-3)


@given(st.floats(0, 8), st.floats(1e-3, 1e3))
def test_the_lower_bound_of_a_gaussian_is_its_bound(bits, variance):
    entropy = rate.gaussian_entropy(variance)
    bound = rate.shannon_lower_bound(entropy, bits)
    assert bound == pytest.approx(rate.gaussian_distortion(bits, variance), rel=1e-12)


@given(st.floats(0, 8), st.floats(0.01, 100))
def test_no_source_is_harder_than_the_gaussian(bits, width):
    """A uniform density of that variance has less entropy, so its bound lies below."""
    uniform = rate.shannon_lower_bound(math.log2(width), bits)
    assert uniform < rate.gaussian_distortion(bits, width**2 / 12)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_best_codebook_stays_above_the_bound(bits, seed):
    x = np.random.default_rng(seed).standard_normal(20_000)
    reached = kmeans_1d(x, 1 << bits, bins=1024).inertia / len(x)
    assert reached > rate.gaussian_distortion(bits, float(x.var()))


def test_published_gaps():
    # Gersho and Gray 1992, sections 5.6 and 9.9: 4.35 dB for fixed length, 1.53 dB and 0.255 bit
    # for entropy-coded uniform levels.
    assert rate.decibels(rate.high_rate_gap(1)) == pytest.approx(4.35, abs=0.005)
    assert rate.high_rate_gap(1) == pytest.approx(math.sqrt(3) * math.pi / 2, rel=1e-12)
    coded = rate.high_rate_gap(1, entropy_coded=True)
    assert rate.decibels(coded) == pytest.approx(1.53, abs=0.005)
    assert 0.5 * math.log2(coded) == pytest.approx(0.2546, abs=5e-4)
    # Space-filling gain of the hexagon 0.17 dB, of D4 0.37, E8 0.65, Leech 1.03
    # (Conway and Sloane 1999, table 2.3).
    for dim, gain in {2: 0.17, 4: 0.37, 8: 0.65, 24: 1.03}.items():
        assert rate.decibels(rate.CELLS[1] / rate.CELLS[dim]) == pytest.approx(gain, abs=0.006)
    assert all(cell > rate.SPHERE for cell in rate.CELLS.values())


def test_entropy_coded_uniform_levels_reach_a_quarter_bit():
    """A fine uniform quantizer of Gaussian values, its codes entropy-coded."""
    x = np.random.default_rng(0).standard_normal(200_000)
    step = 0.1
    codes = np.round(x / step)
    bits = rate.code_entropy(codes)
    excess = bits - rate.gaussian_rate(float(((codes * step - x) ** 2).mean()))
    # The law is for a step of 0; at a tenth of σ with 200,000 samples it holds to 0.005 bit.
    assert excess == pytest.approx(0.2546, abs=0.005)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda r, n: r.standard_normal(n), 0.5 * math.log2(2 * math.pi * math.e)),
        (lambda r, n: r.uniform(-2, 2, n), 2.0),
        (lambda r, n: r.laplace(size=n), math.log2(2 * math.e)),
        (lambda r, n: 8 * r.standard_normal(n), 3 + 0.5 * math.log2(2 * math.pi * math.e)),
    ],
)
def test_the_entropy_of_known_densities(draw, truth):
    x = draw(np.random.default_rng(0), 50_000)
    # Bias of about 1/m = 0.004 and a spread of about 1/√n = 0.004; the tails add some.
    assert rate.differential_entropy(x) == pytest.approx(truth, abs=0.03)


def test_code_entropy():
    assert rate.code_entropy(np.zeros(10)) == 0
    assert rate.code_entropy(np.arange(16)) == pytest.approx(4)
    assert rate.code_entropy(np.array([0, 0, 0, 1])) == pytest.approx(0.8113, abs=1e-4)


def test_bad_input_is_named():
    with pytest.raises(qlab.QlabError, match="rate -1"):
        rate.gaussian_distortion(-1)
    with pytest.raises(qlab.QlabError, match="distortion 0"):
        rate.gaussian_rate(0)
    with pytest.raises(qlab.QlabError, match="5 dimensions"):
        rate.high_rate_gap(5)
    with pytest.raises(qlab.QlabError, match="too few"):
        rate.differential_entropy(np.zeros(3))
    with pytest.raises(qlab.QlabError, match="nan"):
        rate.differential_entropy(np.full(20, np.nan))
