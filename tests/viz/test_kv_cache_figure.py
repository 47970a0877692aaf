"""The figure of the cache's bytes: one formula in Python, the script, and qlab.cache."""

import json
import re

import pytest
import transformers

from qlab.cache import cache_bytes
from qlab.viz.kv_cache import CACHES, TOKENS, WEIGHTS, cache_sizes, gigabytes
from qlab.viz.memory import MODELS
from tests.browser import chromium


def payload():
    markup = cache_sizes().markup
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])


def test_the_formula_is_that_of_a_cache():
    _, _, layers, numbers = next(m for m in MODELS if m[0] == "Llama-3.1-8B")
    config = transformers.LlamaConfig(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096
    )
    assert gigabytes(layers, numbers, 5000, 5) == pytest.approx(cache_bytes(config, 5000, 5) / 1e9)


def test_it_is_whole():
    data = payload()
    assert data["models"] == [list(m) for m in MODELS] and data["tokens"] == sorted(set(TOKENS))
    assert data["start"][0] in range(len(TOKENS)) and MODELS[data["start"][1]][0] == "Llama-3.1-8B"
    picture = cache_sizes()
    assert picture.markup == cache_sizes().markup and "<table" in picture.markup
    # A 16-bit scale, and a minimum, for 32 numbers.
    assert dict(CACHES)["int2, 16-bit scale and minimum for 32"] == 2 + 32 / 32
    assert dict(CACHES)["int8, a 16-bit scale for 32 (q8_0)"] == 8 + 16 / 32


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{cache_sizes().markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
def test_the_script_computes_the_same_and_words_follow(page):
    body = page.locator(".qfig-body")
    for i, (_, billions, layers, numbers) in enumerate(MODELS):
        for (_, bits), (_, weight) in zip(CACHES[::2], WEIGHTS, strict=True):
            found = body.evaluate("(e, a) => e.qlabRun(...a)", [i, TOKENS[7], bits, weight])
            assert found["cache"] == pytest.approx(gigabytes(layers, numbers, TOKENS[7], bits))
            assert found["weights"] == pytest.approx(billions * weight / 8)
            there = gigabytes(layers, numbers, found["equal"], bits)
            assert there == pytest.approx(found["weights"])
    read = page.locator("p[aria-live] strong")
    knob = page.locator('input[aria-label="Tokens"]')
    knob.focus()
    page.keyboard.press("Home")
    assert knob.get_attribute("aria-valuetext") == "1,024"
    assert read.nth(0).text_content() == "0.134 GB"  # 2 · 32 · 8 · 128 · 1024 · 2 bytes
    page.locator('select[aria-label="Bits of the cache"]').select_option(index=5)
    assert read.nth(0).text_content() == "0.0252 GB"
    page.locator('select[aria-label="Model"]').select_option(label="Llama-3.1-70B")
    assert read.nth(1).text_content() == "141 GB"
    text = body.inner_html()
    assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
    assert (
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        <= 1
    )
