"""The front of quality and cost: what Python computed is what the reader sees and hears."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.viz.pareto import on_front, pareto
from tests.browser import chromium

MEASURES = {"ratio": ("perplexity, relative", False), "agreement": ("same token", True)}
COSTS = {"size": ("file (MB)", False), "speed": ("speed, relative", True)}


def point(name, family, ratio, size, speed=None):
    agree = [1 / ratio, 0.9 / ratio, 1.05 / ratio]
    return {"name": name, "family": family, "ratio": [ratio, ratio * 0.98, ratio * 1.03],
            "agreement": agree, "size": size, "speed": speed}  # fmt: skip


POINTS = [
    point("eight", "RTN", 1.01, 8.0, 2.0),
    point("four", "RTN", 1.30, 4.5, 3.0),
    point("four <better>", "GPTQ", 1.10, 4.5),
    point("two", "RTN", 40.0, 2.5, 3.5),
]


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text.replace("<\\/", "</"))


def test_the_data_are_those_of_the_points():
    picture = pareto(POINTS, MEASURES, COSTS)
    data = payload(picture)
    assert [r["name"] for r in data["rows"]] == [p["name"] for p in POINTS]
    assert data["rows"][2]["speed"] is None and data["rows"][2]["size"] == [4.5]
    assert data["rows"][3]["ratio"] == [40.0, 39.2, 41.2]
    fallback = picture.markup.split("<table>")[1].split("</table>")[0]
    assert "four &lt;better&gt;" in fallback and ">four<" not in fallback


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_the_front_is_what_no_other_beats(points):
    found = on_front(points)
    costs = [points[i][0] for i in found]
    assert costs == sorted(set(costs))
    for i, (c, v) in enumerate(points):
        beaten = any(a <= c and b <= v and (a, b) != (c, v) for a, b in points)
        equal = any(points[j] == (c, v) for j in found)
        assert equal != beaten, i
    turned = on_front([(-c, -v) for c, v in points], more_cost=True, more_value=True)
    assert [points[i] for i in turned] == [points[i] for i in found]


def test_what_cannot_be_drawn_is_refused():
    for points, says in (
        ([], "at least one point"),
        ([POINTS[0]] * 2, "same name"),
        ([{**POINTS[0], "size": float("nan")}], "size of 'eight'"),
        ([{**POINTS[0], "ratio": [1.0]}], "ratio of 'eight'"),
        ([{"name": "a", "family": "b", "size": 1.0}], "no point has both"),
    ):
        with pytest.raises(qlab.QlabError, match=says):
            pareto(points, MEASURES, COSTS)


@pytest.mark.tools
def test_a_reader_chooses_quality_cost_and_budget(tmp_path):
    path = tmp_path / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{pareto(POINTS, MEASURES, COSTS).markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        read = page.locator("p[aria-live]")
        page.locator('input[aria-label="Budget"]').focus()
        for key, name in (("Home", "two"), ("ArrowRight", "four <better>"), ("End", "eight")):
            page.keyboard.press(key)
            assert f"the best is {name}:" in read.text_content()
        # The rows by keyboard, cheapest first; a beaten one says by whom.
        page.locator("[data-name]").first.focus()
        assert read.text_content().startswith("two: ")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert read.text_content().startswith("four: ")
        assert "Beaten by four <better>." in read.text_content()
        # A measure where more is better, and a cost where more is cheaper.
        page.locator('select[aria-label="Quality"]').select_option(label="same token")
        page.locator('select[aria-label="Cost"]').select_option(label="speed, relative")
        assert page.locator("[data-name]").count() == 3  # one has no speed
        page.locator('input[aria-label="Budget"]').focus()
        page.keyboard.press("Home")
        assert "At least 3.5" in read.text_content() and "two" in read.text_content()
        page.keyboard.press("End")
        assert "the best is eight" in read.text_content()
        page.locator('select[aria-label="Family"]').select_option(label="RTN")
        text = page.locator(".qfig-body").inner_html()
        assert "Marked: RTN." in text  # though all rows shown are of that family
        assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 1
    assert errors == []
