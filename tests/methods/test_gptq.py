"""GPTQ, GPTAQ and OBQ: what must hold for any layer, and what bad input gets."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.calibrate.inputs import LayerInputs
from qlab.core import Scheme
from qlab.core.formats import format_names, get_format
from qlab.errors import QlabError
from qlab.methods.gptq import GptqOptions, gptq
from qlab.methods.grid import Grid
from qlab.methods.inverse_hessian import checked_hessian, inverse_factor
from qlab.methods.obq import ObqOptions, obq

SCHEMES = (
    "int4-channel", "int4-g16", "int3-asym-g16", "int4-full-g32", "uint2-g16", "int8-tensor",
    "int4-b4x16", "int4-channel1", "ternary-channel", "binary-g16", "nf4-g16", "fp4_bnb-channel",
    "fp4_e2m1-g16", "fp8_e4m3-channel", "fp8_e5m2-tensor", "log4-g16", "mxfp4", "nvfp4",
    "int4-g16-sfp16", "nf4-g16-sbf16",
)  # fmt: skip


def layer(rows=24, columns=64, seed=0, tokens=256):
    """(weight, stats): inputs are correlated, and some are larger than others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g) * torch.rand(columns, generator=g).mul(2)
    x += torch.randn(tokens, 4, generator=g) @ torch.randn(4, columns, generator=g)
    return torch.randn(rows, columns, generator=g), LayerInputs.of(x, name="here")


def loss(w, q, hessian):
    """Σ over rows of d H d^T, float64."""
    d = (w - q.dequantize()).double()
    return float(((d @ hessian.double()) * d).sum())


def in_the_open(w, hessian, group, damping=0.01):
    """Column by column, without blocks; full int4, a scale a group as it stands; and Σ e²."""
    w = w.clone()
    u, _ = inverse_factor(hessian, damping)
    out, squares = torch.zeros_like(w), 0.0
    for i in range(w.shape[1]):
        if i % group == 0:
            scale = w[:, i : i + group].abs().amax(1) / 7.5
        out[:, i] = (w[:, i] / scale).round().clamp(-8, 7) * scale
        e = (w[:, i] - out[:, i]) / u[i, i]
        squares += float(e.double().square().sum())
        w[:, i:] -= e[:, None] * u[i, i:]
    return out, squares


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 140), group=st.sampled_from([8, 16, 64]))
def test_one_block_is_the_loop_over_columns_to_the_bit(seed, rows, group):
    """Rows beyond a multiple of the tile of 64 too."""
    w, stats = layer(rows, seed=seed)
    ours = gptq(w, stats, f"int4-full-g{group}")
    plain, squares = in_the_open(w, stats.hessian, group)
    assert torch.equal(ours.dequantize(), plain)
    # What is left of the (damped) error is the sum of the squares of e; float32 sums inside.
    h = stats.hessian.clone()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    assert loss(w, ours, h) == pytest.approx(squares, rel=1e-3)


@pytest.mark.parametrize("block_size", [1, 7, 16, 40, 1000])
def test_blocks_change_nothing_but_rounding(block_size):
    w, stats = layer(48, 96)
    one = gptq(w, stats, "int4-g16")
    other = gptq(w, stats, "int4-g16", GptqOptions(block_size=block_size))
    # A weight that lies on the border of two codes may go the other way, and moves its row.
    assert float((one.codes != other.codes).float().mean()) < 0.01
    assert loss(w, other, stats.hessian) == pytest.approx(loss(w, one, stats.hessian), rel=0.01)


