"""The pipeline block by block, with a method that rounds to nearest and writes down what it saw."""

from dataclasses import dataclass

import pytest
import torch

import qlab
from qlab.blockwise import output_error
from qlab.calibrate import BlockRunner, LayerInputs
from qlab.methods import registry
from qlab.nn import QuantLinear, dequantize_model, linear_layers, weight_of
from tests.models import random_model

KINDS = ["gpt2", "opt", "qwen2"]


@dataclass(frozen=True)
class Options:
    cross: bool = False


@pytest.fixture
def watcher(monkeypatch):
    """A registered method; the fixture is the dict of what it was given."""
    seen: dict[str, LayerInputs] = {}

    def watch(weight, stats, scheme, options):
        seen[stats.name] = stats
        return qlab.quantize(weight, scheme)

    def needs(options):
        return ("hessian", "cross") if options.cross else ("hessian",)

    method = registry.Method("watch", watch, True, Options, "", "", needs=needs)
    monkeypatch.setitem(registry._MODULES, "watch", "qlab.methods.rtn")
    monkeypatch.setitem(registry._METHODS, "watch", method)
    return seen


def samples(count=3, length=20):
    torch.manual_seed(1)
    return [torch.randint(3, 99, (1, length)) for _ in range(count)]


def inputs_of(model, ids, name):
    """What flows into a layer of a whole model that simply runs."""
    seen = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_as_the_model_runs(kind):
    model, data = random_model(kind), samples()
    full = {name for name, _ in linear_layers(model)}
    found = set()
    for block in BlockRunner(model, data):
        for group in block.groups():
            for name, inputs in block.gather(group.layers).items():
                x = torch.cat([inputs_of(model, ids, block.full_name(name)) for ids in data])
                expected = 2 / len(x) * x.T @ x
                torch.testing.assert_close(inputs.hessian, expected, rtol=1e-4, atol=1e-5)
                found.add(block.full_name(name))
    assert found == full


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_the_layers_that_share_an_input(kind):
    groups = next(iter(BlockRunner(random_model(kind), samples()))).groups()
    expected = {
        "gpt2": [
            (("attn.c_attn",), "ln_1"),
            (("attn.c_proj",), None),
            (("mlp.c_fc",), "ln_2"),
            (("mlp.c_proj",), None),
        ],
        "opt": [
            (tuple(f"self_attn.{x}_proj" for x in "qkv"), "self_attn_layer_norm"),
            (("self_attn.out_proj",), None),
            (("fc1",), "final_layer_norm"),
            (("fc2",), None),
        ],
        "qwen2": [
            (tuple(f"self_attn.{x}_proj" for x in "qkv"), "input_layernorm"),
            (("self_attn.o_proj",), None),
            (("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
            (("mlp.down_proj",), None),
        ],
    }[kind]
    assert [(tuple(sorted(g.layers)), g.norm) for g in groups] == [
        (tuple(sorted(names)), norm) for names, norm in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_sees_what_the_quantized_layers_before_it_make(kind, watcher):
    model, data = random_model(kind), samples()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small, report = qlab.quantize_model(model, "watch", "int3-channel", data)
    plain = dequantize_model(small)
    names = [name for name, _ in linear_layers(model)]
    assert [r.name for r in report.layers] == names
    for name in names:
        assert isinstance(small.get_submodule(name), QuantLinear)
        # Everything before the layer is quantized, so the finished model gives it these inputs.
        x = torch.cat([inputs_of(plain, ids, name) for ids in data])
        torch.testing.assert_close(
            watcher[name].hessian, 2 / len(x) * x.T @ x, rtol=1e-3, atol=1e-4
        )
        y = torch.cat([inputs_of(model, ids, name) for ids in data])
        if "layers.1" in name or "h.1" in name:
            assert not torch.allclose(x, y, rtol=1e-3, atol=1e-4)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), "the original model was changed"
    for layer in report.layers:
        assert layer.error is not None
        assert layer.error == layer.rtn_error > 0


def test_cross_compares_with_the_unquantized_model(watcher):
    model, data = random_model("qwen2"), samples()
    small, _ = qlab.quantize_model(model, "watch", "int3-channel", data, options=Options(True))
    plain, name = dequantize_model(small), "model.layers.1.mlp.down_proj"
    x = torch.cat([inputs_of(plain, ids, name) for ids in data])
    full = torch.cat([inputs_of(model, ids, name) for ids in data])
    expected = 2 / len(x) * (full - x).T @ x
    torch.testing.assert_close(watcher[name].cross, expected, rtol=1e-3, atol=1e-4)
    first = watcher["model.layers.0.self_attn.q_proj"].cross
    assert float(first.abs().max()) < 1e-4  # nothing before it was quantized


def test_the_error_is_that_of_the_outputs():
    torch.manual_seed(0)
    x, w = torch.randn(50, 16), torch.randn(8, 16)
    q = qlab.quantize(w, "int3-channel")
    delta = (q.dequantize() - w) @ x.T
    expected = float(delta.square().sum() / (w @ x.T).square().sum())
    assert output_error(w, q, LayerInputs.of(x).hessian) == pytest.approx(expected, rel=1e-4)


def test_the_output_head_is_quantized_too_where_it_is_not_skipped(watcher):
    model = random_model("qwen2")
    small, report = qlab.quantize_model(model, "watch", "int4-channel", samples(), skip=())
    assert isinstance(small.lm_head, QuantLinear)
    assert report.layers[-1].name == "lm_head"
    assert watcher["lm_head"].tokens == 60


def test_layers_and_schemes_can_be_chosen(watcher):
    schemes = {"*.q_proj": None, "*.down_proj": "int8-channel"}
    small, report = qlab.quantize_model(
        random_model("qwen2"), "watch", "int4-channel", samples(), schemes=schemes
    )
    assert not isinstance(small.model.layers[0].self_attn.q_proj, QuantLinear)
    kinds = {r.name.rpartition(".")[2]: r.scheme for r in report.layers}
    assert kinds["down_proj"] == "int8-channel"
    assert kinds["up_proj"] == "int4-channel"
    assert "q_proj" not in kinds


def test_an_interrupted_run_goes_on(watcher, tmp_path, monkeypatch):
    model, data = random_model("qwen2"), samples()
    whole, _ = qlab.quantize_model(model, "watch", "int4-channel", data)
    watcher.clear()
    method = registry._METHODS["watch"]

    def dies(weight, stats, scheme, options):
        if "layers.1.mlp.up" in stats.name:
            raise KeyboardInterrupt
        return method.quantize(weight, stats, scheme, options)

    monkeypatch.setitem(
        registry._METHODS, "watch", registry.Method("watch", dies, True, Options, "", "")
    )
    run = {"scheme": "int4-channel", "calibration": data, "resume": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        qlab.quantize_model(model, "watch", **run)
    monkeypatch.setitem(registry._METHODS, "watch", method)
    watcher.clear()
    small, report = qlab.quantize_model(model, "watch", **run)
    assert all(".1." in name for name in watcher), "the first block was quantized again"
    assert len(report.layers) == 14
    for key, value in whole.state_dict().items():
        assert torch.equal(small.state_dict()[key], value), key
    with pytest.raises(qlab.QlabError, match="another run"):
        qlab.quantize_model(model, "watch", **{**run, "scheme": "int3-channel"})
    with pytest.raises(qlab.QlabError, match="nothing to resume"):
        qlab.quantize_model(model, "rtn", "int4-channel", resume=tmp_path)


def test_bad_input_is_named(watcher):
    model, data = random_model("qwen2"), samples()
    run = {"method": "watch", "scheme": "int4-channel"}
    with pytest.raises(qlab.QlabError, match="needs calibration data"):
        qlab.quantize_model(model, **run)
    with pytest.raises(qlab.QlabError, match="calibration sample 1 has no tokens"):
        qlab.quantize_model(model, calibration=[data[0], data[0][:, :0]], **run)
    with pytest.raises(qlab.QlabError, match="sample 0: expected token ids"):
        qlab.quantize_model(model, calibration=[torch.zeros(1, 4)], **run)
    with pytest.raises(qlab.QlabError, match=r"sample 0: expected token ids.*str"):
        qlab.quantize_model(model, calibration=["text"], **run)
    with pytest.warns(UserWarning, match="8 tokens, fewer than its 32 inputs"):
        qlab.quantize_model(model, calibration=[data[0][:, :8]], **run)
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[3, 4] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"layers\.1\.mlp\.gate_proj"):
        qlab.quantize_model(model, calibration=data, **run)


def test_a_nan_activation_names_layer_and_sample(watcher):
    model, data = random_model("qwen2"), samples()
    with torch.no_grad():
        model.model.embed_tokens.weight[data[2][0, 5]] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"sample 2: the input of layer 'model.layers.0"):
        qlab.quantize_model(model, "watch", "int4-channel", data)


def test_a_model_without_blocks_is_one_block(watcher):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(50, 16), torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 8)
    )
    small, report = qlab.quantize_model(model, "watch", "int4-channel", [torch.arange(30)[None]])
    assert [r.name for r in report.layers] == ["1", "3"]
    assert isinstance(small[1], QuantLinear)
    assert weight_of(model[1]).shape == (24, 16)
