"""LLM.int8(): what must hold for any input, and what the paper says."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.methods.llm_int8 import LlmInt8Options, decompose, llm_int8, vectorwise
from qlab.mixed import Int8MixedLinear, with_outliers_apart
from qlab.nn import QuantLinear, quant_layers

seeds = st.integers(0, 2**32 - 1)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(weight, bias=None, threshold=6.0):
    return Int8MixedLinear(
        llm_int8(weight, None, qlab.Scheme.parse("int8-channel")), bias, threshold
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds, rows=st.integers(1, 9), columns=st.integers(1, 33), exponent=st.integers(-30, 30)
)
def test_codes_are_within_half_a_step(seed, rows, columns, exponent):
    x = draw(seed, rows, columns) * 2.0**exponent
    codes, absmax = vectorwise(x)
    assert codes.dtype == torch.int8 and int(codes.abs().max()) == 127
    assert torch.equal(absmax, x.abs().amax(1))
    step = absmax[:, None] / 127
    # Half a step, and what float32 rounds in x · (127 / c): 128 · 2^-23 steps at the most.
    assert ((codes * step - x).abs() <= step * (0.5 + 2e-5)).all()


@settings(max_examples=60, deadline=None)
@given(seed=seeds, tokens=st.integers(1, 6), threshold=st.sampled_from([0.5, 1.0, 2.0, 6.0]))
def test_the_parts_make_the_input(seed, tokens, threshold):
    x = draw(seed, tokens, 24) * 2
    parts = decompose(x, threshold)
    assert parts.outliers.tolist() == (x.abs() >= threshold).any(0).nonzero().flatten().tolist()
    assert (parts.codes[:, parts.outliers] == 0).all()
    regular = torch.ones(24, dtype=torch.bool)
    regular[parts.outliers] = False
    assert (parts.absmax < threshold).all()
    restored = parts.codes * parts.absmax[:, None] / 127
    error = (restored - x)[:, regular].abs()
    # No step is larger than threshold / 127, whatever the outliers are.
    assert (error <= threshold / 127 * 0.50002).all()


@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.floats(10, 1e4))
def test_the_size_of_an_outlier_does_not_matter_to_the_others(seed, size):
    """With vector-wise int8 alone an outlier costs all other features; here it costs none."""
    x = draw(seed, 4, 32).clamp(-5, 5)
    spoiled = x.clone()
    spoiled[2, 7] = size
    clean, dirty = decompose(x), decompose(spoiled)
    others = torch.arange(32) != 7
    keep = torch.arange(4) != 2
    assert torch.equal(clean.codes[keep][:, others], dirty.codes[keep][:, others])
    assert dirty.outliers.tolist() == [7]
    if int(x[2].abs().argmax()) != 7:
        assert torch.equal(clean.codes[:, others], dirty.codes[:, others])


@settings(max_examples=40, deadline=None)
@given(seed=seeds, threshold=st.sampled_from([0.0, 1.0, 3.0, 6.0]), bias=st.booleans())
def test_the_layer_is_the_equation(seed, threshold, bias):
    """Equation 8 of the paper, in float64."""
    x, w, b = draw(seed, 5, 24) * 2, draw(seed + 1, 7, 24), draw(seed + 2, 7) if bias else None
    made = layer(w, b, threshold)
    y = made(x)
    parts = decompose(x, threshold)
    restored = parts.codes.double() * (parts.absmax.double() / 127)[:, None]
    restored[:, parts.outliers] = x[:, parts.outliers].double()
    exact = restored @ made.weight.double().T + (0 if b is None else b.double())
    # A few roundings of float32 on sums of 24 products.
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    assert made.outlier_columns == len(parts.outliers)


def test_a_threshold_of_zero_is_int8_token():
    """No decomposition: what int8-token times int8-channel computes, but for ties."""
    x, w = draw(0, 6, 64), draw(1, 16, 64)
    _, ours = layer(w, None, 0.0), layer(w, None, 0.0)(x)
    plain = QuantLinear(
        qlab.quantize(w, "int8-channel"),
        activations=qlab.activations.ActivationQuant(qlab.Scheme.parse("int8-token")),
    )
    # A value on a tie may go to the other code, which moves an output by one step of both sides.
    torch.testing.assert_close(ours, plain(x), rtol=0, atol=2 * 3 / 127 * 3)
    assert qlab.sqnr(plain(x), ours) > 60


def test_outliers_spoil_int8_and_the_decomposition_mends_it():
    """The paper's point: with an outlier feature of 60 the error falls to that without one."""
    x, w = draw(0, 64, 128), draw(1, 32, 128) * 0.05
    spoiled = x.clone()
    spoiled[:, 5] = 60.0
    clean = qlab.sqnr(x @ w.T, layer(w, None, 0.0)(x))
    broken = qlab.sqnr(spoiled @ w.T, layer(w, None, 0.0)(spoiled))
    # The signal holds the outlier too, so compare errors, not ratios.
    noise = lambda t: (layer(w, None, t)(spoiled) - spoiled @ w.T).square().mean().sqrt()  # noqa: E731
    alone = (layer(w, None, 0.0)(x) - x @ w.T).square().mean().sqrt()
    assert noise(0.0) > 5 * alone
    # What is left of the outlier is the rounding of its int8 weights, 60 times half a step.
    assert noise(6.0) < 0.5 * noise(0.0)
    assert clean > 35 and broken > 10