@pytest.mark.parametrize("columns", [32, 128])
def test_scales_of_the_block_are_static_within_the_first_block(columns):
    """Whether the block is the whole weight or not."""
    w, stats = layer(16, columns)
    q = gptq(w, stats, "int4-g16", GptqOptions(scales="block", block_size=32))
    static = gptq(w, stats, "int4-g16", GptqOptions(scales="static", block_size=32))
    now = gptq(w, stats, "int4-g16", GptqOptions(block_size=32))
    assert torch.equal(q.codes[:, :32], static.codes[:, :32])
    assert torch.equal(q.scale[:, :2], qlab.quantize(w, "int4-g16").scale[:, :2])
    assert not torch.equal(q.scale[:, 1], now.scale[:, 1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_correlations_it_is_rounding_to_nearest(scheme):
    """A diagonal Hessian: no column can pay for another. So all codes are quantize's own."""
    g = torch.Generator().manual_seed(1)
    w = torch.randn(32, 64, generator=g)
    w[0], w[1], w[2] = 0, 0.5, 1e-39
    w[3, 5], w[4], w[5] = 1e20, w[4] * 1e-30, torch.linspace(-1, 1, 64)
    w[6] = torch.randint(-8, 9, (64,), generator=g) / 4
    stats = SimpleNamespace(hessian=torch.diag(torch.rand(64, generator=g) + 0.1), name="")
    for options in (GptqOptions(), GptqOptions(act_order=True), GptqOptions(scales="block")):
        ours, plain = gptq(w, stats, scheme, options), qlab.quantize(w, scheme)
        assert torch.equal(ours.scale, plain.scale)
        assert torch.equal(ours.dequantize(), plain.dequantize())
        if plain.zero_point is not None:
            assert torch.equal(ours.zero_point, plain.zero_point)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_with_correlations_the_outputs_change_less(scheme):
    w, stats = layer(32, 64, seed=3)
    plain = loss(w, qlab.quantize(w, scheme), stats.hessian)
    for options in (GptqOptions(), GptqOptions(act_order=True), GptqOptions(scales="static")):
        assert loss(w, gptq(w, stats, scheme, options), stats.hessian) < 0.85 * plain


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.sampled_from([-12, -2, 2, 20]))
def test_the_unit_of_the_inputs_does_not_matter(seed, power):
    """x · 2^k makes H · 4^k: every step of the arithmetic scales exactly."""
    w, stats = layer(8, seed=seed)
    other = SimpleNamespace(hessian=stats.hessian * 4.0**power, name="")
    assert torch.equal(gptq(w, stats, "int4-g16").codes, gptq(w, other, "int4-g16").codes)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.sampled_from([3, 4, 8]))
def test_the_error_stays_below_its_bound(seed, bits):
    """Where nothing is clipped |w - ŵ| <= s / 2, so the loss is at most Σ s² / (4 U_ii²).

    The law of Babai's nearest plane: Chen et al. 2025 (arXiv 2507.18553). Here input 0
    has a large weight and no correlation: it sets the scale, and no other weight reaches its end.
    """
    w, stats = layer(8, 32, seed=seed)
    w[:, 0] = 30
    h = stats.hessian
    h[0, 1:] = h[1:, 0] = 0
    stats = SimpleNamespace(hessian=h, name="")
    q = gptq(w, stats, f"int{bits}-channel")
    assert int(q.codes[:, 1:].abs().max()) < 2 ** (bits - 1) - 1
    damped = h.clone()
    damped.diagonal().add_(0.01 * h.diagonal().mean())
    u, _ = inverse_factor(h, 0.01)
    bound = (q.scale.double() ** 2 / 4).sum() * (1 / u.diagonal().double() ** 2).sum()
    assert loss(w, q, damped) <= float(bound) * 1.0001


@pytest.mark.parametrize("name", [n for n in format_names() if get_format(n).bits <= 8])
def test_bounds_are_the_formats_own(name):
    """Numbers on, just below and just above every border between two levels go where encode says.
    Integers divide, and are compared above."""
    fmt = get_format(name)
    if fmt.affine or name in ("e8m0", "ternary"):
        return
    grid = Grid.of(Scheme.parse(f"{name}-channel"), torch.ones(1, 4), "gptq")
    middles = ((grid.levels[:-1].astype(np.float64) + grid.levels[1:]) / 2).astype(np.float32)
    y = np.concatenate(
        [grid.levels, middles, *(np.nextafter(middles, np.float32(s)) for s in (-9, 9))]
    )
    y = np.concatenate([y, np.random.default_rng(0).standard_normal(500, np.float32) * fmt.max])
    y = np.clip(y, fmt.min, fmt.max)
    ours = grid.levels[np.searchsorted(grid.bounds, y)]
    theirs = fmt.decode(fmt.encode(torch.from_numpy(y))).numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_act_order_is_gptq_of_the_sorted_columns():
    w, stats = layer()
    h = stats.hessian
    order = torch.argsort(h.diagonal(), descending=True)
    sorted_stats = SimpleNamespace(hessian=h[order][:, order], name="")
    q = gptq(w, stats, "int4-channel", GptqOptions(act_order=True))
    assert torch.equal(q.codes[:, order], gptq(w[:, order], sorted_stats, "int4-channel").codes)


