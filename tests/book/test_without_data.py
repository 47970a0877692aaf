"""What the chapter on methods without data says, on input of our own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import Scheme
from qlab.methods.eetq import eetq
from qlab.methods.hqq import HqqOptions, half_quadratic, hqq, shrink
from qlab.methods.mse import mse


def normal(seed, shape=(64, 256), size=0.05):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g) * size


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    beta=st.floats(1.0, 1e4),
    p=st.floats(0.2, 1.0),
    z=st.floats(-2, 9),
)
def test_the_mean_solves_the_second_problem(seed, beta, p, z):
    w = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 32)))
    s = float(np.ptp(w.numpy())) / 7
    codes = (w / s + z).round().clamp(0, 7)
    e = shrink(w - (codes - z) * s, beta, p)

    def split(z):
        return float((e - (w - (codes - z) * s)).square().sum())

    best = float((codes - (w - e) / s).mean())
    assert all(split(best) <= split(best + d) + 1e-12 for d in (-1, -0.1, -1e-3, 1e-3, 0.1, 1))


def test_no_error_below_the_border_is_put_aside():
    border = 10 ** (-1 / 1.3)
    assert border == pytest.approx(0.17, abs=0.002)
    x = torch.linspace(-1, 1, 4001)
    kept = shrink(x, 10.0, 0.7) != 0
    assert torch.equal(kept, x.abs() > border)


def test_units_matter_to_hqq_and_not_to_rounding():
    w = normal(0)
    for word in ("int3-asym-g64", "int3-g64"):
        # A power of two changes exponents alone.
        one, other = qlab.quantize(w, word), qlab.quantize(w * 1024, word)
        assert torch.equal(one.dequantize() * 1024, other.dequantize())
    options = HqqOptions(early_stop=False)
    one, other = (hqq(x, None, Scheme.parse("int3-asym-g64"), options) for x in (w, w * 1024))
    assert qlab.sqnr(w, one) > qlab.sqnr(w * 1024, other) + 0.1


def test_the_ranking_of_the_chapter_holds_for_normal_weights():
    w = normal(1)
    for bits in (4, 3, 2):
        word = Scheme.parse(f"int{bits}-asym-g64-sfp16")
        plain, shifted = qlab.quantize(w, word), hqq(w, None, word)
        searched = mse(w, None, word)
        rounded = hqq(w, None, word, HqqOptions(zero="integer"))
        assert qlab.sqnr(w, shifted) > qlab.sqnr(w, plain) + 0.15
        assert abs(qlab.sqnr(w, rounded) - qlab.sqnr(w, plain)) < 0.5
        assert searched.bits_per_weight < shifted.bits_per_weight
        if bits < 4:
            assert qlab.sqnr(w, searched) > qlab.sqnr(w, shifted) + 0.2


def test_a_real_zero_point_loses_the_exact_zero():
    w = normal(2)
    w[:, ::2] = 0
    zero = w == 0
    assert (qlab.quantize(w, "int4-asym-g64").dequantize()[zero] == 0).all()
    assert (
        hqq(w, None, Scheme.parse("int4-asym-g64")).dequantize()[zero] != 0
    ).float().mean() > 0.9


def test_scale_and_minimum_are_the_same_as_scale_and_real_zero_point():
    """ŵ = c·s + m with m = -z·s: GGUF's Q4_1, whose codes run from 0 to 15 as well."""
    w = normal(3)
    found = half_quadratic(w.reshape(-1, 32), 4)
    c = found.codes.float()
    a, b = (c - found.zero) * found.scale, c * found.scale - found.zero * found.scale
    assert torch.allclose(a, b, atol=1e-6)


def test_eight_bits_lose_nothing_that_matters():
    w = normal(4, (64, 1024))
    q = eetq(w, None, Scheme.parse("int8-full-channel-sfp16"))
    assert qlab.sqnr(w, q) > 40
    assert q.bits_per_weight == 8 + 16 / 1024
