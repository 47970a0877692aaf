"""AutoRound: what must hold for any layer, the law of the straight-through gradient, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.calibrate.inputs import LayerInputs
from qlab.core import Scheme
from qlab.errors import QlabError
from qlab.methods.autoround import AutoRoundOptions, Learned, _Grid, autoround, learn
from tests.models import random_model

SCHEMES = (
    "int4-channel", "int4-g16", "int3-asym-g16", "int4-full-g32", "uint2-g16", "int8-tensor",
    "int4-b4x16", "int2-asym-channel1", "int4-g16-sfp16", "int4-asym-g16-sfp16", "int3-g16-sbf16",
    "ternary-channel",
)  # fmt: skip
SHORT = AutoRoundOptions(steps=15)


def layer(rows=8, columns=32, seed=0, tokens=64):
    """(weight, inputs): inputs are correlated, and some are larger than others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g) * torch.rand(columns, generator=g).mul(2)
    x += torch.randn(tokens, 3, generator=g) @ torch.randn(3, columns, generator=g)
    return torch.randn(rows, columns, generator=g), x


def error(w, q, x):
    """‖X(Ŵ - W)ᵀ‖², float64."""
    return float((x.double() @ (q.dequantize() - w).double().T).square().sum())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    word=st.sampled_from(SCHEMES),
    batch=st.sampled_from([None, 1, 16]),
    kind=st.sampled_from(["normal", "zeros", "outlier", "constant", "denormal", "huge", "dead"]),
)
def test_never_worse_than_round_to_nearest(seed, word, batch, kind):
    w, x = layer(seed=seed)
    if kind == "zeros":
        w[3:] = 0
    elif kind == "outlier":
        w[2, 5] = 1e4
    elif kind == "constant":
        w[:] = -0.3
    elif kind == "denormal":
        w *= 1e-40
    elif kind == "huge":
        w *= 1e30
    elif kind == "dead":
        x[:, ::3] = 0
    q = autoround(w, LayerInputs.of(x), word, AutoRoundOptions(steps=15, batch=batch))
    plain = qlab.quantize(w, word)
    # The choice is made in float32.
    assert error(w, q, x) <= error(w, plain, x) * (1 + 1e-5)
    assert q.scheme == plain.scheme and q.nbytes == plain.nbytes and q.shape == tuple(w.shape)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), word=st.sampled_from(SCHEMES))
def test_v_of_zero_is_round_to_nearest(seed, word):
    w, x = layer(seed=seed)
    plain = qlab.quantize(w, word)
    q = autoround(w, LayerInputs.of(x), word, AutoRoundOptions(steps=0))
    assert torch.equal(q.packed, plain.packed) and torch.equal(q.scale, plain.scale)
    grid = _Grid(w, Scheme.parse(word), w.shape[1])
    stored, _, codes = grid.codes(grid.start())
    assert torch.equal(codes.int(), plain.codes.int()) and torch.equal(stored, plain.scale)
    torch.testing.assert_close(
        grid.restored(grid.start()), plain.dequantize(), rtol=1e-5, atol=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), word=st.sampled_from(["int4-g16", "int3-asym-g16"]))
def test_without_ranges_each_code_is_one_of_the_two_neighbors(seed, word):
    """|V| is at most a half: rounding goes up or down, and no farther."""
    w, x = layer(seed=seed)
    q = autoround(w, LayerInputs.of(x), word, AutoRoundOptions(steps=25, ranges=False))
    plain = qlab.quantize(w, word)
    assert torch.equal(q.scale, plain.scale)
    step = plain.scale.repeat_interleave(16, 1)
    assert ((q.dequantize() - w).abs() <= step * (1 + 1e-4)).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 200, 1000])
def test_the_steps_add_up_to_about_a_half(steps):
    """Why lr is 1 / steps: (steps + 1) / (2 · steps) with a linear decay."""
    total = sum(1 / steps * (1 - t / steps) for t in range(steps))
    assert total == pytest.approx((steps + 1) / (2 * steps))
    # A weight whose gradient keeps its sign gets to the limit and no farther: a single input.
    w, x = torch.tensor([[0.4]]), torch.ones(4, 1)
    learned, _ = learn(w, LayerInputs.of(x), "int8-tensor", AutoRoundOptions(steps, ranges=False))
    assert learned.v.abs().max() <= 0.5


