"""The map of a sub-block's error: what Python computes, and that the script does the same."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.gguf import dequantize, quantize
from qlab.viz.k_quants import SUB, TOP, search_landscape, state
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def block(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(256) * 0.07).astype(np.float32)


def importance(seed=0):
    return np.exp(np.random.default_rng(seed + 1).standard_normal(256)).astype(np.float32)


def parts(data, which, sub):
    here = slice(sub * SUB, (sub + 1) * SUB)
    return np.array(data["weights"])[here], np.array(data["costs"][which])[here]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_search_never_loses_to_the_range_and_never_gets_worse(seed):
    data = payload(search_landscape(block(seed), importance(seed)))
    for which, paths in enumerate(data["paths"]):
        for sub, path in enumerate(paths):
            w, cost = parts(data, which, sub)
            # The range, in six digits, and a minimum that is never above zero.
            assert path[0][1] == pytest.approx(min(w.min(), 0), rel=1e-4)
            assert path[0][0] == pytest.approx((w.max() - min(w.min(), 0)) / TOP, rel=1e-4)
            first, last = (state(w, cost, *path[k])["weighted"] for k in (0, -1))
            # Rounding anew for the found pair can only help; 1e-4 for the digits embedded.
            assert last <= first * (1 + 1e-4)
            assert all(low <= 0 < scale for scale, low in path)


def test_the_choice_without_importance_is_near_what_q4_k_stores():
    """Q4_K rounds the pair to six bits: near, in units of the super-block's largest."""
    w = block(3)
    data = payload(search_landscape(w))
    assert len(data["costs"]) == len(data["paths"]) == 2
    stored = dequantize(quantize(w[None], "Q4_K"), "Q4_K").reshape(-1, SUB)
    largest = max(path[-1][0] for path in data["paths"][1])
    for values, path in zip(stored, data["paths"][1], strict=True):
        levels = np.unique(values)
        step = np.diff(levels).min()
        assert abs(step - path[-1][0]) < 1.1 * largest / 63 / 2 + 1e-4 * largest


def test_it_takes_torch_and_numpy_and_refuses_what_is_no_block():
    w = block()
    picture = search_landscape(w, importance())
    assert picture.markup == search_landscape(torch.from_numpy(w), importance()).markup
    assert "<table" in picture.markup and len(picture.markup) < 90_000
    for bad in (w[:255], np.zeros(256), np.where(np.arange(256) == 9, np.nan, w), np.abs(w)):
        with pytest.raises(qlab.QlabError, match="finite weights"):
            search_landscape(bad)
    for bad in (np.ones(255), -np.ones(256)):
        with pytest.raises(qlab.QlabError, match="numbers from 0 up"):
            search_landscape(w, bad)
    some = np.where(np.arange(256) % 32 < 3, 0.0, 1.0)  # dead inputs are fine
    assert "nan" not in search_landscape(w, some).markup
    with pytest.raises(qlab.QlabError, match="above 0"):
        search_landscape(w, np.where(np.arange(256) < 32, 0.0, 1.0))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The figure on a page of its own."""
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    markup = search_landscape(block(), importance()).markup
    path.write_text(f"{HEAD}<body>{markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
def test_the_script_computes_what_python_computes(page):
    data = payload(search_landscape(block(), importance()))
    body = page.locator(".qfig-body")
    for which in range(3):
        for sub in (0, 3, 7):
            w, cost = parts(data, which, sub)
            for scale, low in (data["paths"][which][sub][0], data["paths"][which][sub][-1]):
                for factor in (1, 0.83):
                    pair = [which, sub, scale * factor, low * factor]
                    theirs = body.evaluate("(e, a) => e.qlabState(...a)", pair)
                    ours = state(w, cost, *pair[2:])
                    assert theirs["codes"] == ours["codes"]
                    for name in ("plain", "weighted"):
                        assert theirs[name] == pytest.approx(ours[name], rel=1e-9)


@pytest.mark.tools
def test_controls_work_by_keyboard_and_by_touch_and_fit_a_phone(page):
    read = page.locator(".qfig-read").first
    tries = page.locator("input[aria-label='Tries of the search']")
    tries.focus()
    page.keyboard.press("Home")
    assert tries.get_attribute("aria-valuetext") == "0 (the range)"
    assert "100.0% of the range" in read.text_content()
    scale = page.locator("input[data-key=x]")
    assert scale.get_attribute("aria-valuetext") == "1.000"
    scale.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert scale.get_attribute("aria-valuetext") == "0.970"
    assert "100.0% of the range" not in read.text_content()
    before, cross = read.text_content(), page.locator("path.you").get_attribute("d")
    page.locator(".qfig-body svg").first.click(position={"x": 150, "y": 100})
    assert read.text_content() != before
    assert page.locator("path.you").get_attribute("d") != cross
    page.locator(".qfig-body select").first.select_option("2")
    page.locator(".qfig-body select").nth(1).select_option("5")
    assert "NaN" not in page.locator(".qfig-body").inner_html()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
