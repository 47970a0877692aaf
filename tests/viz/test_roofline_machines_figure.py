"""The figure of rooflines: one formula in Python and in the script."""

import json
import re

import pytest

from qlab.kernels.roofline import H100, LAPTOP, SCHEMES, Machine, last_gain, seconds, speedup
from qlab.viz.roofline_machines import BATCHES, GAIN, MATRICES, roofline_machines
from tests.browser import chromium

HERE = Machine("this machine", 20e9, 200e9, 700e9)
MACHINES = (HERE, LAPTOP, H100)
POINTS = [{"label": "a product", "intensity": 3.5, "performance": 40e9}]


def test_it_is_whole():
    markup = roofline_machines(HERE, POINTS).markup
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])
    assert [m[0] for m in data["machines"]] == [m.name for m in MACHINES]
    assert data["points"] == POINTS and "<table" in markup
    assert markup == roofline_machines(HERE, POINTS).markup


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{roofline_machines(HERE, POINTS).markup}", encoding="utf-8")
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
    for m, machine in enumerate(MACHINES):
        for s, scheme in enumerate(SCHEMES):
            k = (m + s) % len(MATRICES)
            _, rows, inputs = MATRICES[k]
            for tokens in BATCHES[::3]:
                time, gain, last = body.evaluate("(e, a) => e.qlabRun(...a)", [m, s, k, tokens])
                assert time == pytest.approx(seconds(machine, scheme, rows, inputs, tokens))
                assert gain == pytest.approx(speedup(machine, scheme, rows, inputs, tokens))
                assert last == last_gain(machine, scheme, rows, inputs, GAIN)
    read = page.locator("p[aria-live] strong")
    assert read.text_content() == "3.55 times as fast"
    knob = page.locator('input[aria-label="Vectors at once"]')
    knob.focus()
    page.keyboard.press("End")
    assert knob.get_attribute("aria-valuetext") == str(BATCHES[-1])
    assert read.text_content() == "1 times as fast"
    assert "waiting for arithmetic" in page.locator("p[aria-live]").text_content()
    page.locator('select[aria-label="Weights"]').select_option(label=SCHEMES[4].name)
    assert "any number of vectors" in page.locator("p[aria-live]").text_content()
    page.locator('select[aria-label="Weights"]').select_option(label=SCHEMES[5].name)
    assert "never gains" in page.locator("p[aria-live]").text_content()
    page.locator('select[aria-label="Machine"]').select_option(label=H100.name)
    page.locator('select[aria-label="Matrix"]').select_option(label=MATRICES[3][0])
    assert H100.name in page.locator("p[aria-live]").text_content()
    text = body.inner_html()
    assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
    assert (
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        <= 1
    )
