"""The figure of NF4's levels and block sizes: what Python computes, and what the script shows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import qlab
from qlab.viz.nf4 import FORMS, SIZES, bits_of, histogram, largest, measure, nf4_blocks
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def normal(seed=0, n=1 << 14):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("size", [8, 64, 1024])
@pytest.mark.parametrize("word", FORMS.values())
def test_the_error_is_that_of_quantize(word, size):
    x = normal()
    found = measure(x.astype(np.float64), size, word)
    # float32 against float64, and three digits.
    assert found["sqnr"] == pytest.approx(
        qlab.sqnr(x, qlab.quantize(x, f"{word}-g{size}")), abs=2e-3
    )
    assert sum(found["use"]) == pytest.approx(100, abs=0.02)
    assert 0 < found["entropy"] <= np.log2(len(found["use"]))


def test_bits_and_largest():
    assert bits_of(64) == ("4.500", "4.127")
    x = normal(1, 1 << 18).astype(np.float64)
    # The median largest of 64 magnitudes: (2Φ(t) - 1)^64 = 1/2 at t = 2.55.
    assert largest(x, 64) == pytest.approx(2.55, abs=0.03)
    counts = histogram(x, 64)
    assert sum(counts) == x.size
    # One of 64 lies at an end.
    assert counts[0] + counts[-1] >= x.size / 64


def test_the_cases_and_the_fallback():
    picture = nf4_blocks({"normal": normal(), "other": torch.from_numpy(normal(1))})
    data = payload(picture)
    assert data["sources"] == ["normal", "other"] and data["sizes"] == list(SIZES)
    i = data["sizes"].index(64)
    assert data["cases"][0][i][0] == measure(normal().astype(np.float64), 64, "nf4")
    assert "<table" in picture.markup and len(picture.markup) < 100_000
    for bad in (normal(n=100), np.zeros(4096), np.full(4096, np.nan)):
        with pytest.raises(qlab.QlabError, match="finite numbers"):
            nf4_blocks({"bad": bad})
    with pytest.raises(qlab.QlabError, match="at least one"):
        nf4_blocks({})


@pytest.mark.tools
def test_it_works_by_keyboard_on_a_phone(tmp_path):
    path = tmp_path / "figure.html"
    picture = nf4_blocks({"normal": normal(), "other": normal(1)})
    data = payload(picture)
    path.write_text(f"{HEAD}<body>{picture.markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        read, slider = page.locator(".qfig-read"), page.locator(".qfig-body input[type=range]")
        i = data["sizes"].index(64)
        shown = read.text_content()
        assert f"{data['cases'][0][i][0]['sqnr']:.2f} dB" in shown and "4.127 bits" in shown
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == "128 weights"
        assert f"{data['cases'][0][i + 1][0]['sqnr']:.2f} dB" in read.text_content()
        page.locator(".qfig-body select").nth(1).select_option("1")
        assert "int4 has" in read.text_content()
        assert page.locator(".qfig-body svg circle").count() == 15
        page.locator(".qfig-body select").first.select_option("1")
        assert f"{data['cases'][1][i + 1][1]['sqnr']:.2f} dB" in read.text_content()
        assert "NaN" not in page.locator(".qfig-body").inner_html()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert errors == []
