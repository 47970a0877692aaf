"""What the chapter on PyTorch and torchao says, on input of our own."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qlab
from qlab.activations import ActivationQuant
from qlab.nn import QuantLinear

seeds = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def x86():
    """The engine that the chapter sets, without its warnings."""
    old = torch.backends.quantized.engine
    torch.backends.quantized.engine = (
        "x86" if "x86" in torch.backends.quantized.supported_engines else old
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = old


def dynamic_linear(x, w_codes, w_scale, bits=7):
    """The chapter's."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    s = (high - low) / (2**bits - 1)
    z = round(-low / s)
    codes = (torch.round(x / s) + z).clamp(0, 2**bits - 1)
    return s * w_scale * ((codes - z) @ w_codes.float().T)


def same_up_to_ties(theirs, w, scheme):
    """The chapter's."""
    q = qlab.quantize(w, scheme)
    scale = (
        q.scale
        if q.scale.numel() == 1
        else q.scale.repeat_interleave(w.shape[1] // q.scale.shape[1], 1)
    )
    dead = scale <= torch.finfo(torch.float32).eps
    different = (theirs != q.codes) & ~dead
    edge = ((w / scale)[different].abs() % 1 - 0.5).abs()
    near = (theirs.int() - q.codes.int())[different].abs() <= 1
    return bool((edge < 2.0**-12).all() and near.all())


def quantized_layer(w):
    from torch.ao.quantization import quantize_dynamic

    net = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False))
    net[0].weight.data = w
    return quantize_dynamic(net, {nn.Linear}, torch.qint8)[0]


@settings(max_examples=25, deadline=None)
@given(seed=seeds, shift=st.floats(-3, 3), outlier=st.sampled_from([0.0, 20.0, 1000.0]))
def test_the_open_cell_is_torchs_layer_and_qlabs(seed, shift, outlier):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(24, 32, generator=g)
    x = torch.randn(10, 32, generator=g) + shift
    x[0, 0] += outlier
    layer = quantized_layer(w)
    stored = layer.weight()
    assert same_up_to_ties(stored.int_repr(), w, "int8-full-tensor")
    theirs = layer(x)
    open_ = dynamic_linear(x, stored.int_repr(), stored.q_scale())
    inputs = ActivationQuant(qlab.Scheme.parse("uint7-tensor"))
    ours = QuantLinear(qlab.quantize(w, "int8-full-tensor"), None, inputs)(x)
    # A value at the edge of a step moves an output by one step of the input times a weight.
    step = (float(x.clamp(min=0).max()) - float(x.clamp(max=0).min())) / 127
    for y in (open_, ours):
        assert float((y - theirs).abs().max()) <= 2.2 * step * float(w.abs().max()) + 1e-4


@pytest.mark.parametrize("what", ["zeros", "one value", "huge"])
def test_the_layer_on_hard_input(what):
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    layer = quantized_layer(w)
    x = {"zeros": torch.zeros(3, 16), "one value": torch.full((3, 16), 0.7), "huge": 1e20 * w[:3]}
    theirs = layer(x[what])
    assert torch.isfinite(theirs).all()
    if what == "zeros":
        assert (theirs == 0).all()
    else:
        open_ = dynamic_linear(x[what], layer.weight().int_repr(), layer.weight().q_scale())
        assert qlab.sqnr(theirs, open_) > 30


@pytest.mark.oracle("format int{bits}", "torchao", "equal codes of groups but at ties")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_intx_codes_and_the_bits_held(bits):
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    from qlab.viz.toolbox_bytes import held_bytes

    g = torch.Generator().manual_seed(bits)
    w = torch.randn(32, 128, generator=g)
    w[3] = 0
    w[5] = 0.25
    w[7, 9] = 1e4
    w[9] *= 1e20
    w[11] *= 1e-5
    net = nn.Sequential(nn.Linear(128, 32, bias=False))
    net[0].weight.data = w.clone()
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(64)
    )
    quantize_(net, config)
    tensor = net[0].weight
    assert same_up_to_ties(tensor.qdata, w, f"int{bits}-full-g64")
    # A byte a code, a float32 scale and a byte of zero point for 64: whatever the bits.
    assert held_bytes(net[0]) == w.numel() + 5 * w.numel() // 64
    packed = qlab.core.pack((tensor.qdata.flatten().int() + 2 ** (bits - 1)).to(torch.uint8), bits)
    assert packed.numel() == w.numel() * bits // 8


@settings(max_examples=20, deadline=None)
@given(seed=seeds, shift=st.floats(-3, 3))
def test_static_ranges_are_qlabs(seed, shift):
    from torch.ao.quantization import MinMaxObserver

    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(seed)) + shift
    observer = MinMaxObserver(dtype=torch.quint8, reduce_range=True)
    observer(x)
    scale, zero = observer.calculate_qparams()
    q = qlab.quantize(x, "uint7-tensor")
    assert float(scale) == pytest.approx(float(q.scale), rel=1e-5)
    assert abs(int(zero) - int(q.zero_point)) <= 1  # one where it falls between two whole numbers


def test_it_says_that_it_is_deprecated():
    """The chapter prints the message; when this fails, it has been removed."""
    from torch.ao.quantization import quantize_dynamic

    with pytest.warns(DeprecationWarning, match="torch.ao.quantization is deprecated"):
        quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, torch.qint8)


def test_prepare_and_convert_of_8da4w_are_one_function():
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.qat import QATConfig

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32, bias=False))
    w = net[0].weight.detach().clone()
    x = torch.randn(20, 64)
    quantize_(net, QATConfig(config, step="prepare"))
    with torch.no_grad():
        prepared = net(x)
        quantize_(net, QATConfig(config, step="convert"))
        converted = net(x)
    ours = QuantLinear(
        qlab.quantize(w, "int4-full-g32"),
        None,
        ActivationQuant(qlab.Scheme.parse("int8-asym-token")),
    )(x)
    assert qlab.sqnr(prepared, converted) > 60
    # Ties of the weights, and of the inputs, may fall to the other side: a few codes of many.
    assert qlab.sqnr(converted, ours) > 25
