"""Activation quantization: integer products, dynamic and static ranges, mixed precision."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qlab
from qlab.activations import ActivationQuant, activation_scheme, integer_linear
from qlab.calibrate import MinMax, Percentile, capture
from qlab.core import Scheme, from_codes
from qlab.export import load_folder, save_folder
from qlab.nn import QuantLinear, dequantize_model, quant_layers

WEIGHTS = ("int8-channel", "int4-asym-g16", "uint8-tensor", "int3-b4x16", "ternary-channel")
INPUTS = ("int8-token", "int8-asym-tensor", "uint7-tensor", "int4-g16", "int8-asym-g8")


def dynamic(scheme):
    return ActivationQuant(Scheme.parse(scheme))


def calibration(n=3):
    torch.manual_seed(1)
    return [torch.randint(3, 300, (1, 40)) for _ in range(n)]


# --- the product of integers ---------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(WEIGHTS),
    st.sampled_from(INPUTS),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(-30, 30),
    st.integers(0, 2**31),
)
def test_the_integer_product_is_that_of_the_dequantized_matrices(w, a, tokens, groups, power, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(12, 16 * groups, generator=generator)
    x = torch.randn(tokens, 16 * groups, generator=generator) * 2.0**power + 2.0**power
    qx, qw = dynamic(a).quantize(x), qlab.quantize(weight, w)
    expected = qx.dequantize().double() @ qw.dequantize().double().T
    # Every sum is exact; what is rounded, in float32, are the scales' product, its product with
    # the sum, and the addition of at most 6 stretches of a row.
    size = qx.dequantize().double().abs() @ qw.dequantize().double().abs().T
    assert ((integer_linear(qx, qw) - expected).abs() <= 10 * 2.0**-24 * size).all()


@pytest.mark.parametrize("features", [8, 1024, 1040, 1041, 9000])
def test_sums_are_exact_on_both_sides_of_what_float32_holds(features):
    """The largest codes, whose sum float32 can no longer hold from 1041 inputs on."""
    scheme, one = Scheme.parse("int8-channel"), torch.ones(1, 1)
    codes = torch.full((1, features), 127, dtype=torch.int8)
    codes[0, 0] = 126  # an odd sum, so that a dropped last bit shows
    x = from_codes(codes, one, None, Scheme.parse("int8-token"))
    w = from_codes(torch.full((1, features), -127, dtype=torch.int8), one, None, scheme)
    exact = (codes.to(torch.int64) * -127).sum()
    # float32 is the type of the result, so it is the exact sum rounded once.
    assert integer_linear(x, w).item() == exact.float().item()


def test_products_of_int8_are_those_of_torch_int_mm():
    torch.manual_seed(0)
    x, w = torch.randn(40, 64) * 3, torch.randn(24, 64)
    qx, qw = qlab.quantize(x, "int8-token"), qlab.quantize(w, "int8-channel")
    sums = torch._int_mm(qx.codes, qw.codes.T.contiguous())
    expected = sums.float() * (qx.scale * qw.scale.T)
    assert torch.equal(integer_linear(qx, qw), expected)


def test_only_integers_are_multiplied_as_codes():
    q = qlab.quantize(torch.ones(2, 16), "fp8_e4m3-token")
    with pytest.raises(qlab.QlabError, match="only integer codes"):
        integer_linear(q, qlab.quantize(torch.ones(2, 16), "int8-channel"))


def test_padded_weights_and_their_bias_reach_the_output():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(10, 20), torch.randn(10), torch.randn(2, 3, 20)
    for scheme in ("int4-g16", "int4-asym-b4x16"):
        q = qlab.quantize(weight, scheme, pad=True)
        layer = QuantLinear(q, bias, dynamic("int8-token"))
        x_hat = qlab.quantize(x, "int8-token").dequantize()
        expected = torch.nn.functional.linear(x_hat, q.dequantize(), bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["fp8_e4m3-token", "nf4-g16", "fp8_e4m3-tensor"])
def test_other_formats_are_multiplied_dequantized(scheme):
    torch.manual_seed(0)
    weight, x = torch.randn(8, 32), torch.randn(5, 32)
    layer = QuantLinear(qlab.quantize(weight, "int8-channel"), None, dynamic(scheme))
    expected = qlab.quantize(x, scheme).dequantize() @ layer.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_output_has_the_dtype_of_the_input(dtype):
    layer = QuantLinear(
        qlab.quantize(torch.ones(4, 8), "int8-channel"), None, dynamic("int8-token")
    )
    assert layer(torch.ones(2, 8, dtype=dtype)).dtype == dtype


# --- dynamic and static --------------------------------------------------------------------------


def test_a_tokens_code_does_not_depend_on_its_neighbours_and_a_tensors_does():
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    alone, beside = x[:1], torch.cat([x[:1], 100 * x[1:]])
    for scheme, same in (("int8-token", True), ("int8-g8", True), ("int8-asym-tensor", False)):
        quantizer = dynamic(scheme)
        codes = quantizer.quantize(alone).codes, quantizer.quantize(beside).codes[:1]
        assert torch.equal(*codes) == same


UGLY = {
    "zeros": torch.zeros(3, 16),
    "constant": torch.full((3, 16), -2.5),
    "one outlier": torch.eye(16)[:3] * 1e30,
    "denormal": torch.full((2, 16), 1e-42),
    "huge": torch.full((2, 16), 3e38) * torch.tensor([1.0, -1.0] * 8),
    "one token": torch.arange(16.0)[None],
    "no token": torch.zeros(0, 16),
}


@pytest.mark.parametrize("scheme", ["int8-token", "int8-asym-tensor", "uint8-tensor", "int8-g16"])
@pytest.mark.parametrize("x", UGLY.values(), ids=UGLY)
def test_ugly_inputs_stay_within_half_a_step(x, scheme):
    q = dynamic(scheme).quantize(x)
    error = (q.dequantize().double() - x.double()).abs()
    step = q.scale.double().max() if len(x) else 0
    # Within half a step; asymmetric limits move by up to half a step when zero gets its code.
    assert (error <= step * (1 if q.zero_point is not None else 0.5) * (1 + 1e-6)).all()
    weight = qlab.quantize(torch.randn(4, 16), "int8-channel")
    assert integer_linear(q, weight).shape == (len(x), 4)


def test_nan_is_refused_with_its_position(tiny):
    x = torch.zeros(2, 16)
    x[1, 3] = torch.nan
    for quantizer in (
        dynamic("int8-token"),
        ActivationQuant(Scheme.parse("int8-tensor"), torch.ones(1, 1)),
    ):
        with pytest.raises(qlab.QlabError, match=r"\(1, 3\)"):
            quantizer.quantize(x)


def test_a_static_range_is_the_observers_and_clips_what_lies_beyond(tiny):
    model, data = tiny[0], calibration()
    small, report = qlab.quantize_model(
        model, "rtn", "int8-channel", data, activations="int8-asym-tensor"
    )
    stats = capture(model, data, ["minmax"])
    for name, layer in quant_layers(small):
        quantizer = layer.activations
        scale, zero = stats[name].observers["minmax"].params("int8-asym-tensor")
        assert quantizer.static and quantizer.scale.item() == scale.item()
        assert quantizer.zero_point.item() == zero.item()
        far = torch.full((2, layer.in_features), 2 * stats[name].maximum + 1)
        assert (quantizer.quantize(far).codes == 127).all()
        # Codes of a token do not depend on what else is there.
        assert torch.equal(quantizer.quantize(far[:1]).codes, quantizer.quantize(far).codes[:1])
    assert report.observer == "minmax" and report.activations == "int8-asym-tensor"
    assert {r.activations for r in report.layers} == {"int8-asym-tensor (static)"}
    assert "activations int8-asym-tensor (minmax)" in str(report)


def test_observers_by_name_by_function_and_captured_before(tiny):
    model, data = tiny[0], calibration()
    asked = {"activations": "int8-tensor"}
    by_name, _ = qlab.quantize_model(
        model, "rtn", "int8-channel", data, observer="percentile", **asked
    )
    made, report = qlab.quantize_model(
        model, "rtn", "int8-channel", data, observer=lambda: Percentile(90.0), **asked
    )
    stats = capture(model, data, ["percentile"])
    before, _ = qlab.quantize_model(
        model, "rtn", "int8-channel", stats, observer="percentile", **asked
    )
    assert report.observer == "percentile"
    for (_, a), (_, b), (_, c) in zip(
        quant_layers(by_name), quant_layers(made), quant_layers(before), strict=True
    ):
        assert a.input_scale.item() == c.input_scale.item() > b.input_scale.item()


def test_more_calibration_data_never_narrows_min_max(tiny):
    model, data = tiny[0], calibration(6)
    scales = [
        [
            layer.input_scale.item()
            for _, layer in quant_layers(
                qlab.quantize_model(
                    model, "rtn", "int8-channel", data[:n], activations="int8-asym-tensor"
                )[0]
            )
        ]
        for n in (1, 3, 6)
    ]
    assert all(a <= b <= c for a, b, c in zip(*scales, strict=True))


@pytest.mark.parametrize("activations", ["int8-token", "uint8-tensor", "fp8_e4m3-token"])
def test_a_quantized_model_is_close_and_dequantizing_keeps_its_activations(tiny, activations):
    model, _ = tiny
    ids = torch.arange(30)[None] + 3
    small, _ = qlab.quantize_model(
        model, "rtn", "int8-channel", activations=activations, observer="dynamic"
    )
    with torch.no_grad():
        exact, got = model(ids).logits, small(ids).logits
        assert torch.equal(got, dequantize_model(small)(ids).logits)
        weights_only, _ = qlab.quantize_model(model, "rtn", "int8-channel")
        error = (got - exact).norm() / exact.norm()
    # 8 bits of a tensor's range lose about 1% in each layer, e4m3's 3 bits of mantissa about 2%.
    assert 0 < error < 0.2
    assert not torch.equal(got, weights_only(ids).logits)


def test_errors_grow_as_the_bits_of_activations_shrink(tiny):
    model, _ = tiny
    ids = torch.arange(30)[None] + 3
    errors = []
    with torch.no_grad():
        exact = model(ids).logits
        for bits in (2, 4, 6, 8):
            small, _ = qlab.quantize_model(model, activations=f"int{bits}-token", scheme="int8")
            errors.append(float((small(ids).logits - exact).norm()))
    assert errors == sorted(errors, reverse=True)


def test_layers_with_a_bias_and_transposed_weights():
    import transformers as t

    torch.manual_seed(0)
    model = t.GPT2LMHeadModel(
        t.GPT2Config(
            vocab_size=100,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    ids = torch.arange(20)[None] + 3
    small, report = qlab.quantize_model(
        model, "rtn", "int8-channel", [ids], activations="int8-asym-tensor"
    )
    assert len(report.layers) == 8
    with torch.no_grad():
        exact = model(ids).logits
        assert (small(ids).logits - exact).norm() < 0.05 * exact.norm()


# --- mixed precision -----------------------------------------------------------------------------


def test_layers_have_schemes_of_their_own(tiny):
    model, _ = tiny
    small, report = qlab.quantize_model(
        model,
        "rtn",
        "int4-channel",
        schemes={
            "*.0.mlp.down_proj": None,
            "*.down_proj": "int8-g32",
            "model.layers.?.self_attn.*": "int6-channel",
        },
        activations="int8-token",
    )
    kept = small.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(kept, torch.nn.Linear)
    assert torch.equal(kept.weight, model.get_submodule("model.layers.0.mlp.down_proj").weight)
    found = {name: layer.scheme.name for name, layer in quant_layers(small)}
    assert found["model.layers.1.mlp.down_proj"] == "int8-g32"
    assert found["model.layers.1.self_attn.k_proj"] == "int6-channel"
    assert found["model.layers.1.mlp.up_proj"] == "int4-channel"
    assert {r.name: r.scheme for r in report.layers} == found
    assert report.scheme == "int4-channel" and "int8-g32" in str(report)
    weights = sum(r.weights for r in report.layers)
    bits = sum(r.bits_per_weight * r.weights for r in report.layers) / weights
    assert report.bits_per_weight == pytest.approx(bits)


def test_layers_of_one_scheme_share_what_is_global(tiny):
    small, report = qlab.quantize_model(
        tiny[0],
        "rtn",
        "int8-global",
        schemes={"*.mlp.*": "int4-channel", "*.v_proj": "int4-global"},
    )
    scales = {}
    for _name, layer in quant_layers(small):
        scales.setdefault(layer.scheme.name, set()).add(layer.scale.data_ptr())
    assert len(scales["int8-global"]) == len(scales["int4-global"]) == 1
    assert len(scales["int4-channel"]) == 6
    one = [r for r in report.layers if r.scheme == "int4-global"]
    assert all(r.bits_per_weight == pytest.approx(4 + 32 / (2 * 64 * 64)) for r in one)


# --- as a file -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["int8-token", "int8-asym-tensor"])
def stored(request, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a") / "small"
    small, _ = qlab.quantize_model(
        tiny[0],
        "rtn",
        "int4-asym-g32",
        calibration(),
        activations=request.param,
        schemes={"*.o_proj": None, "*.q_proj": "int8-channel"},
    )
    save_folder(small, tiny[1], folder, method="rtn")
    return small, folder


def test_activations_survive_a_folder(stored):
    small, folder = stored
    again = load_folder(folder)
    ids = torch.arange(40)[None] + 3
    with torch.no_grad():
        assert torch.equal(again(ids).logits, small(ids).logits)
    kinds = {str(layer.activations) for _, layer in quant_layers(small)}
    assert {str(layer.activations) for _, layer in quant_layers(again)} == kinds
    assert len(kinds) == 1


def test_a_folder_without_its_ranges_is_refused(stored, tmp_path):
    _, folder = stored
    about = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"]
    name, first = next(iter(about.items()))
    if not first["activations"]["static"]:
        assert not any(
            key.endswith((".input_scale", ".input_zero_point"))
            for key in load_file(folder / "model.safetensors")
        )
        return
    for part in ("input_scale", "input_zero_point"):
        copy = tmp_path / part
        shutil.copytree(folder, copy)
        tensors = load_file(copy / "model.safetensors")
        tensors.pop(f"{name}.{part}")
        save_file(tensors, copy / "model.safetensors")
        with pytest.raises(qlab.QlabError, match=part):
            load_folder(copy)


# --- bad input -----------------------------------------------------------------------------------


def test_bad_requests_name_the_remedy(tiny):
    model = tiny[0]

    def refused(says, *args, **kwargs):
        with pytest.raises(qlab.QlabError, match=says):
            qlab.quantize_model(model, "rtn", "int8-channel", *args, **kwargs)

    refused("needs data: pass.*or observer='dynamic'", activations="int8-tensor")
    refused("comes and goes", calibration(), activations="int8-token", observer="minmax")
    refused("int8-token", activations="int8-channel")
    refused("int4-token", activations="int4-b8x8")
    refused("unknown observer 'maxmin'.*minmax", activations="int8-tensor", observer="maxmin")
    refused("name their scheme", observer="minmax")
    refused("no layer is called '\\*.gate'.*gate_proj", schemes={"*.gate": "int4"})
    refused("keeps every layer", schemes={"*": None})
    refused("unknown", schemes={"*.q_proj": "it4-channel"})
    stats = capture(model, calibration(), {"minmax": MinMax})
    refused("was not captured.*minmax", stats, activations="int8-tensor", observer="percentile")
    with pytest.raises(qlab.QlabError, match=r"token or a group"):
        activation_scheme("int8-global")
