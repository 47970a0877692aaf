"""The closed forms of the error: against the quantizer itself, their laws, and bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core.noise import (
    QUANTIZERS,
    VARIANCE,
    gaussian_error,
    granular_noise,
    laplacian_error,
    level_error,
    model_error,
    optimal_clip,
    overload_noise,
    rounding_noise,
    sqnr_law,
    uniform_levels,
)

ERRORS = {"gaussian": gaussian_error, "laplacian": laplacian_error}
distributions = st.sampled_from(sorted(ERRORS))
real_quantizers = st.sampled_from(QUANTIZERS[:3])


def sample(distribution, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n) if distribution == "gaussian" else rng.laplace(size=n)


def nearest(x, levels):
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


@pytest.mark.parametrize("distribution", sorted(ERRORS))
@pytest.mark.parametrize("quantizer", QUANTIZERS[:3])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_the_exact_error_is_that_of_the_quantizer(distribution, quantizer, bits):
    """Against a million samples; four standard errors of the mean."""
    x = sample(distribution, 1_000_000, bits)
    for clip in (1.5, 3.0):
        levels = uniform_levels(bits, clip, quantizer)
        squares = (x - nearest(x, levels)) ** 2
        expected = ERRORS[distribution](bits, clip, quantizer=quantizer)
        assert abs(squares.mean() - expected) < 4 * squares.std() / math.sqrt(len(x))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_restricted_is_qlab_s_symmetric_scheme(bits):
    """The same codes and scale through qlab.quantize, whose clip is the largest magnitude."""
    x = sample("gaussian", 400_000).astype(np.float32)
    clip = float(np.abs(x).max())
    q = qlab.quantize(x, f"int{bits}-tensor")
    # Every level is met, but for int8's outermost, where a few of so many samples lie.
    met = np.unique(q.dequantize()).astype(np.float64)
    distance = np.abs(met[:, None] - uniform_levels(bits, clip)[None, :]).min(axis=1)
    assert len(met) >= 2**bits - 40 and distance.max() < 1e-6
    squares = (x - q.dequantize()).astype(np.float64) ** 2
    expected = gaussian_error(bits, clip)
    # The clip is the largest of the very sample, which matters little with this many.
    assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(len(x))


@given(distributions, st.floats(0.01, 30))
def test_overload_is_the_integral_of_the_squared_excess(distribution, clip):
    """Trapezoids over 40 units beyond the clip; the integrand is smooth, hence the tolerance."""
    x = np.linspace(clip, clip + 40, 400_001)
    density = (
        np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        if distribution == "gaussian"
        else np.exp(-x) / 2
    )
    expected = 2 * np.trapezoid((x - clip) ** 2 * density, x)
    # Where the overload is below the rounding of its three terms, only its size can be asked for.
    assert overload_noise(distribution, clip) == pytest.approx(expected, rel=1e-6, abs=1e-17)


@given(distributions, st.integers(1, 12), st.floats(0.1, 20))
def test_the_model_is_rounding_plus_overload(distribution, bits, clip):
    scale = 2 * clip / 2**bits
    both = rounding_noise(scale) + overload_noise(distribution, clip)
    assert model_error(distribution, bits, clip) == pytest.approx(both)
    assert granular_noise(distribution, clip, scale) <= rounding_noise(scale)
    assert rounding_noise(np.array([scale, 1.0])) == pytest.approx([scale**2 / 12, 1 / 12])


@given(distributions, real_quantizers, st.integers(2, 10), st.floats(0.2, 15))
def test_the_error_lies_between_nothing_and_what_one_level_leaves(
    distribution, quantizer, bits, clip
):
    """More levels inside the same range never hurt, and zero alone leaves the whole variance."""
    error = ERRORS[distribution](bits, clip, quantizer=quantizer)
    assert 0 < error
    if quantizer == "restricted":  # has 0 among its levels, and so never does worse than 0 alone
        assert error <= VARIANCE[distribution] * (1 + 1e-12)
    assert level_error(distribution, [0.0]) == pytest.approx(VARIANCE[distribution])


@given(distributions, st.lists(st.floats(-6, 6), min_size=1, max_size=9, unique=True))
def test_one_more_level_never_hurts(distribution, levels):
    levels = sorted(round(v, 3) for v in set(levels))
    levels = sorted(set(levels))
    error = level_error(distribution, levels)
    for extra in (-2.5005, 0.0005, 1.3335):
        assert level_error(distribution, sorted([*levels, extra])) <= error + 1e-12
    mirrored = level_error(distribution, [-v for v in reversed(levels)])
    assert mirrored == pytest.approx(error, rel=1e-9, abs=1e-15)


@given(distributions, real_quantizers, st.integers(2, 8), st.floats(0.3, 9), st.floats(1e-3, 1e3))
def test_the_error_has_the_unit_of_x_squared(distribution, quantizer, bits, clip, unit):
    f = ERRORS[distribution]
    scaled = f(bits, clip * unit, unit, quantizer)
    assert scaled == pytest.approx(f(bits, clip, 1.0, quantizer) * unit**2, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(distributions, st.sampled_from(QUANTIZERS), st.integers(2, 8))
def test_no_clip_on_a_fine_grid_beats_the_optimal_one(distribution, quantizer, bits):
    """Also holds that there is one minimum only: the grid spans where the search looks."""
    f = ERRORS[distribution]
    best = optimal_clip(distribution, bits, quantizer)
    least = f(bits, best, quantizer=quantizer)
    errors = [f(bits, c, quantizer=quantizer) for c in np.geomspace(0.1, 100, 300)]
    assert min(errors) >= least * (1 - 1e-12)
    falling = np.diff(errors) < 1e-12
    turn = int(np.argmin(errors))
    assert falling[:turn].all() and (np.diff(errors)[turn:] > -1e-12).all()


@pytest.mark.parametrize("distribution", sorted(ERRORS))
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_more_bits_reach_farther_and_err_less(distribution, quantizer):
    clips = [optimal_clip(distribution, b, quantizer) for b in range(2, 13)]
    errors = [
        ERRORS[distribution](b, c, quantizer=quantizer)
        for b, c in zip(range(2, 13), clips, strict=True)
    ]
    assert (np.diff(clips) > 0).all() and (np.diff(errors) < 0).all()


def test_the_law_grows_by_twenty_log_two_a_bit():
    for loading in (1.0, math.sqrt(3), 4.0):
        steps = np.diff([sqnr_law(b, loading) for b in range(1, 9)])
        assert steps == pytest.approx([20 * math.log10(2)] * 7)
    assert sqnr_law(8) == pytest.approx(48.16, abs=0.01)  # the textbook's 6.02 b
    assert sqnr_law(8, 4.0) == pytest.approx(48.16 - 7.27, abs=0.01)  # and its 6.02 b - 7.27


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: optimal_clip("gausian", 4),
            "unknown distribution 'gausian': did you mean gaussian",
        ),
        (lambda: optimal_clip("gaussian", 4, "midtread"), "unknown quantizer 'midtread'"),
        (lambda: uniform_levels(4, 1.0, "aciq"), "unknown quantizer 'aciq'"),
        (lambda: gaussian_error(1, 1.0), "1 bits: .* 2 to 16"),
        (lambda: gaussian_error(17, 1.0), "17 bits"),
        (lambda: gaussian_error(2.5, 1.0), "2.5 bits"),
        (lambda: laplacian_error(4, 0.0), "clip is 0.0: it must be a positive finite number"),
        (lambda: laplacian_error(4, math.nan), "clip is nan"),
        (lambda: gaussian_error(4, 1.0, -1.0), "std is -1.0"),
        (lambda: sqnr_law(8, math.inf), "loading is inf"),
        (lambda: level_error("gaussian", []), "levels must be"),
        (lambda: level_error("gaussian", [1.0, 0.0]), "ascending"),
        (lambda: level_error("gaussian", [0.0, math.inf]), "finite"),
        (lambda: overload_noise("uniform", 1.0), "unknown distribution"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(qlab.QlabError, match=message):
        call()
