"""The figure of bit allocation: what Python computed is what the reader sees."""

from __future__ import annotations

import json
import re

import pytest

import qlab
from qlab.evaluate.allocation import Choice, frontier
from qlab.viz.sensitivity import bit_budget, learned_rounding
from tests.browser import chromium

NAMES = [f"model.layers.{i}.{n}_proj" for i in range(3) for n in ("attn.q", "mlp.up", "mlp.down")]
UNIFORM = {"int2-g32": (9 * 200, 0.9), "int4-g32": (9 * 400, 0.04)}


def points():
    choices = {
        name: [Choice(f"int{b}-g32", 100 * b, (1 + i) * 0.3 * 4.0**-b) for b in (2, 3, 4)]
        for i, name in enumerate(NAMES)
    }
    return frontier(choices)


def measured():
    return [p.cost * 1.25 for p in points()]


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def test_the_data_are_those_of_the_allocations():
    data = payload(bit_budget(points(), measured(), UNIFORM))
    assert [s["bits"] for s in data["schemes"]] == [2, 3, 4]
    assert data["rows"] == ["block 0", "block 1", "block 2"]
    assert data["columns"] == ["q", "up", "down"]
    for shown, point, kl in zip(data["points"], points(), measured(), strict=True):
        assert shown["nbytes"] == point.nbytes
        assert shown["predicted"] == pytest.approx(point.cost, rel=1e-3)
        assert shown["measured"] == pytest.approx(kl, rel=1e-3)
        words = [data["schemes"][i]["name"] for i in shown["schemes"]]
        assert words == [point.schemes[name] for name in NAMES]
    assert data["points"][0]["schemes"] == [0] * 9 and data["points"][-1]["schemes"] == [2] * 9
    assert bit_budget(points(), measured(), UNIFORM).markup == (
        bit_budget(points(), measured(), UNIFORM).markup
    )


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(qlab.QlabError, match="bit_budget has 0"):
        bit_budget([], [], {})
    with pytest.raises(qlab.QlabError, match="allocations and 1"):
        bit_budget(points(), [1.0], {})
    with pytest.raises(qlab.QlabError, match="positive"):
        bit_budget(points(), [0.0] * len(points()), {})
    other = frontier({"model.layers.0.x": [Choice("int4-g32", 1, 1.0)]})
    with pytest.raises(qlab.QlabError, match="different layers"):
        bit_budget([*other, *points()], [1.0] * (1 + len(points())), {})
    twice = frontier({n: [Choice("int4-g32", 1, 1.0)] for n in ("a.0.b.x", "a.0.c.x")})
    with pytest.raises(qlab.QlabError, match="same block"):
        bit_budget(twice, [1.0], {})


@pytest.mark.tools
def test_the_slider_moves_bits_and_words(tmp_path):
    picture = bit_budget(points(), measured(), UNIFORM)
    data = payload(picture)
    path = tmp_path / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{picture.markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        knob = page.locator('input[aria-label="Budget"]')
        read = page.locator("p[aria-live] strong")
        grid = page.locator('svg[aria-label^="Bits of each layer"]')
        knob.focus()
        for key, index in (("Home", 0), ("End", -1)):
            page.keyboard.press(key)
            point = data["points"][index]
            size = f"{point['nbytes'] / 1e6:.2f} MB"
            assert knob.get_attribute("aria-valuetext") == size
            assert read.nth(1).text_content() == size
            word = data["schemes"][index]["name"]
            assert read.nth(0).text_content() == f"9 in {word}"
            assert grid.get_attribute("aria-label") == f"Bits of each layer: 9 in {word}"
            shown = grid.locator("text").all_text_contents()[-9:]
            assert shown == [str(data["schemes"][index]["bits"])] * 9
            assert float(read.nth(2).text_content()) == pytest.approx(point["predicted"], rel=5e-3)
            assert float(read.nth(3).text_content()) == pytest.approx(point["measured"], rel=5e-3)
        assert page.locator("[data-uniform]").count() == 2
        text = page.locator(".qfig-body").inner_html()
        assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 1
    assert errors == []


RUNS = {"short": ([4.0, 3.0, 2.5], [0.0, 0.1, 0.2]), "long <x>": ([4.0, 9.0, 2.0], [0.0, 0.5, 0.4])}


def test_the_runs_are_relative_to_the_nearest_codes():
    picture = learned_rounding(RUNS)
    data = payload(picture)
    assert data["steps"] == 3 and [r["name"] for r in data["runs"]] == list(RUNS)
    assert data["runs"][1]["loss"] == [1.0, 2.25, 0.5] and data["runs"][0]["changed"][2] == 0.2
    assert "long &lt;x&gt;" in picture.markup


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"a": ([], [])},
        {"a": ([1.0, 2.0], [0.0])},
        {"a": ([0.0], [0.0])},
        {"a": ([1.0, float("nan")], [0.0, 0.1])},
    ],
)
def test_runs_that_cannot_be_drawn_are_refused(bad):
    with pytest.raises(qlab.QlabError, match="learned_rounding"):
        learned_rounding(bad)


@pytest.mark.tools
def test_the_steps_are_told(tmp_path):
    path = tmp_path / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{learned_rounding(RUNS).markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        knob, read = page.locator('input[aria-label="Step"]'), page.locator("p[aria-live] strong")
        page.locator("select").select_option(label="long <x>")
        knob.focus()
        page.keyboard.press("End")
        assert knob.get_attribute("aria-valuetext") == "2"
        assert read.all_text_contents() == ["50.0%", "50.0%", "40.0%"]
        page.keyboard.press("ArrowLeft")
        assert read.all_text_contents() == ["225.0%", "100.0%", "50.0%"]
        page.locator("select").select_option(label="short")
        assert read.all_text_contents() == ["75.0%", "75.0%", "10.0%"]
        text = page.locator(".qfig-body").inner_html()
        assert "NaN" not in text and "undefined" not in text
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 1
    assert errors == []