def test_the_gradient_of_v_is_the_scale_inside_the_range_and_zero_outside():
    w = torch.tensor([[0.3, -0.2, 1.0, -1.0]])
    grid = _Grid(w, Scheme.parse("int4-channel"), 4)
    # alpha and beta of a half: the last two are clipped.
    v = torch.zeros_like(w, requires_grad=True)
    half = torch.tensor([[0.5]])
    w_hat = grid.restored(Learned(v, half, half))
    (found,) = torch.autograd.grad(w_hat.sum(), v)
    s = 0.5 / 7
    torch.testing.assert_close(found, torch.tensor([[s, s, 0.0, 0.0]]))


def test_the_loss_falls_and_is_the_output_error():
    w, x = layer(32, 64, seed=4, tokens=300)
    inputs = LayerInputs.of(x)
    learned, losses = learn(w, inputs, "int3-g16", AutoRoundOptions(steps=100))
    plain = qlab.quantize(w, "int3-g16")
    assert losses[0] == pytest.approx(2 / 300 * error(w, plain, x), rel=1e-4)
    q = autoround(w, inputs, "int3-g16", AutoRoundOptions(steps=100))
    assert min(losses) == pytest.approx(2 / 300 * error(w, q, x), rel=1e-4)
    # Two fifths less is far from what chance gives: random rounding only adds error.
    assert min(losses) < 0.6 * losses[0]
    assert (learned.v.abs() <= 0.5).all()
    assert ((learned.alpha >= 0) & (learned.alpha <= 1)).all() and (learned.beta <= 1).all()


def test_a_seed_gives_the_same_codes():
    w, x = layer(seed=3)
    inputs = LayerInputs.of(x)
    one, two, other = (
        autoround(w, inputs, "int3-g16", AutoRoundOptions(steps=20, batch=8, seed=seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.packed, two.packed) and torch.equal(one.scale, two.scale)
    assert not torch.equal(one.packed, other.packed)


def test_the_ranges_have_steps_of_their_own():
    w, x = layer(seed=6)
    options = AutoRoundOptions(steps=10, range_lr=1e-9)
    learned, _ = learn(w, LayerInputs.of(x), "int3-g16", options)
    torch.testing.assert_close(learned.alpha, torch.ones_like(learned.alpha))
    alone, _ = learn(w, LayerInputs.of(x), "int3-g16", AutoRoundOptions(steps=10, ranges=False))
    # The same steps of V but for signs that rounding decides.
    assert (learned.v - alone.v).abs().lt(1e-3).float().mean() > 0.9


def test_padding_and_half_precision():
    w, x = layer(6, 40, seed=2)
    with pytest.raises(QlabError, match="pad=True"):
        autoround(w, LayerInputs.of(x), "int4-g16", SHORT)
    q = autoround(w.bfloat16(), LayerInputs.of(x), "int4-g16", AutoRoundOptions(steps=15, pad=True))
    assert q.shape == (6, 40) and q.dtype == "bfloat16" and q.dequantize().dtype == torch.bfloat16


def test_a_model_is_quantized_and_each_layer_is_better():
    model = random_model("llama")
    ids = torch.randint(3, 90, (4, 40), generator=torch.Generator().manual_seed(1))
    data = [row[None] for row in ids]
    small, report = qlab.quantize_model(
        model, "autoround", "int3-channel", data, options=AutoRoundOptions(steps=20, batch=32)
    )
    assert all(r.error <= r.rtn_error * (1 + 1e-5) for r in report.layers)
    assert sum(r.error for r in report.layers) < 0.9 * sum(r.rtn_error for r in report.layers)
    assert math.isfinite(float(small(ids).logits.detach().sum()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": -1}, "steps -1"),
        ({"lr": 0.0}, "lr 0.0"),
        ({"lr": math.nan}, "lr nan"),
        ({"range_lr": -1.0}, "range_lr -1.0"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_bad_options_are_named(change, match):
    with pytest.raises(QlabError, match=match):
        AutoRoundOptions(**change)


def test_bad_input_is_named():
    w, x = layer()
    inputs = LayerInputs.of(x, name="here")
    with pytest.raises(QlabError, match="'autoround' rounds to integers, not to 'nf4-g16'"):
        autoround(w, inputs, "nf4-g16")
    with pytest.raises(QlabError, match="Hessian of layer 'here' is zero"):
        autoround(w, LayerInputs.of(x * 0, name="here"), "int4-g16")
    with pytest.raises(QlabError, match="a layer of 16 inputs"):
        autoround(w[:, :16], inputs, "int4-g16")
    with pytest.raises(QlabError, match="2 axes"):
        autoround(w[0], inputs, "int4-g16")
    w[1, 2] = math.nan
    with pytest.raises(QlabError, match=r"nan at position \(1, 2\)"):
        autoround(w, inputs, "int4-g16")
