"""Ternary weights: transformers' BitNet layers, properties, GGUF's ternary types."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.errors import QlabError
from qlab.nn import QuantLinear
from qlab.training import prepare
from qlab.training.ternary import SMALLEST, AbsMean, mean_magnitude, ternarize


def matrices():
    """name -> float32 (8, 256): ordinary and adversarial."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(8, 256, generator=g)
    outlier = normal.clone()
    outlier[3, 5] = 1e4
    return {
        "normal": normal,
        "small": normal * 1e-3,
        "outlier": outlier,
        "constant": torch.full((8, 256), 0.25),
        "zeros": torch.zeros(8, 256),
        "tiny": normal * 1e-30,
        "signs": torch.where(normal > 0, 1.0, -1.0),
    }


@pytest.mark.oracle(
    "training absmean", "transformers", "equal codes of BitNet's weights but at ties"
)
@pytest.mark.parametrize("name", matrices())
def test_the_weights_are_those_of_transformers_bitnet(name):
    from transformers.integrations.bitnet import WeightQuant

    w = matrices()[name]
    theirs = WeightQuant.apply(w.clone())
    q = ternarize(w)
    # They multiply by 1 / γ and divide by it again: two roundings more than ours, and another code
    # only where W / γ is within them of ±0.5.
    near = ((w / q.scale).abs() - 0.5).abs() < 1e-6
    torch.testing.assert_close(q.dequantize()[~near], theirs[~near], rtol=1e-6, atol=0)
    assert near.float().mean() < 0.01


@pytest.mark.oracle("training absmean", "transformers", "the same gradients as BitNet's")
def test_gradients_pass_as_in_transformers_bitnet():
    from transformers.integrations.bitnet import WeightQuant

    w = matrices()["outlier"]
    ours, theirs = w.clone().requires_grad_(), w.clone().requires_grad_()
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    (x @ AbsMean()(ours).T).pow(2).sum().backward()
    (x @ WeightQuant.apply(theirs).T).pow(2).sum().backward()
    # Sums of float32 over two weights that differ in their last bit.
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-3)
    assert ours.grad[3, 5] != 0  # clipped, and still trained


@pytest.mark.oracle("training absmean", "transformers", "the same output of a BitNet layer")
def test_a_layer_with_rounded_inputs_computes_as_transformers_autobitlinear():
    from transformers.integrations.bitnet import AutoBitLinear

    w = matrices()["normal"]
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2))
    theirs = AutoBitLinear(256, 8, bias=False, online_quant=True)
    theirs.weight.data.copy_(w)
    layer = torch.nn.Sequential()
    layer.add_module("proj", torch.nn.Linear(256, 8, bias=False))
    layer.proj.weight.data.copy_(w)
    fake = prepare(layer, "ternary-tensor", "int8-token", method="absmean").eval()
    with torch.no_grad():
        ours, expected = fake(x), theirs(x)
    # Theirs rounds inputs to -128 .. 127, ours to -127 .. 127: the same, as the largest is 127.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.sampled_from(["tensor", "channel", "g64"]))
def test_codes_are_ternary_and_scale_with_the_weights(seed, factor, where):
    w = torch.randn(4, 128, generator=torch.Generator().manual_seed(seed))
    q = ternarize(w, f"ternary-{where}")
    assert set(q.codes.unique().tolist()) <= {-1, 0, 1}
    gamma = mean_magnitude(w, f"ternary-{where}")
    assert torch.equal(q.scale, gamma)
    twice = ternarize(w * 2.0, f"ternary-{where}")  # a power of two: exact
    assert torch.equal(twice.codes, q.codes) and torch.equal(twice.scale, q.scale * 2)
    again = ternarize(w * factor, f"ternary-{where}")
    assert (again.codes != q.codes).float().mean() < 0.01  # but for ties that rounding moves


def test_normal_weights_lose_what_the_integral_says():
    """γ = √(2/π) σ: 31% zeros, and an SQNR of 6.6 dB, by numerical integration of the density."""
    sigma, gamma = 1.0, (2 / np.pi) ** 0.5
    t = np.linspace(-8, 8, 400001)
    density = np.exp(-(t**2) / 2) / (2 * np.pi) ** 0.5
    error = (t - gamma * np.clip(np.round(t / gamma), -1, 1)) ** 2
    step = t[1] - t[0]
    expected = 10 * np.log10(sigma**2 / ((error * density).sum() * step))
    zeros = (density * (np.abs(t) < gamma / 2)).sum() * step
    w = torch.randn(512, 1024, generator=torch.Generator().manual_seed(3))
    q = ternarize(w)
    # 524,288 samples: a standard error of about 0.01 dB and 0.0006.
    assert qlab.sqnr(w, q) == pytest.approx(expected, abs=0.05)
    assert float((q.codes == 0).float().mean()) == pytest.approx(zeros, abs=0.005)


@pytest.mark.oracle("training absmean", "llama.cpp", "equal weights read back from TQ1_0 and TQ2_0")
@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_ggufs_ternary_types_hold_them_exactly(kind):
    from qlab.gguf import dequantize, quantize
    from qlab.gguf.blocks import block_type
    from tests.gguf import llamacpp

    q = ternarize(matrices()["normal"], "ternary-tensor-sfp16")
    w = q.dequantize().numpy()
    data = quantize(w, kind)
    assert np.array_equal(dequantize(data, kind), w)
    assert np.array_equal(llamacpp.dequantize(data, block_type(kind).type_id), w)


def test_zeros_stay_zeros_and_bad_input_is_named():
    q = ternarize(torch.zeros(4, 64))
    assert float(q.scale) == pytest.approx(SMALLEST) and not q.dequantize().any()
    with pytest.raises(QlabError, match="not of int4: use 'ternary-tensor'"):
        ternarize(torch.ones(4, 64), "int4-tensor")
    with pytest.raises(QlabError, match="not of int2"):
        prepare(torch.nn.Sequential(torch.nn.Linear(8, 8)), "int2-tensor", method="absmean")
    with pytest.raises(QlabError, match="NaN or infinity"):
        ternarize(torch.full((4, 64), float("nan")))


def test_the_converted_layer_is_the_trained_one(tiny):
    from qlab.training import convert

    model, _ = tiny
    fake = prepare(model, "ternary-tensor", "int8-token", method="absmean").eval()
    small = convert(fake)
    ids = torch.arange(20)[None] + 3
    with torch.no_grad():
        assert torch.equal(small(ids).logits, fake(ids).logits)
    layers = [m for m in small.modules() if isinstance(m, QuantLinear)]
    assert layers and all(m.scheme.name == "ternary-tensor" for m in layers)
