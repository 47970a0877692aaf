"""quantize_model on several architectures, with the reference layer as its own oracle."""

import pytest
import torch

import qlab
from qlab.errors import QlabError
from qlab.nn import QuantLinear, dequantize_model, linear_layers, quant_layers, weight_of
from tests.models import random_model


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen2"])
@pytest.mark.parametrize("scheme", ["int8-channel", "int4-asym-g16"])
def test_the_quantized_model_computes_with_the_dequantized_weights(kind, scheme):
    model = random_model(kind)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small, report = qlab.quantize_model(model, "rtn", scheme)
    names = [name for name, _ in linear_layers(model)]
    assert [r.name for r in report.layers] == names == [n for n, _ in quant_layers(small)]
    assert len(names) >= 8
    ids = torch.arange(20)[None] + 3
    with torch.no_grad():
        torch.testing.assert_close(
            small(ids).logits, dequantize_model(small)(ids).logits, rtol=1e-5, atol=1e-5
        )
        assert not torch.equal(small(ids).logits, model(ids).logits)
    for name, layer in linear_layers(model):
        expected = qlab.quantize(weight_of(layer), scheme).dequantize()
        assert torch.equal(small.get_submodule(name).weight, expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "the original model was changed"


def test_eight_bits_are_close_and_errors_shrink_with_bits(tiny):
    model, _ = tiny
    ids = torch.arange(30)[None] + 3
    errors = []
    with torch.no_grad():
        exact = model(ids).logits
        for bits in (2, 4, 6, 8):
            small, report = qlab.quantize_model(model, "rtn", f"int{bits}-channel")
            errors.append(float((small(ids).logits - exact).norm() / exact.norm()))
            assert all(r.bits_per_weight > bits for r in report.layers)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


def test_bad_input_names_the_thing(tiny):
    model, _ = tiny
    with pytest.raises(qlab.QlabError, match=r"unknown method 'rnt'.*rtn"):
        qlab.quantize_model(model, "rnt")
    with pytest.raises(qlab.QlabError, match=r"layer 'model.layers.0.*g128"):
        qlab.quantize_model(model, "rtn", "int4-g128")
    with pytest.raises(qlab.QlabError, match="no linear layers"):
        qlab.quantize_model(torch.nn.Sequential(torch.nn.ReLU()), "rtn", "int4")
    broken = qlab.nn.copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"model.layers.1.mlp.up_proj.*\(3, 4\)"):
        qlab.quantize_model(broken, "rtn", "int4-channel")
    with pytest.raises(qlab.QlabError, match="matrix"):
        QuantLinear(qlab.quantize(torch.ones(4), "int8-tensor"))


def test_options_may_be_a_dict_and_wrong_ones_are_named(tiny):
    from qlab.methods.eetq import EetqOptions
    from qlab.methods.hqq import HqqOptions

    model, _ = tiny
    both = [
        qlab.quantize_model(model, method="hqq", scheme="int4-asym-g32", options=options)[1]
        for options in ({"iterations": 3}, HqqOptions(iterations=3))
    ]
    assert [r.sqnr for r in both[0].layers] == [r.sqnr for r in both[1].layers]
    with pytest.raises(QlabError, match=r"no option 'steps': it has .*iterations"):
        qlab.quantize_model(model, method="hqq", scheme="int4-asym-g32", options={"steps": 3})
    with pytest.raises(QlabError, match="takes HqqOptions, not EetqOptions"):
        qlab.quantize_model(model, method="hqq", scheme="int4-asym-g32", options=EetqOptions())
