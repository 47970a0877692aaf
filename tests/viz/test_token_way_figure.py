"""The figure of a token's way: the stages' numbers, and shares that are shares."""

import json
import re

import pytest

from qlab.engine.stages import Stage
from qlab.viz.token_way import token_way
from tests.browser import chromium

STAGES = [
    Stage("embedding", "x = E[token]", "token → 8", 1, 32, 0, 1e-7),
    Stage("queries", "W x & more", "8 → 24", 2, 3_000, 6_000, 3e-6),
    Stage("head", "W_head x", "8 → 100", 1, 2_500_000, 1_600, 7e-6),
]
OTHER = [
    Stage(s.name, s.formula, s.shapes, s.times, 2 * s.bytes, s.operations, 1e-6) for s in STAGES
]


def picture():
    return token_way({"a": STAGES, "b": OTHER})


def test_it_is_whole():
    markup = picture().markup
    assert markup == picture().markup and "<table" in markup and "3,000" in markup
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])
    assert [w["title"] for w in data["ways"]] == ["a", "b"]
    assert data["ways"][1]["stages"][2]["bytes"] == 5_000_000
    assert STAGES[1].intensity == 2 and Stage("", "", "", 1, 0, 5, 1.0).intensity == 0


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{picture().markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
def test_the_script_shows_shares_and_follows_keys(page):
    body = page.locator(".qfig-body")
    for way, stages in enumerate((STAGES, OTHER)):
        for measure, key in enumerate(("seconds", "bytes", "operations")):
            found = body.evaluate("(e, a) => e.qlabRun(...a)", [way, measure])
            total = sum(getattr(s, key) for s in stages)
            assert found == pytest.approx([getattr(s, key) / total for s in stages])
    read = page.locator(".qfig-read")
    assert "head: W_head x" in read.inner_text() and "2.5 MB" in read.inner_text()
    page.locator(".qway button").nth(1).click()
    assert "queries: W x & more. 8 → 24, 2 times" in read.inner_text()
    assert "2 a byte" in read.inner_text()
    page.keyboard.press("ArrowUp")
    assert "embedding" in read.inner_text()
    assert page.locator(".qway button[aria-pressed=true]").count() == 1
    page.get_by_label("Model").select_option("1")
    assert "64 bytes" in read.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