@pytest.mark.parametrize("options", [GptqOptions(), GptqOptions(act_order=True)])
def test_dead_inputs_get_zero_and_change_nothing_else(options):
    w, stats = layer(16, 48)
    h = stats.hessian
    alive = torch.arange(48) % 5 != 3
    wide = torch.zeros(48, 48)
    wide[alive.nonzero(), alive.nonzero().T] = h[alive][:, alive]
    mean = h[alive][:, alive].diagonal().mean()
    few = SimpleNamespace(hessian=wide, name="")
    q = gptq(w * alive, few, "int4-channel", options)
    assert not q.dequantize()[:, ~alive].any()
    # Dead inputs count as 1 in the mean that the damping is a part of.
    damping = 0.01 * float((mean * alive.sum() + (~alive).sum()) / 48 / mean)
    alone = SimpleNamespace(hessian=h[alive][:, alive].contiguous(), name="")
    other = gptq(w[:, alive], alone, "int4-channel",
                 GptqOptions(damping=damping, act_order=options.act_order))  # fmt: skip
    assert float((q.codes[:, alive] != other.codes).float().mean()) < 0.01


@pytest.mark.parametrize("damping", [0.0, 1e-12])
def test_a_singular_hessian_raises_the_damping_and_says_so(damping):
    w, _ = layer(8, 64)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    stats = LayerInputs.of(x, name="layers.0.q")
    with pytest.warns(UserWarning, match=r"'layers.0.q' is singular with damping .* raised to"):
        q = gptq(w, stats, "int4-channel", GptqOptions(damping=damping))
    assert bool(torch.isfinite(q.dequantize()).all())
    # 61 directions are free: next to nothing of the error shows in the outputs.
    assert loss(w, q, stats.hessian) < 0.05 * loss(
        w, qlab.quantize(w, "int4-channel"), stats.hessian
    )


