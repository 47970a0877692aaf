"""The methods kmeans and vq on whole models."""

import numpy as np
import pytest
import torch

import qlab
from qlab.core.codebook_tensor import CodebookTensor
from qlab.export import load_folder, save_folder
from qlab.methods.vq import VqOptions
from qlab.nn import dequantize_model, quant_layers

PLAN = [
    ("kmeans", "kmeans4-tensor"),
    ("kmeans", "kmeans3-channel-sfp16"),
    ("kmeans", "kmeans2-g32"),
    ("vq", "vq4x2"),
    ("vq", "pq2x4-sfp16"),
    ("rtn", "kmeans3-channel"),
]


@pytest.mark.parametrize(("method", "scheme"), PLAN)
def test_a_model_runs_on_codebooks(tiny, method, scheme):
    model, _ = tiny
    small, report = qlab.quantize_model(model, method, scheme)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        out, plain = small(ids).logits, dequantize_model(small)(ids).logits
    assert torch.allclose(out, plain, atol=1e-5)
    for (name, layer), entry in zip(quant_layers(small), report.layers, strict=True):
        q = layer.qweight
        assert isinstance(q, CodebookTensor) and entry.name == name
        weight = model.get_submodule(name).weight.detach()
        assert entry.sqnr == pytest.approx(qlab.sqnr(weight, q))
        assert entry.bits_per_weight == q.bits_per_weight == q.nbytes * 8 / weight.numel()
    assert qlab.evaluate.model_size(small).quantized == sum(
        layer.qweight.nbytes for _, layer in quant_layers(small)
    )


@pytest.mark.parametrize(("method", "scheme"), PLAN[:5])
def test_it_is_saved_and_read_back(tiny, tmp_path, method, scheme):
    model, tokenizer = tiny
    small, _ = qlab.quantize_model(model, method, scheme)
    save_folder(small, tokenizer, tmp_path / "out", method=method)
    again = load_folder(tmp_path / "out")
    for (name, a), (other, b) in zip(quant_layers(small), quant_layers(again), strict=True):
        assert name == other and isinstance(b.qweight, CodebookTensor)
        assert torch.equal(a.weight, b.weight)


def test_the_method_and_quantize_agree():
    """Compiled and plain search: the same codebooks but for the last bits of sums."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(48, 32))
    for scheme in ("kmeans3-channel", "kmeans4-tensor"):
        small, _ = qlab.quantize_model(layer, "kmeans", scheme)
        fast = small[0].weight
        plain = qlab.quantize(layer[0].weight.detach(), scheme).dequantize()
        assert torch.allclose(fast, plain, atol=1e-6)


def test_fewer_iterations_are_worse_and_a_seed_decides():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(256, 64))

    def error(**options):
        small, _ = qlab.quantize_model(layer, "vq", "vq6x4", options=VqOptions(**options))
        return qlab.mse(layer[0].weight.detach(), small[0].qweight)

    assert error(iterations=1) > error(iterations=25)
    assert error(seed=1) == error(seed=1) != error(seed=2)


def test_it_beats_rounding_at_the_same_bits():
    rng = np.random.default_rng(0)
    layer = torch.nn.Sequential(torch.nn.Linear(256, 64))
    with torch.no_grad():
        layer[0].weight.copy_(torch.from_numpy(rng.standard_t(5, (64, 256)).astype(np.float32)))
    found = {}
    for method, scheme in (("rtn", "int4-tensor"), ("kmeans", "kmeans4-tensor")):
        _small, report = qlab.quantize_model(layer, method, scheme)
        found[method] = report.layers[0].sqnr
    assert found["kmeans"] > found["rtn"] + 3


@pytest.mark.parametrize(
    ("method", "scheme", "message"),
    [
        ("kmeans", "int4-channel", "kmeans4-channel"),
        ("kmeans", "vq4x2", "kmeans4-channel"),
        ("vq", "kmeans4-channel", "vq8x4"),
        ("vq", "int4-channel", "vq8x4"),
        ("vq", "vq4x3", "do not divide"),
        ("kmeans", "kmeans4-global", "kmeans4-tensor"),
    ],
)
def test_a_scheme_that_does_not_fit_is_named(tiny, method, scheme, message):
    with pytest.raises(qlab.QlabError, match=message):
        qlab.quantize_model(tiny[0], method, scheme)
