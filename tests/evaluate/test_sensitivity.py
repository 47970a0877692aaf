"""Layer sensitivity against quantize_model; the proxies against autograd by hand."""

import math

import pytest
import torch

import qlab
from qlab.evaluate import divergence, perplexity
from qlab.evaluate.sensitivity import (
    hessian_traces,
    layer_sensitivity,
    mean_squared_gradients,
    proxies,
    rank_correlation,
)
from qlab.nn import linear_layers
from tests.models import random_model

TEXTS = ["once upon a time the fox and the moon", "the moon and the fox upon a time"]


def test_a_row_is_what_quantizing_that_layer_alone_does(tiny):
    model, tokenizer = tiny
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = [name for name, _ in linear_layers(model)]
    rows = layer_sensitivity(model, tokenizer, TEXTS, ["int2-channel", "int4-g32"])
    assert [(r.layer, r.scheme) for r in rows] == [
        (name, scheme) for name in names for scheme in ("int2-channel", "int4-g32")
    ]
    base = perplexity(model, tokenizer, TEXTS)
    for row in rows[::5]:
        kept = {name: None for name in names if name != row.layer}
        small, _ = qlab.quantize_model(model, "rtn", row.scheme, schemes=kept)
        assert row.perplexity == pytest.approx(perplexity(small, tokenizer, TEXTS), rel=1e-5)
        assert row.increase == pytest.approx(row.perplexity / base - 1, abs=1e-6)
        # KL is a small difference of large numbers in float32.
        kl = divergence(model, small, tokenizer, TEXTS).kl
        assert row.kl == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert row.nbytes == small.get_submodule(row.layer).qweight.nbytes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "the model was changed"


def test_processes_give_the_same_rows(tiny):
    model, tokenizer = tiny
    layers = [name for name, _ in linear_layers(model)][:2]
    one = layer_sensitivity(model, tokenizer, TEXTS, "int3-channel", layers=layers)
    two = layer_sensitivity(model, tokenizer, TEXTS, "int3-channel", layers=layers, jobs=2)
    assert [r.layer for r in one] == [r.layer for r in two] == layers
    assert [r.kl for r in two] == pytest.approx([r.kl for r in one], rel=1e-3)


def test_fisher_is_the_mean_squared_gradient():
    model = random_model("qwen2")
    data = [torch.arange(12)[None] + 3, torch.arange(20)[None] + 40]
    name = "model.layers.1.mlp.up_proj"
    found = mean_squared_gradients(model, data, [name])[name]
    expected = torch.zeros_like(found)
    for ids in data:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        n = ids.numel() - 1
        expected += (n * model.get_submodule(name).weight.grad).square() / n / 2
    model.zero_grad()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_the_trace_of_the_hessian_of_the_output_head_is_the_closed_form():
    model = random_model("qwen2")
    ids = torch.arange(12)[None] + 3
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        hidden = model.model(ids).last_hidden_state[0, :-1]
        p = torch.softmax(model.lm_head(hidden), -1)
    # Softmax regression: the second derivative in row v is p_v (1 - p_v) h hᵀ, mean over tokens.
    expected = float(((p * (1 - p)).sum(-1) * hidden.square().sum(-1)).mean())
    found = hessian_traces(model, [ids], ["lm_head"], probes=100)["lm_head"]
    # A hundred probes; measured spread of one probe is about a fifth of the trace.
    assert found == pytest.approx(expected, rel=0.1)


def test_proxies_name_every_layer_and_rise_with_fewer_bits(tiny):
    model, _ = tiny
    data = [torch.arange(40)[None] + 3, torch.arange(40)[None] + 90]
    two = proxies(model, data, "int2-channel", probes=2)
    six = proxies(model, data, "int6-channel", probes=2)
    names = [name for name, _ in linear_layers(model)]
    for which in ("error", "fisher", "hessian"):
        assert sorted(two[which]) == sorted(names)
    for name in names:
        assert two["error"][name] > six["error"][name] > 0
        assert two["fisher"][name] > six["fisher"][name] > 0


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert not math.isnan(rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]))


def test_bad_input_is_named(tiny):
    model, tokenizer = tiny
    with pytest.raises(qlab.QlabError, match="no linear layer 'nothing'"):
        layer_sensitivity(model, tokenizer, TEXTS, "int4-channel", layers=["nothing"])
    with pytest.raises(qlab.QlabError, match="'gptq' is calibrated"):
        layer_sensitivity(model, tokenizer, TEXTS, "int4-channel", method="gptq")
    with pytest.raises(qlab.QlabError, match="unknown proxy 'trace'"):
        proxies(model, [torch.arange(9)[None]], "int4-channel", which=["trace"])
    with pytest.raises(qlab.QlabError, match="need calibration"):
        proxies(model, [], "int4-channel")