def test_shapes_dtypes_and_rows_of_zeros():
    w = draw(0, 5, 17)
    w[2] = 0
    made = layer(w, draw(1, 5))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        y = made(draw(2, 2, 3, 17).to(dtype))
        assert y.shape == (2, 3, 5) and y.dtype == dtype and torch.isfinite(y).all()
    x = torch.zeros(4, 17)
    assert torch.equal(made(x), made.bias.expand(4, 5))
    assert (made(draw(3, 6, 17))[:, 2] == made.bias[2]).all()
    assert made(draw(3, 0, 17)).shape == (0, 5)
    assert "threshold=6.0" in repr(made)
    every = made(torch.full((3, 17), 100.0))
    assert made.outlier_columns == 17
    torch.testing.assert_close(every, torch.full((3, 17), 100.0) @ made.weight.T + made.bias)


@pytest.mark.parametrize("scheme", ["int8-tensor", "int4-channel", "int8-asym-channel", "nf4-g64"])
def test_other_schemes_are_refused(scheme):
    w = draw(0, 8, 64)
    with pytest.raises(qlab.QlabError, match="int8-channel"):
        llm_int8(w, None, qlab.Scheme.parse(scheme))
    with pytest.raises(qlab.QlabError, match="int8-channel"):
        Int8MixedLinear(qlab.quantize(w, scheme))


def test_bad_numbers_are_refused():
    with pytest.raises(qlab.QlabError, match="threshold -1"):
        decompose(draw(0, 2, 4), -1.0)
    with pytest.raises(qlab.QlabError, match="threshold nan"):
        decompose(draw(0, 2, 4), float("nan"))
    x = draw(0, 2, 4)
    x[1, 2] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"input has nan at position \(1, 2\)"):
        decompose(x)
    with pytest.raises(qlab.QlabError, match="weight has inf"):
        llm_int8(torch.full((2, 2), float("inf")), None, qlab.Scheme.parse("int8-channel"))
    assert LlmInt8Options().threshold == 6.0


def test_a_whole_model(tiny):
    model, tokenizer = tiny
    ids = torch.arange(3, 40)[None]
    small, report = qlab.quantize_model(model, "llm_int8", "int8-channel")
    before = copy.deepcopy(small.state_dict())
    mixed = with_outliers_apart(small)
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    layers = list(quant_layers(mixed))
    assert len(layers) == len(report.layers) and report.bits_per_weight > 8
    assert all(isinstance(one, Int8MixedLinear) for _, one in layers)
    with torch.no_grad():
        exact, ours = model(ids).logits, mixed(ids).logits
    assert qlab.sqnr(exact, ours) > 20
    assert qlab.perplexity(mixed, tokenizer, "once upon a time the fox") > 1
    assert sum(one.outlier_columns for _, one in layers) >= 0
    with pytest.raises(qlab.QlabError, match="no int8-channel layers"):
        with_outliers_apart(model)
