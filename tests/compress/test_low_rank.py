"""Low rank: the best there is, by three measures; whole models; corrections."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.calibrate import LayerInputs
from qlab.compress import LowRankLinear, correct_model, low_rank_correction, low_rank_model
from qlab.compress.low_rank import factor, half_of, rank_for
from qlab.errors import QlabError
from qlab.nn import dequantize_model, linear_layers
from tests.models import random_model

seeds = st.integers(0, 2**31)


def layer(rows=12, columns=20, seed=0, tokens=100):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g) * torch.rand(columns, generator=g).mul(3)
    x += torch.randn(tokens, 3, generator=g) @ torch.randn(3, columns, generator=g)
    return torch.randn(rows, columns, generator=g), LayerInputs.of(x)


def loss(w, new, hessian):
    d = (w - new).double()
    return float(((d @ hessian.double()) * d).sum())


@settings(max_examples=30, deadline=None)
@given(seed=seeds, rank=st.integers(1, 12))
def test_the_nearest_matrix_of_a_rank(seed, rank):
    """Eckart and Young: what is left are the singular values behind it. Against NumPy."""
    w, _ = layer(seed=seed)
    a, b = factor(w.double(), rank)
    sigma = np.linalg.svd(w.double().numpy(), compute_uv=False)
    lost = float((w.double() - a @ b).square().sum())
    assert lost == pytest.approx((sigma[rank:] ** 2).sum(), rel=1e-9, abs=1e-20)
    assert a.shape == (12, rank) and b.shape == (rank, 20)
    # Both factors are of one size.
    torch.testing.assert_close(a.norm(dim=0), b.norm(dim=1), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, rank=st.integers(1, 11))
def test_the_nearest_outputs_of_a_rank(seed, rank):
    """The loss is the sum of the squares left out, and no other factors lose less."""
    w, stats = layer(seed=seed)
    s = half_of(stats.hessian, 20)
    h = s @ s.T  # the damped Hessian
    sigma = torch.linalg.svdvals(w.double() @ s)
    a, b = factor(w.double(), rank, "whitened", stats)
    best = loss(w, a @ b, h)
    assert best == pytest.approx(float((sigma[rank:] ** 2).sum()), rel=1e-6)
    for method in ("svd", "asvd"):
        other = factor(w.double(), rank, method, stats)
        assert loss(w, other[0] @ other[1], h) >= best * (1 - 1e-9)
    g = torch.Generator().manual_seed(seed)
    for _ in range(3):
        moved = [m + 0.01 * torch.randn(m.shape, generator=g, dtype=m.dtype) for m in (a, b)]
        assert loss(w, moved[0] @ moved[1], h) >= best * (1 - 1e-9)


@pytest.mark.parametrize("method", ["svd", "asvd", "whitened"])
def test_full_rank_loses_nothing(method):
    w, stats = layer()
    a, b = factor(w, 12, method, stats)
    # float32 factors: rounding alone.
    torch.testing.assert_close(a @ b, w, rtol=1e-4, atol=1e-5)


def test_without_correlations_asvd_with_the_right_exponent_is_whitening():
    """H diagonal: whitening scales by √H_jj; asvd does with alpha 1 and mean|x| of that size."""
    w, _ = layer()
    size = torch.rand(20, generator=torch.Generator().manual_seed(1)) + 0.1
    stats = SimpleNamespace(hessian=torch.diag(size**2), mean_abs=size, name="")
    a, b = factor(w.double(), 5, "asvd", stats, alpha=1.0)
    c, d = factor(w.double(), 5, "whitened", stats)
    torch.testing.assert_close(a @ b, c @ d, rtol=0, atol=1e-3)  # a damping of 1e-4


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scheme=st.sampled_from(["int3-channel", "int2-g10", "nf4-channel"]))
def test_a_correction_gains_with_its_rank_and_ends_at_nothing(seed, scheme):
    w, stats = layer(seed=seed)
    q = qlab.quantize(w, scheme)
    for given_stats, h in ((None, torch.eye(20)), (stats, stats.hessian)):
        left = [loss(w, q.dequantize(), h)]
        for rank in (1, 4, 8, 12):
            a, b = low_rank_correction(w, q, rank, given_stats)
            left.append(loss(w, q.dequantize() + a @ b, h))
        assert left == sorted(left, reverse=True) and left[-1] < 1e-6 * left[0]
    # For the outputs, the correction that looks at them is the better one.
    plain = low_rank_correction(w, q, 3)
    seen = low_rank_correction(w, q, 3, stats)
    lost = [loss(w, q.dequantize() + a @ b, stats.hessian) for a, b in (plain, seen)]
    assert lost[1] <= lost[0] * (1 + 1e-3)


def test_nothing_lost_nothing_added():
    w = torch.tensor([[1.0, -2, 3, 0]] * 4)
    a, b = low_rank_correction(w, w, 2)
    assert not (a @ b).any() and torch.isfinite(a).all() and torch.isfinite(b).all()


def test_hard_weights():
    w, stats = layer()
    for bad in (torch.zeros(12, 20), torch.ones(12, 20), w * 1e-40, w * 1e15):
        for method in ("svd", "asvd", "whitened"):
            a, b = factor(bad, 3, method, stats)
            assert torch.isfinite(a).all() and torch.isfinite(b).all()
    dead = LayerInputs.of(torch.randn(50, 20) * (torch.arange(20) != 4))
    for method in ("asvd", "whitened"):
        a, b = factor(w, 12, method, dead)
        torch.testing.assert_close(a @ b, w, rtol=1e-3, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(2, 500), columns=st.integers(2, 500), ratio=st.floats(0.05, 1))
def test_the_rank_fits_the_ratio_and_the_next_would_not(rows, columns, ratio):
    if ratio * rows * columns < rows + columns:
        with pytest.raises(QlabError, match="give more"):
            rank_for((rows, columns), ratio * 0.99)
        return
    rank = rank_for((rows, columns), ratio)
    assert rank * (rows + columns) <= ratio * rows * columns + 1e-3
    assert rank == min(rows, columns) or (rank + 1) * (rows + columns) > ratio * rows * columns


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_models(kind):
    model = random_model(kind)
    ids = [torch.randint(0, 100, (1, 60), generator=torch.Generator().manual_seed(i))
           for i in range(2)]  # fmt: skip
    count = sum(one.weight.numel() for _, one in linear_layers(model))
    error = {}
    for method in ("svd", "asvd", "whitened"):
        small, report = low_rank_model(model, 0.7, method, calibration=ids)
        assert report.bits_per_weight <= 16 * 0.7
        thin = [m for m in small.modules() if isinstance(m, LowRankLinear)]
        held = sum(p.numel() for m in thin for p in (m.first.weight, m.second.weight))
        assert report.nbytes == 2 * held < 2 * 0.7 * count
        assert torch.isfinite(small(ids[0]).logits).all()
        error[method] = sum(r.error for r in report.layers)
    assert error["whitened"] < error["svd"]
    small, report = low_rank_model(model, 0.7, "whitened", calibration=ids, scheme="int4-g16")
    assert report.bits_per_weight < 0.7 * 16 / 2
    torch.testing.assert_close(dequantize_model(small)(ids[0]).logits, small(ids[0]).logits)


def test_a_corrected_model_is_its_quantized_one_and_the_factors(tiny):
    model, _ = tiny
    ids = [torch.randint(3, 300, (1, 80), generator=torch.Generator().manual_seed(1))]
    quantized, _ = qlab.quantize_model(model, "rtn", "int3-g32")
    errors = {}
    for data in (None, ids):
        small, report = correct_model(model, quantized, 4, calibration=data)
        for name, layer in dict(linear_layers(model)).items():
            one = small.get_submodule(name)
            was = quantized.get_submodule(name)
            assert torch.equal(one.base.weight, was.weight)
            now = one.base.weight + one.second.weight @ one.first.weight
            assert (now - layer.weight).norm() < (was.weight - layer.weight).norm() or data
            x = torch.randn(3, one.base.in_features)
            torch.testing.assert_close(one(x), x @ now.T, rtol=1e-4, atol=1e-4)
        numbers = sum(4 * sum(layer.weight.shape) for _, layer in linear_layers(model))
        codes = sum(quantized.get_submodule(r.name).qweight.nbytes for r in report.layers)
        assert report.nbytes == codes + 2 * numbers and report.scheme == "int3-g32"
        torch.testing.assert_close(
            dequantize_model(small)(ids[0]).logits, small(ids[0]).logits, rtol=1e-4, atol=1e-4
        )
        exact = model(ids[0]).logits
        errors[data is None] = float((small(ids[0]).logits - exact).norm())
    assert max(errors.values()) < float((quantized(ids[0]).logits - exact).norm())


@pytest.mark.parametrize(("call", "says"), [
    (lambda m: low_rank_model(m, 0.5, "whitened"), "needs calibration data"),
    (lambda m: low_rank_model(m, 0.5, "qr", calibration=[torch.ones(1, 4).long()]),
     "choose one of svd, asvd, whitened"),
    (lambda m: low_rank_model(m, 1e-6, "svd"), "give more"),
    (lambda m: low_rank_model(m, 1.5, "svd"), "up to 1"),
    (lambda m: low_rank_model(torch.nn.ReLU(), 0.5, "svd"), "no linear layers"),
    (lambda m: correct_model(m, m, 4), "no QuantLinear layers"),
    (lambda m: factor(torch.ones(3, 4), 4), "has 1 to 3"),
    (lambda m: factor(torch.ones(3, 4), 1, "asvd"), "give stats"),
    (lambda m: factor(torch.full((3, 4), float("inf")), 1), "inf at position"),
    (lambda m: low_rank_correction(torch.ones(3, 4), torch.ones(4, 3), 1), "shapes differ"),
])  # fmt: skip
def test_bad_input_gets_one_clear_line(tiny, call, says):
    with pytest.raises(QlabError, match=says) as caught:
        call(tiny[0])
    assert "\n" not in str(caught.value)
