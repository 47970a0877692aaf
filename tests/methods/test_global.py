"""Granularity ``global``: all layers of a model share one scale and one zero point."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import quantize_shared, shared_params
from qlab.evaluate import model_size
from qlab.export import load_folder, save_folder
from qlab.methods.registry import Method
from qlab.nn import dequantize_model, linear_layers, quant_layers, weight_of

WORDS = ["int8-global", "int4-asym-global", "int8-global-sfp16", "uint8-global"]


@pytest.mark.parametrize("word", WORDS)
def test_all_layers_share_one_scale_fitted_to_the_whole_range(tiny, word):
    """The parameters, codes and values are those of all weights laid out as one tensor."""
    model, _ = tiny
    small, _ = qlab.quantize_model(model, "rtn", word)
    weights = [weight_of(layer) for _, layer in linear_layers(model)]
    whole = qlab.quantize(
        torch.cat([w.flatten() for w in weights]), word.replace("global", "tensor")
    )
    layers = [layer for _, layer in quant_layers(small)]
    assert len(layers) == len(weights) > 10
    assert {float(layer.scale) for layer in layers} == {float(whole.scale)}
    if whole.zero_point is not None:
        assert {int(layer.zero_point) for layer in layers} == {int(whole.zero_point)}
    together = torch.cat([layer.weight.flatten() for layer in layers])
    assert torch.equal(together, whole.dequantize())


@pytest.mark.parametrize("word", WORDS)
def test_the_parameters_are_counted_once(tiny, word):
    model, _ = tiny
    small, report = qlab.quantize_model(model, "rtn", word)
    weights = sum(w.numel() for w in (weight_of(layer) for _, layer in linear_layers(model)))
    scheme = qlab.Scheme.parse(word)
    scale_bits = 16 if "sfp16" in word else 32
    # A zero point is stored in as many bits as a code; metadata is rounded up to bytes.
    zero_bits = 0 if scheme.symmetric else scheme.format.bits
    metadata = -(-(scale_bits + zero_bits) // 8) * 8
    expected = scheme.format.bits + metadata / weights
    assert report.bits_per_weight == pytest.approx(expected, rel=1e-12)
    assert model_size(small).bits_per_weight == pytest.approx(expected, rel=1e-12)
    assert sum(r.weights for r in report.layers) == weights
    # A scale for each layer costs more, and by exactly the other layers' parameters.
    _, each = qlab.quantize_model(model, "rtn", word.replace("global", "tensor"))
    extra = (len(each.layers) - 1) * metadata / weights
    assert each.bits_per_weight - report.bits_per_weight == pytest.approx(extra, rel=1e-6)
    assert f"{report.bits_per_weight:.3f} bits per weight" in str(report)


def test_the_report_weighs_layers_by_their_weights(tiny):
    """With other granularities the sum over layers is what the tensors take."""
    for word in ("int4-g32", "int3-asym-channel", "int8-tensor"):
        small, report = qlab.quantize_model(tiny[0], "rtn", word)
        assert report.bits_per_weight == pytest.approx(model_size(small).bits_per_weight, rel=1e-12)


@pytest.mark.parametrize("word", WORDS)
def test_a_folder_holds_the_parameters_once_and_gives_them_back(tiny, tmp_path, word):
    from safetensors.torch import load_file

    model, tokenizer = tiny
    small, _ = qlab.quantize_model(model, "rtn", word)
    save_folder(small, tokenizer, tmp_path / "small", method="rtn")
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert sum(name.endswith(".scale") for name in stored) == 1
    assert sum(name.endswith(".zero_point") for name in stored) == (
        0 if qlab.Scheme.parse(word).symmetric else 1
    )
    size = model_size(small)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == size.total
    again = load_folder(tmp_path / "small")
    assert model_size(again) == size
    for (name, one), (other_name, other) in zip(
        quant_layers(small), quant_layers(again), strict=True
    ):
        assert name == other_name and torch.equal(one.weight, other.weight)


def test_two_global_scales_in_one_model_stay_apart(tiny, tmp_path):
    """Quantizing in two steps gives two scales; size and folder keep each where it belongs."""
    model, tokenizer = tiny
    mlp = ("lm_head", "gate_proj", "up_proj", "down_proj")
    attention = ("lm_head", "q_proj", "k_proj", "v_proj", "o_proj")
    small, _ = qlab.quantize_model(model, "rtn", "int8-global", skip=mlp)
    small, _ = qlab.quantize_model(small, "rtn", "int8-global", skip=attention)
    assert len({float(layer.scale) for _, layer in quant_layers(small)}) == 2
    codes = sum(layer.packed.numel() for _, layer in quant_layers(small))
    assert model_size(small).quantized == codes + 2 * 4
    save_folder(small, tokenizer, tmp_path / "small")
    again = load_folder(tmp_path / "small")
    for (_, one), (_, other) in zip(quant_layers(small), quant_layers(again), strict=True):
        assert torch.equal(one.weight, other.weight)


def test_the_model_computes_with_the_shared_parameters(tiny):
    model, _ = tiny
    small, report = qlab.quantize_model(model, "rtn", "int8-global")
    ids = torch.arange(30)[None] + 3
    with torch.no_grad():
        torch.testing.assert_close(
            small(ids).logits, dequantize_model(small)(ids).logits, rtol=1e-5, atol=1e-5
        )
    for r, (_, layer) in zip(report.layers, linear_layers(model), strict=True):
        w = weight_of(layer)
        scale = float(next(iter(quant_layers(small)))[1].scale)
        # 127 steps reach the largest weight of the model, so nothing is clipped.
        error = (w - small.get_submodule(r.name).weight).abs().max()
        assert float(error) <= scale / 2 * (1 + 1e-5)


def test_of_one_tensor_global_is_tensor():
    w = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    for word in WORDS:
        one, other = qlab.quantize(w, word), qlab.quantize(w, word.replace("global", "tensor"))
        np.testing.assert_array_equal(one.packed, other.packed)
        np.testing.assert_array_equal(one.dequantize(), other.dequantize())
        assert one.nbytes == other.nbytes and one.scheme.name == word


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 5),
    size=st.floats(1e-30, 1e30),
    word=st.sampled_from(WORDS),
    torch_too=st.booleans(),
)
def test_shared_parameters_are_those_of_the_tensors_end_to_end(seed, count, size, word, torch_too):
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(0, 5, rng.integers(0, 4))) for _ in range(count)]
    tensors = [np.asarray(rng.standard_normal(s) * size, np.float32) for s in shapes]
    tensors.append(np.float32(size) * np.ones((1, 1), np.float32))
    whole = qlab.quantize(np.concatenate([t.ravel() for t in tensors]), word)
    if torch_too:
        tensors = [torch.from_numpy(np.atleast_1d(t)) for t in tensors]
    scale, zero = shared_params(tensors, word)
    assert scale.item() == whole.scale.item()
    assert (zero is None) == (whole.zero_point is None)
    if zero is not None:
        assert zero.item() == whole.zero_point.item()
    parts = [quantize_shared(t, (scale, zero), word) for t in tensors]
    values = np.concatenate([np.asarray(p.dequantize()).ravel() for p in parts])
    np.testing.assert_array_equal(values, whole.dequantize())


def test_bad_input_names_the_thing(tiny):
    import copy

    model, _ = tiny
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"layer 'model.layers.1.mlp.up_proj'.*\(3, 4\)"):
        qlab.quantize_model(broken, "rtn", "int8-global")
    with pytest.raises(qlab.QlabError, match="use 'int8-global'"):
        shared_params([np.ones((2, 4), np.float32)], "int8-channel")
    for nothing in ([], [np.zeros((0, 4), np.float32)]):
        with pytest.raises(qlab.QlabError, match="at least one tensor with an element"):
            shared_params(nothing, "int8-global")


def test_a_method_that_fits_layer_by_layer_cannot_share(tiny, monkeypatch):
    import qlab.pipeline

    rtn = qlab.methods.get_method("rtn")
    other = Method("other", rtn.quantize, False, rtn.options, "", "case-study")
    monkeypatch.setattr(qlab.pipeline, "get_method", lambda name: other)
    with pytest.raises(
        qlab.QlabError, match=r"'other' fits its own.*'int8-tensor', or method 'rtn'"
    ):
        qlab.quantize_model(tiny[0], "other", "int8-global")
    small, _ = qlab.quantize_model(tiny[0], "other", "int8-tensor")
    assert len({float(layer.scale) for _, layer in quant_layers(small)}) > 1
