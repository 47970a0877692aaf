"""Optimal clipping: against scipy's integrals and minimizer, and the published tables.

The tables:

- ACIQ (Banner et al. 2019, arXiv 1810.05723), the constants of its released code, which the paper
  prints to three digits.
- Max 1960, "Quantizing for minimum distortion", table II: step and error of the best quantizer
  with N equally spaced levels, for a Gaussian.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from qlab.core.noise import (
    QUANTIZERS,
    gaussian_error,
    laplacian_error,
    level_error,
    model_error,
    optimal_clip,
    overload_noise,
    uniform_levels,
)

ERRORS = {"gaussian": gaussian_error, "laplacian": laplacian_error}
SCIPY = {"gaussian": stats.norm, "laplacian": stats.laplace}

# bits 2 to 8, alpha / b and alpha / sigma
ACIQ = {
    "laplacian": (
        2.83068299, 3.89722946, 5.02864014, 6.20476633, 7.41312622, 8.64561995, 9.89675982,
    ),
    "gaussian": (
        1.71063519, 2.15159277, 2.55913646, 2.93620062, 3.28691474, 3.61511460, 3.92403714,
    ),
}  # fmt: skip
# N: (step, mean squared error), for a standard deviation of 1
MAX = {
    2: (1.596, 0.3634), 3: (1.224, 0.1902), 4: (0.9957, 0.1188), 7: (0.6508, 0.04686),
    8: (0.5860, 0.03744), 15: (0.3534, 0.01289), 16: (0.3352, 0.01154), 32: (0.1881, 0.003495),
}  # fmt: skip


def exact_by_quadrature(distribution, levels):
    """The definition: an integral over the cell of each level, by scipy."""
    law = SCIPY[distribution]
    edges = [-np.inf, *((levels[1:] + levels[:-1]) / 2), np.inf]
    total = 0.0
    for level, low, high in zip(levels, edges[:-1], edges[1:], strict=True):
        # A kink at 0 (Laplacian) or a tail of no weight would mislead the quadrature: split there.
        cuts = [max(low, -40.0), *([0.0] if low < 0 < high else []), min(high, 40.0)]
        for a, b in itertools.pairwise(cuts):
            total += integrate.quad(lambda x, v=level: (x - v) ** 2 * law.pdf(x), a, b)[0]
    return total


@pytest.mark.parametrize("distribution", sorted(ERRORS))
def test_the_model_reproduces_the_published_table(distribution):
    """To the five digits at which the published search stops."""
    ours = [optimal_clip(distribution, bits, "aciq") for bits in range(2, 9)]
    np.testing.assert_allclose(ours, ACIQ[distribution], rtol=1e-5)


@pytest.mark.parametrize("levels", sorted(MAX))
def test_the_exact_optimum_reproduces_max(levels):
    """Even numbers of levels are `midrise`, odd ones 2^b - 1 are `restricted`."""
    step, error = MAX[levels]
    bits = math.ceil(math.log2(levels))
    quantizer = "restricted" if levels % 2 else "midrise"
    clip = optimal_clip("gaussian", bits, quantizer)
    per_step = (levels - 1) / 2 if levels % 2 else levels / 2
    # Half a unit of the last printed digit, and a little for Max's own rounding.
    assert clip / per_step == pytest.approx(step, abs=6e-4 if levels == 2 else 6e-5)
    assert gaussian_error(bits, clip, quantizer=quantizer) == pytest.approx(error, rel=6e-4)
    assert len(uniform_levels(bits, clip, quantizer)) == levels


@pytest.mark.parametrize("distribution", sorted(ERRORS))
@pytest.mark.parametrize("quantizer", QUANTIZERS[:3])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_exact_error_equals_scipys_integral(distribution, quantizer, bits):
    """Quadrature is asked for 1.5e-8, its default."""
    for clip in (0.5, 2.0, 6.0):
        levels = uniform_levels(bits, clip, quantizer)
        theirs = exact_by_quadrature(distribution, levels)
        assert level_error(distribution, levels) == pytest.approx(theirs, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("distribution", sorted(ERRORS))
def test_the_exact_error_of_any_codebook_equals_scipys_integral(distribution):
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 9):
        levels = np.sort(rng.normal(size=n) * 2)
        theirs = exact_by_quadrature(distribution, levels)
        assert level_error(distribution, levels) == pytest.approx(theirs, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("distribution", sorted(ERRORS))
def test_overload_equals_scipys_integral(distribution):
    law = SCIPY[distribution]
    for clip in (0.1, 1.0, 3.0, 6.0):
        half, _ = integrate.quad(
            lambda x, c=clip: (x - c) ** 2 * law.pdf(x), clip, clip + 45, epsabs=0, epsrel=1e-10
        )
        assert overload_noise(distribution, clip) == pytest.approx(2 * half, rel=1e-7)


@pytest.mark.parametrize("distribution", sorted(ERRORS))
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_optimum_equals_scipys(distribution, quantizer, bits):
    """At a minimum the error is flat: positions agree to the root of the error's precision."""
    f = ERRORS[distribution]
    found = optimize.minimize_scalar(
        lambda c: f(bits, c, quantizer=quantizer),
        bounds=(0.3, 30),
        method="bounded",
        options={"xatol": 1e-10},
    )
    best = optimal_clip(distribution, bits, quantizer)
    assert best == pytest.approx(found.x, rel=1e-5)
    assert f(bits, best, quantizer=quantizer) <= found.fun * (1 + 1e-10)


def test_the_two_rules_of_the_chapter():
    """Laplacian: e^-t = t / (3 · 4^b). Two bits, restricted, Laplacian: exactly 2 b."""
    for bits, published in zip(range(2, 9), ACIQ["laplacian"], strict=True):
        root = optimize.brentq(lambda t, b=bits: math.exp(-t) - t / (3 * 4.0**b), 0.1, 50)
        assert root == pytest.approx(published, rel=1e-5)
    assert optimal_clip("laplacian", 2) == pytest.approx(2.0, rel=1e-6)


def test_where_the_model_and_the_exact_optimum_part():
    """At few bits the model clips too early by 0.25 sigma and more, and it closes with the bits.

    It sends what lies beyond clip to clip, while a midrise quantizer sends it half a step lower
    still: the model's tail is too cheap.
    """
    gaps = [
        optimal_clip("gaussian", b, "midrise") - optimal_clip("gaussian", b, "aciq")
        for b in range(2, 9)
    ]
    assert gaps[0] > 0.25 and gaps[-1] < 0.02 and (np.diff(gaps) < 0).all()
    # What following the model costs in error, exactly: a few percent at 2 bits, nothing at 8.
    cost = [
        gaussian_error(b, optimal_clip("gaussian", b, "aciq"), quantizer="midrise")
        / gaussian_error(b, optimal_clip("gaussian", b, "midrise"), quantizer="midrise")
        for b in range(2, 9)
    ]
    assert 1.03 < cost[0] < 1.1 and cost[-1] < 1.001 and min(cost) >= 1
    # The model is not even an upper bound: it misjudges the error it predicts.
    assert model_error("gaussian", 2, 1.7) != pytest.approx(
        gaussian_error(2, 1.7, quantizer="midrise"), rel=0.02
    )
