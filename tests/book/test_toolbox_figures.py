"""The figures of the toolbox, and the bytes that they count."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.nn import QuantLinear
from qlab.viz.toolbox import MODELS, llama, module_map, size_of, threshold_dial
from qlab.viz.toolbox_bytes import KINDS, bits_of_parts, held_bytes, kind_of, weights_of_config
from tests.browser import chromium

TOOLS = {
    "four <bits>": {"embedding": None, "attention": 4.5, "feed-forward": 4.5, "head": None},
    "all": {"embedding": 8.0, "attention": 8.0, "feed-forward": 4.0, "head": 8.0},
}
CURVES = {
    "tame": [(1.0, 20.1, 0.9), (6.0, 20.2, 0.1), (64.0, 20.2, 0.0)],
    "spoiled": [(1.0, 20.3, 0.95), (6.0, 20.4, 0.2), (64.0, 30.0, 0.0)],
}
WHOLE = {"tame": 20.0, "spoiled": 20.0}


def dial():
    return threshold_dial(CURVES, WHOLE)


def data_of(picture):
    found = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)
    return json.loads(found[1])


def test_published_sizes_are_met():
    """Weights of the matrices by the configuration against the models' published numbers."""
    for name, billions in (("Llama-2-7B", 6.74), ("Llama-3.1-8B", 8.03), ("Llama-3.1-70B", 70.55)):
        assert sum(MODELS[name].weights.values()) / 1e9 == pytest.approx(billions, rel=0.001)
    small = MODELS["SmolLM2-135M"]  # the head is the embedding: count it once
    assert (sum(small.weights.values()) - small.weights["head"]) / 1e6 == pytest.approx(
        134.5, rel=0.001
    )


def test_the_storytellers_sizes_are_its_configurations():
    model = qlab.story.load().model
    assert MODELS["the storyteller"].weights == weights_of_config(model.config)
    assert MODELS["the storyteller"].tied == model.config.tie_word_embeddings


@settings(max_examples=50, deadline=None)
@given(
    bits=st.lists(st.one_of(st.none(), st.floats(0.5, 32)), min_size=4, max_size=4),
    tied=st.booleans(),
    layers=st.integers(1, 5),
)
def test_sizes_add_up(bits, tied, layers):
    model = llama(64, 96, layers, 4, 2, 100, tied)
    bits = dict(zip(KINDS, bits, strict=True))
    found = size_of(bits, model)
    twice = size_of({k: None if b is None else 2 * b for k, b in bits.items()}, model)
    for kind in KINDS:
        if bits[kind] is None:
            shared = kind == "head" and tied
            assert found[kind] == (0 if shared else 2 * model.weights[kind])
        else:
            assert twice[kind] == pytest.approx(2 * found[kind])


def test_kinds():
    assert kind_of("model.layers.3.mlp.up_proj") == "feed-forward"
    assert kind_of("lm_head") == "head" and kind_of("model.norm") is None


def test_held_bytes_of_each_library():
    """Against the arithmetic of each layout, for a weight of 64 rows and 128 columns."""
    import bitsandbytes as bnb
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    plain = torch.nn.Linear(128, 64, bias=False)
    n = 64 * 128
    assert held_bytes(plain) == 4 * n
    for scheme in ("int4-g32", "int8-channel"):
        q = qlab.quantize(plain.weight.detach(), scheme)
        assert held_bytes(QuantLinear(q)) == q.nbytes
    for double in (False, True):
        layer = bnb.nn.Linear4bit(128, 64, bias=False, quant_type="nf4", compress_statistics=double)
        layer.weight = bnb.nn.Params4bit(
            plain.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=double
        ).to("cpu")
        # One nested block of up to 256 scales has one float32.
        assert held_bytes(layer) == n // 2 + (n // 64 + 4 if double else 4 * n // 64)
    eight = bnb.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    eight.weight = bnb.nn.Int8Params(
        plain.weight.data, requires_grad=False, has_fp16_weights=False
    ).to("cpu")
    assert held_bytes(eight) == n + 4 * 64
    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    h = HQQLinear(
        torch.nn.Linear(128, 64, bias=False), config, compute_dtype=torch.float32, device="cpu"
    )
    assert held_bytes(h) == n // 2 + 2 * 4 * n // 64
    net = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
    quantize_(net, Int8WeightOnlyConfig())
    assert n + 4 * 64 <= held_bytes(net[0]) <= n + 5 * 64  # some versions hold zero points, too


