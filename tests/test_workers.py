"""Layers quantized on workers: the result of one, whatever jobs and backend are."""

import json

import pytest
import torch

import qlab
from qlab.errors import QlabError
from qlab.nn import quant_layers
from qlab.workers import gathered, quantize_on_workers
from tests.models import random_model

IDS = [torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(i)) for i in range(3)]


def buffers(model):
    return {f"{n}.{k}": b for n, q in quant_layers(model) for k, b in q.named_buffers()}


def equal(a, b):
    a, b = buffers(a), buffers(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method, scheme", [("rtn", "int4-g32"), ("nf4", "nf4-g32")])
def test_without_data_it_is_quantize_model(method, scheme):
    model = random_model("qwen2")
    small, _ = qlab.quantize_model(model, method, scheme)
    many, seconds = quantize_on_workers(model, method, scheme, jobs=2, backend="threading")
    assert equal(small, many) and seconds.keys() == dict(quant_layers(many)).keys()


def test_processes_give_the_serial_result():
    """joblib's loky: other processes, the same bits."""
    model = random_model("qwen2")
    one, _ = quantize_on_workers(model, "gptq", "int4-g32", IDS, backend="sequential", jobs=1)
    two, _ = quantize_on_workers(model, "gptq", "int4-g32", IDS, backend="loky", jobs=2)
    assert equal(one, two)


def test_the_first_block_sees_what_quantize_model_sees():
    """Before the first block nothing is quantized yet, so its q, k and v are those of the other."""
    model = random_model("qwen2")
    serial, _ = qlab.quantize_model(model, "gptq", "int4-g32", IDS)
    free, _ = quantize_on_workers(model, "gptq", "int4-g32", IDS, backend="sequential")
    a, b = buffers(serial), buffers(free)
    first = [
        k for k in a if "layers.0." in k and k.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
    ]
    assert first and all(torch.equal(a[k], b[k]) for k in first)


def test_inputs_are_those_of_the_model_as_it_is():
    model = random_model("qwen2")
    known = gathered(model, IDS, ("hessian",))
    name = "model.layers.1.mlp.down_proj"
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, x, y: seen.append(x[0]))
    with torch.no_grad():
        for ids in IDS:
            model(input_ids=ids, use_cache=False)
    handle.remove()
    x = torch.cat([s.reshape(-1, s.shape[-1]) for s in seen]).double()
    ours = known[name].hessian.double()
    # Whatever its factor, the Hessian is the sum of x xᵀ.
    scale = ours.trace() / x.square().sum()
    torch.testing.assert_close(ours, scale * x.T @ x, rtol=1e-3, atol=1e-4 * float(ours.max()))


def test_bad_input():
    model = random_model("qwen2")
    for arguments, says in (
        ({"method": "gptq", "scheme": "int4-g32"}, "needs calibration data"),
        ({"method": "smoothquant", "scheme": "int8-channel"}, "several layers at once"),
        ({"scheme": "int4-g32", "backend": "pigeons"}, "no backend 'pigeons'"),
        ({"scheme": "int4-g24"}, "layer 'model.layers.0"),
    ):
        with pytest.raises(QlabError, match=says):
            quantize_on_workers(model, **arguments)


def test_the_recorded_clusters_gave_the_codes_of_the_serial_run():
    """Ray and Dask are no part of the environment: ``tools/record_workers.py`` ran them."""
    from tools.record_workers import JOBS, METHOD, PACKAGES, RECORD, SCHEME, TEXTS

    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["what"] == {"method": METHOD, "scheme": SCHEME, "texts": TEXTS, "jobs": JOBS}
    assert list(record["backends"]) == list(PACKAGES)
    for backend, found in record["backends"].items():
        assert any(package.endswith(f"=={found['version']}") for package in PACKAGES[backend])
        assert found["equal"] == found["tensors"] > 0
        assert found["processes"] == JOBS