def test_few_samples_work_with_the_usual_damping():
    w, _ = layer(8, 64)
    stats = LayerInputs.of(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
    q = gptq(w, stats, "int4-channel")
    plain = qlab.quantize(w, "int4-channel")
    assert loss(w, q, stats.hessian) < 0.1 * loss(w, plain, stats.hessian)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_shape_are_kept(dtype):
    w, stats = layer(5, 64)
    q = gptq(w.T.contiguous().T.to(dtype), stats, "int4-g16")
    assert q.shape == (5, 64) and q.dequantize().dtype == dtype


def test_a_layer_of_one_weight():
    stats = SimpleNamespace(hessian=torch.ones(1, 1), name="")
    q = gptq(torch.tensor([[0.3]]), stats, "int4-channel")
    assert q.dequantize().item() == pytest.approx(0.3)


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-asym-g32", "nf4-g32"])
@pytest.mark.parametrize("options", [{}, {"scales": "static"}, {"scales": "block"}])
def test_padding_fills_the_last_group(scheme, options):
    w, stats = layer(8, 48)
    with pytest.raises(QlabError, match="does not divide"):
        gptq(w, stats, scheme)
    q = gptq(w, stats, scheme, GptqOptions(pad=True, **options))
    assert q.shape == (8, 48) and q.scale.shape == (8, 2)
    assert loss(w, q, stats.hessian) < 0.8 * loss(
        w, qlab.quantize(w, scheme, pad=True), stats.hessian
    )


def test_least_squares_scales_help():
    w, stats = layer(32, 64)
    for scheme in ("int3-channel", "int3-asym-channel", "nf4-channel"):
        wide, fitted = (
            loss(w, gptq(w, stats, scheme, GptqOptions(ranges=r)), stats.hessian)
            for r in ("minmax", "mse")
        )
        assert fitted < wide


@pytest.mark.parametrize(
    ("scheme", "options", "hessian", "text"),
    [
        ("kmeans4-channel", {}, None, "use method 'kmeans'"),
        ("bf16-tensor", {}, None, "is a cast"),
        ("int4-g24", {}, None, "does not divide"),
        ("int4-channel", {}, torch.zeros(64, 64), "is zero"),
        ("int4-channel", {}, torch.eye(32), "a layer of 64 inputs"),
        ("int4-channel", {}, -torch.eye(64), "negative diagonal"),
        ("int4-channel", {}, torch.eye(64) * float("nan"), "NaN"),
        ("int4-channel", {}, torch.eye(64) - 1.0 + torch.eye(64), "no Cholesky factor"),
    ],
)
def test_bad_input_gets_a_clear_line(scheme, options, hessian, text):
    w, stats = layer()
    stats = stats if hessian is None else SimpleNamespace(hessian=hessian, name="here")
    if text == "no Cholesky factor":  # a large negative eigenvalue
        stats.hessian = torch.eye(64) + 1e9 * (1 - torch.eye(64))
    with pytest.raises(QlabError, match=text):
        gptq(w, stats, scheme, GptqOptions(**options))
    with pytest.raises(QlabError, match=text):
        obq(w, stats, scheme, ObqOptions())


def test_bad_options_and_weights():
    for wrong in (
        {"damping": -1}, {"damping": float("nan")}, {"block_size": 0}, {"scales": "late"},
        {"ranges": "wide"}, {"act_order": True, "scales": "current"},
    ):  # fmt: skip
        with pytest.raises(QlabError):
            GptqOptions(**wrong)
    for wrong in ({"damping": -1}, {"order": "random"}, {"ranges": "wide"}):
        with pytest.raises(QlabError):
            ObqOptions(**wrong)
    with pytest.raises(QlabError, match="alpha"):
        GptqOptions(alpha=2)
    w, stats = layer()
    w[3, 7] = float("nan")
    with pytest.raises(QlabError, match=r"nan at position \(3, 7\)"):
        gptq(w, stats, "int4-channel")
    with pytest.raises(QlabError, match="2 axes"):
        gptq(torch.ones(4), stats, "int4-channel")
    with pytest.raises(QlabError, match="unquantized model"):
        gptq(torch.ones(4, 64), stats, "int4-channel", GptqOptions(alpha=1))


# GPTAQ


def shifted(seed=0, size=0.6):
    """(weight, stats, x, full): the inputs have moved away from those of the unquantized model."""
    g = torch.Generator().manual_seed(seed)
    full = torch.randn(512, 4, generator=g) @ torch.randn(4, 64, generator=g)
    full += torch.randn(512, 64, generator=g)
    x = full + size * torch.randn(512, 64, generator=g)
    return torch.randn(24, 64, generator=g), LayerInputs.of(x, full), x, full


def test_without_a_shift_gptaq_is_gptq():
    w, stats, x, _ = shifted()
    same = LayerInputs.of(x, x)
    plain = gptq(w, same, "int4-g16")
    assert torch.equal(gptq(w, same, "int4-g16", GptqOptions(alpha=1)).packed, plain.packed)
    corrected = gptq(w, stats, "int4-g16", GptqOptions(alpha=1))
    assert not torch.equal(corrected.packed, plain.packed)


def test_its_correction_is_the_least_squares_one():
    """P[i, later] = D_i X_later^T (X_later X_later^T)^-1, computed here for each i by itself."""
    _, stats, _, _ = shifted()
    h = stats.hessian.double()
    u, _ = inverse_factor(h, 0.0)
    c = stats.cross.double()
    p = (c @ u.T).triu(1) @ u
    for i in (0, 10, 62):
        later = slice(i + 1, 64)
        direct = torch.linalg.solve(h[later, later], c[i, later])
        torch.testing.assert_close(p[i, later], direct, rtol=1e-6, atol=1e-9)


def test_gptaq_comes_nearer_to_the_unquantized_outputs():
    for seed in range(3):
        w, stats, x, full = shifted(seed)
        target = full @ w.T

        def error(q, x=x, target=target):
            return float((x @ q.dequantize().T - target).square().mean())

        assert error(gptq(w, stats, "int4-channel", GptqOptions(alpha=1.0))) < error(
            gptq(w, stats, "int4-channel")
        )


# OBQ


def naive_obq(w, hessian, scale, greedy):
    """One row, restricted int3, by definition: try every free weight, and solve for the others."""
    n = len(w)
    h, fixed, now = hessian.double(), {}, w.double().clone()
    while len(fixed) < n:
        free = [i for i in range(n) if i not in fixed]
        inverse = torch.linalg.inv(h[free][:, free])
        costs = []
        for k, i in enumerate(free):
            value = float((now[i] / scale).round().clamp(-3, 3) * scale)
            far = abs(float(now[i]) - value) > 0.5000001 * float(scale)
            costs.append((not far, (float(now[i]) - value) ** 2 / float(inverse[k, k]), k, value))
        _, _, k, value = min(costs) if greedy else costs[0]
        # The best values of the others, given all that is fixed: a linear system.
        fixed[free.pop(k)] = value
        if free:
            d = torch.tensor([fixed[i] - float(w[i]) for i in fixed], dtype=torch.float64)
            right = -h[free][:, list(fixed)] @ d
            now[free] = w[free].double() + torch.linalg.solve(h[free][:, free], right)
    return torch.tensor([fixed[i] for i in range(n)])


@pytest.mark.parametrize("order", ["greedy", "columns"])
def test_obq_is_its_definition(order):
    for seed in range(4):
        w, stats = layer(3, 10, seed=seed)
        h = stats.hessian
        q = obq(w, stats, "int3-channel", ObqOptions(order=order))
        damped = h.clone()
        damped.diagonal().add_(0.01 * h.diagonal().mean())
        for row in range(3):
            by_hand = naive_obq(w[row], damped, q.scale[row, 0].double(), order == "greedy")
            np.testing.assert_allclose(q.dequantize()[row], by_hand, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["int4-g16", "int3-asym-channel", "nf4-g16", "int4-b4x16"])
def test_from_left_to_right_obq_is_gptq(scheme):
    """The first two of the three steps from OBQ to GPTQ change nothing but the order."""
    w, stats = layer(24, 64, seed=5)
    slow = obq(w, stats, scheme, ObqOptions(order="columns"))
    fast = gptq(w, stats, scheme, GptqOptions(scales="static"))
    # float64 there and float32 here: a weight on the border of two codes may differ.
    assert float((slow.codes != fast.codes).float().mean()) < 0.01


def test_nothing_beats_trying_all_codes():
    """The true optimum of a tiny row lies below OBQ's, GPTQ's and round to nearest's."""
    w, stats = layer(6, 5, seed=2)
    h = stats.hessian
    for row in w:
        row = row[None]
        found = {
            "rtn": qlab.quantize(row, "int3-channel"),
            "gptq": gptq(row, stats, "int3-channel"),
            "obq": obq(row, stats, "int3-channel"),
        }
        scale = float(found["rtn"].scale)
        codes = torch.tensor(list(itertools.product(range(-3, 4), repeat=5)), dtype=torch.float64)
        d = codes * scale - row.double()
        least = float(((d @ h.double()) * d).sum(1).min())
        assert all(loss(row, q, h) >= least * 0.9999 for q in found.values())


def test_obq_refuses_what_would_take_hours():
    stats = SimpleNamespace(hessian=torch.eye(2049), name="")
    with pytest.raises(QlabError, match="use 'gptq'"):
        obq(torch.ones(1, 2049), stats, "int4-channel")


def test_the_hessian_is_left_as_it_was():
    w, stats = layer()
    h = stats.hessian
    kept = h.clone()
    box = SimpleNamespace(hessian=h, name="")
    before = w.clone()
    gptq(w, box, "int4-g16", GptqOptions(act_order=True))
    obq(w, box, "int4-g16")
    assert torch.equal(h, kept) and torch.equal(w, before)
    inverse_factor(checked := checked_hessian(h, 64), 0.01)
    assert torch.equal(checked, kept)