def test_bits_of_parts_of_a_quantized_storyteller():
    model = qlab.story.load().model
    small, report = qlab.quantize_model(model, "rtn", "int4-g128")
    bits = bits_of_parts(small)
    assert bits["attention"] == pytest.approx(report.bits_per_weight, abs=0.01)
    assert bits["embedding"] == 32


def test_they_are_whole():
    for make, kind in ((lambda: module_map(TOOLS), "toolboxmodules"), (dial, "toolboxthreshold")):
        markup = make().markup
        assert markup == make().markup and "<table" in markup and f'data-kind="{kind}"' in markup
        assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", markup)
    assert data_of(module_map(TOOLS))["tools"][0]["bits"] == [None, 4.5, 4.5, None]
    assert "four &lt;bits&gt;" in module_map(TOOLS).markup


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: module_map({}), "at least one tool"),
        (lambda: module_map({"a": {"embedding": 4.0}}), "says nothing of the attention"),
        (lambda: module_map({"a": dict.fromkeys(KINDS, 0.0)}), "0.0 bits"),
        (lambda: module_map({"a": dict.fromkeys(KINDS, float("nan"))}), "nan bits"),
        (lambda: threshold_dial({}, {}), "at least one model"),
        (lambda: threshold_dial({"a": [(1.0, 2.0, 0.5)]}, {"a": 1.0}), "two or more"),
        (lambda: threshold_dial({"a": [(2.0, 2.0, 0.5), (1.0, 2.0, 0.5)]}, {"a": 1.0}), "rising"),
        (lambda: threshold_dial({"a": [(0.0, 2.0, 0.5), (1.0, 2.0, 0.5)]}, {"a": 1.0}), "has thr"),
        (lambda: threshold_dial({"a": [(1.0, 2.0, 0.5), (2.0, 2.0, 1.5)]}, {"a": 1.0}), "has thr"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(qlab.QlabError, match=re.escape(words)):
        call()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{module_map(TOOLS).markup}{dial().markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
def test_the_map_of_modules(page):
    body = page.locator(".qfig-body").nth(0)
    for t, bits in enumerate(TOOLS.values()):
        for m, model in enumerate(MODELS.values()):
            found = body.evaluate("(e, a) => e.qlabRun(...a)", [t, m])
            assert found == pytest.approx(list(size_of(bits, model).values()))
    read = page.locator(".qfig-read").nth(0)
    assert "four <bits>" in read.inner_text() and "the embedding" in body.inner_text()
    body.get_by_label("Tool", exact=True).select_option("1")
    body.get_by_label("Model", exact=True).select_option("2")
    total = sum(size_of(TOOLS["all"], MODELS["Llama-2-7B"]).values()) / 1e9
    assert f"{total:.3g} GB" in read.inner_text() and "0%" in read.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.tools
def test_the_dial_follows_keys(page):
    body = page.locator(".qfig-body").nth(1)
    for m, points in enumerate(CURVES.values()):
        for i, (_, p, share) in enumerate(points):
            assert body.evaluate("(e, a) => e.qlabRun(...a)", [m, i]) == [p, share]
    read = page.locator(".qfig-read").nth(1)
    assert "threshold 6" in read.inner_text() and "20.4" in read.inner_text()
    page.get_by_label("Threshold", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert "+50.0%" in read.inner_text() and "0.00%" in read.inner_text()
    body.get_by_label("Model", exact=True).select_option("0")
    assert "20.2" in read.inner_text()
