"""The figure of predicted times: one formula in Python and in the script, and published numbers."""

import json
import re

import pytest

from qlab.viz.gpu_time import BATCHES, DECODING, GPUS, MATRICES, WEIGHTS, gpu_times, seconds
from tests.browser import chromium

A100, L40S, H100, H200 = GPUS


def test_the_ratio_is_that_of_the_bytes_as_long_as_memory_limits():
    """4096 x 4096, one vector: 16 to 4.125 bits, a little less for the vectors; Marlin's 3.87."""
    for gpu in GPUS:
        ratio = seconds(gpu, 4096, 4096, 1) / seconds(gpu, 4096, 4096, 1, 4.125)
        assert 3.85 < ratio < 16 / 4.125
        # Far out both wait for arithmetic.
        assert seconds(gpu, 4096, 4096, 4096) == seconds(gpu, 4096, 4096, 4096, 4.125)


def test_where_the_curves_bend():
    """By hand: 16-bit weights give 2 operations for 2 bytes and vector, so the bend is at
    peak / bandwidth vectors; vectors take some bytes too."""
    for gpu in GPUS:
        bend = gpu.peak / gpu.bandwidth
        below, above = int(bend * 0.8), int(bend * 2)
        big = 1 << 20  # so large that the vectors' bytes vanish
        assert seconds(gpu, big, big, below) == pytest.approx(
            (2 * big * big + 4 * below * big) / gpu.bandwidth
        )
        assert seconds(gpu, big, big, above) == 2 * above * big * big / gpu.peak


def test_clocks_are_those_of_the_cards():
    """Which the peak implies: 1.41 (A100), 2.5 (L40S), 1.83 GHz (H100)."""
    clocks = [g.instructions / (g.processors * 128) / 1e9 for g in GPUS]
    assert clocks == pytest.approx([1.41, 2.49, 1.83, 1.83], abs=0.005)


def test_decoding_may_limit():
    free, dear = (seconds(H200, 4096, 4096, 1, 4.125, d) for d in (0, 10))
    assert dear == pytest.approx(10 * 4096**2 / H200.instructions) and dear > 2 * free


def test_it_is_whole():
    markup = gpu_times().markup
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])
    assert [g[0] for g in data["gpus"]] == [g.name for g in GPUS]
    assert "3.87 times" in markup and "<table" in markup and markup == gpu_times().markup


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{gpu_times().markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
def test_the_script_predicts_the_same_and_words_follow(page):
    body = page.locator(".qfig-body")
    for g, gpu in enumerate(GPUS):
        for m, (_, rows, inputs) in enumerate(MATRICES[::3]):
            for bits, work, batch in zip((16, 4.5, 2.25), DECODING, BATCHES[::4], strict=False):
                call = "(e, a) => e.qlabRun(...a)"
                found = body.evaluate(call, [g, 3 * m, batch, bits, work])
                assert found[0] == pytest.approx(seconds(gpu, rows, inputs, batch, bits, work))
    read = page.locator("p[aria-live] strong")
    assert read.text_content() == "3.87 times as fast"
    knob = page.locator('input[aria-label="Vectors"]')
    knob.focus()
    page.keyboard.press("End")
    assert knob.get_attribute("aria-valuetext") == "512"
    assert read.text_content() == "1 times as fast"
    page.keyboard.press("Home")
    page.locator('select[aria-label="Decoding a weight takes"]').select_option(index=3)
    assert "limited by decoding" in page.locator("p[aria-live]").text_content()
    page.locator('select[aria-label="Weights"]').select_option(label=WEIGHTS[0][0])
    page.locator('select[aria-label="GPU"]').select_option(label=A100.name)
    page.locator('select[aria-label="Matrix"]').select_option(label=MATRICES[3][0])
    assert "A100" in page.locator("p[aria-live]").text_content()
    text = body.inner_html()
    assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
    assert (
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        <= 1
    )
