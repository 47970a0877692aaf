"""The heat map: Python computes what qlab computes, and the script what Python does."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab import viz
from qlab.viz.heatmap import LARGEST, as_integers, cut_into_blocks, sizes_of
from tests.browser import chromium


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def matrix(shape=(64, 128), seed=0):
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    w[shape[0] // 2, 3] = 12
    w[0, :8] = 0
    return w


def blocks(shape):
    rows, columns = shape
    return {
        "tensor": shape,
        "channel": (1, columns),
        "channel1": (rows, 1),
        "g8": (1, 8),
        "b16x16": (16, 16),
        "g4": (1, 4),
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("word", blocks((64, 128)))
def test_a_cut_is_what_quantize_computes(word, bits):
    """Of the embedded integers; float64 here and float32 there differ in the seventh digit."""
    whole, unit = as_integers(matrix().astype(np.float64))
    w = whole * unit
    cut = cut_into_blocks(w, bits, blocks(w.shape)[word])
    q = qlab.quantize(w.astype(np.float32), f"int{bits}-{word}-sfp16")
    np.testing.assert_allclose(cut.scale, q.scale.astype(np.float64), rtol=1e-3)  # one float16
    # A scale that rounds the other way, or a tie, moves a value by a step: few do.
    assert (np.abs(cut.restored - q.dequantize()) > 1e-5 * np.abs(w).max()).mean() < 0.02
    assert cut.sqnr == pytest.approx(qlab.sqnr(w.astype(np.float32), q), abs=0.05)
    # Metadata of the QTensor is rounded up to bytes, which these cuts fill.
    assert cut.bits_per_weight == q.bits_per_weight


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-20, 20))
def test_sixteen_bits_are_enough_to_show_a_weight(seed, exponent):
    w = np.random.default_rng(seed).standard_normal((8, 8)) * 2.0**exponent
    whole, unit = as_integers(w)
    assert np.abs(whole).max() == 32767
    assert np.abs(whole * unit - w).max() <= unit / 2 * (1 + 1e-9)


def test_the_figure_embeds_the_matrix_and_stays_small():
    w = matrix((256, 256))
    picture = viz.error_map(w, "weights")
    data = payload(picture)
    stored = np.frombuffer(base64.b64decode(data["weights"]), "<i2").reshape(256, 256)
    np.testing.assert_allclose(stored * data["unit"], w, atol=data["unit"])
    assert data["sizes"] == [4, 8, 16, 32, 64, 128, 256] and data["far"] == [128, 3]
    assert len(picture.markup) < 300_000
    assert picture.markup == viz.error_map(torch.from_numpy(w), "weights").markup
    assert "<table" in picture.markup and 'aria-label="Heat map' in picture.markup
    assert sizes_of((96, 32)) == [4, 8, 16, 32]


@pytest.mark.parametrize(
    "bad",
    [
        np.ones(16),
        np.ones((4, 6)),
        np.ones((1, LARGEST + 4)),
        np.ones((0, 4)),
        np.zeros((4, 4)),
        np.full((4, 4), np.nan),
    ],
)
def test_what_is_no_map_is_refused(bad):
    with pytest.raises(qlab.QlabError, match="error_map"):
        viz.error_map(bad)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The figure of a matrix on a page of its own."""
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{viz.error_map(matrix(), 'weights').markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize("word", blocks((64, 128)))
def test_the_script_computes_what_python_computes(page, word, bits):
    whole, unit = as_integers(matrix().astype(np.float64))
    w = whole * unit
    block = blocks(w.shape)[word]
    theirs = page.locator(".qfig-body").evaluate(
        "(e, [bits, r, c]) => e.qlabRun(bits, r, c)", [bits, *block]
    )
    cut = cut_into_blocks(w, bits, block)
    ours = [cut.sqnr, cut.bits_per_weight, cut.scale.size, np.abs(w - cut.restored).sum()]
    assert theirs == pytest.approx(ours, rel=1e-9)


@pytest.mark.tools
def test_its_words_follow_the_controls_and_the_lens_the_keys(page):
    figure = page.locator("figure.qfig")
    read, size = figure.locator(".qfig-read strong"), figure.locator('input[aria-label="Size"]')
    kind = figure.locator("select").first
    kind.select_option(label="tensor (all)")
    assert size.is_disabled()
    whole, unit = as_integers(matrix().astype(np.float64))
    coarse = cut_into_blocks(whole * unit, 4, (64, 128))
    assert read.first.text_content() == f"{coarse.sqnr:.1f} dB"
    kind.select_option(label="group (in a row)")
    assert not size.is_disabled()
    size.focus()
    page.keyboard.press("Home")
    fine = cut_into_blocks(whole * unit, 4, (1, 4))
    assert read.first.text_content() == f"{fine.sqnr:.1f} dB"
    assert read.nth(1).text_content() == "8 bits per weight"
    # The lens starts at the farthest weight; the arrow keys move it, and stop at the border.
    over = figure.locator("svg[tabindex]")
    assert "rows 16 to 47" in over.get_attribute("aria-label")
    over.focus()
    page.keyboard.press("ArrowDown")
    assert "rows 20 to 51" in over.get_attribute("aria-label")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert "columns 96 to 127" in over.get_attribute("aria-label")
    over.click(position={"x": 2, "y": 2})
    assert "rows 0 to 31, columns 0 to 31" in over.get_attribute("aria-label")
    for part in ("NaN", "undefined"):
        assert part not in figure.locator(".qfig-body").inner_html()
    assert (
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        <= 1
    )
