"""What the chapter on families says of zero points, ranges and rounding noise, on our own input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.activations import ActivationQuant, integer_linear
from qlab.core import Scheme
from qlab.nn import QuantLinear


def product_in_the_open(w, x):
    """The chapter's integer product: symmetric weights a row, one asymmetric range for x."""
    s_w = w.abs().amax(1, keepdim=True) / 127
    d = (w / s_w).round().clamp(-127, 127).to(torch.int64)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    s_x = (high - low) / 255
    z_x = round(-low / s_x)
    c = ((x / s_x).round() + z_x).clamp(0, 255).to(torch.int64)
    return s_x * s_w.T * (c @ d.T - z_x * d.sum(1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-3, 3), width=st.sampled_from([3, 64, 200]))
def test_the_zero_point_costs_the_sum_of_the_weight_codes(seed, shift, width):
    g = torch.Generator().manual_seed(seed)
    w, x = torch.randn(5, width, generator=g), torch.randn(7, width, generator=g) + shift
    layer = QuantLinear(
        qlab.quantize(w, "int8-channel"), activations=ActivationQuant(Scheme.parse("uint8-tensor"))
    )
    ours = product_in_the_open(w, x)
    # A value at the edge of its step may round to either side: one step of x times a weight.
    step = float(x.max() - x.min()) / 255 * float(w.abs().max())
    assert float((layer(x) - ours).abs().max()) <= 2 * step + 1e-4


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), peak=st.floats(10, 1000))
def test_one_large_token_coarsens_all_others_unless_each_has_its_range(seed, peak):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 32, generator=g)
    x[3] *= peak
    others = torch.arange(16) != 3
    one_range = qlab.quantize(x, "int8-tensor").dequantize()
    each = qlab.quantize(x, "int8-token").dequantize()
    assert qlab.mse(x[others], one_range[others]) > 3 * qlab.mse(x[others], each[others])


def test_a_static_range_does_not_move_and_a_dynamic_one_does():
    scheme = Scheme.parse("int8-asym-tensor")
    x = torch.linspace(-1, 1, 64).reshape(2, 32)
    dynamic = ActivationQuant(scheme)
    fitted = qlab.quantize(x, scheme)
    static = ActivationQuant(scheme, fitted.scale, fitted.zero_point)
    far = 10 * x
    assert float(dynamic.quantize(far).dequantize().max()) == pytest.approx(10, rel=0.02)
    assert float(static.quantize(far).dequantize().max()) == pytest.approx(1, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8))
def test_integers_give_what_the_restored_matrices_give(seed, bits):
    g = torch.Generator().manual_seed(seed)
    x = qlab.quantize(torch.randn(6, 48, generator=g), "int8-asym-tensor")
    w = qlab.quantize(torch.randn(4, 48, generator=g), f"int{bits}-g16")
    expected = x.dequantize().double() @ w.dequantize().double().T
    # float32 sums of three stretches.
    torch.testing.assert_close(integer_linear(x, w).double(), expected, rtol=1e-4, atol=1e-4)
