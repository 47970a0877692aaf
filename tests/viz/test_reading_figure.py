"""The blind reading: nothing tells who is who before the last vote, and the count is right."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.evaluate.significance import wilson
from qlab.viz.reading import reading
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
NAMES = ("whole teller", "small teller")
OPENINGS = [f"Opening {i}." for i in range(4)]
FIRST = [f"alpha {i}" for i in range(4)]
SECOND = [f"omega {i}" for i in range(4)]


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 12))
def test_the_embedded_intervals_are_wilsons(count):
    data = payload(
        reading([f"{i}" for i in range(count)], ["a"] * count, ["b"] * count, names=NAMES)
    )
    for n, row in enumerate(data["intervals"], 1):
        for k, (low, high) in enumerate(row):
            found = wilson(k, n)
            assert (low, high) == pytest.approx((found.low, found.high), abs=1e-4)


def test_equal_pairs_are_left_out_and_bad_input_is_refused():
    data = payload(reading(OPENINGS[:2], ["same  words", "a"], ["same words", "b"]))
    assert data["openings"] == OPENINGS[1:2]
    for given_, words in (
        (([], [], []), "0 openings"),
        ((OPENINGS, FIRST, SECOND[:3]), "3 continuations"),
        ((OPENINGS, FIRST, FIRST), "nothing to vote on"),
        ((OPENINGS, FIRST, SECOND, ("x", "x")), "different names"),
    ):
        with pytest.raises(QlabError, match=words):
            reading(*given_)


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 390, "height": 844})


@pytest.mark.tools
@pytest.mark.parametrize(("favorite", "verdict"), [("alpha", NAMES[0]), ("omega", NAMES[1])])
def test_a_reader_who_votes_by_keyboard(page, favorite, verdict):
    wrong, sent = [], []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: sent.append(r.url))
    page.set_content(HEAD + reading(OPENINGS, FIRST, SECOND, NAMES).markup)
    body = page.locator(".qfig-body")
    for i in range(4):
        text = body.inner_text()
        assert f"Pair {i + 1} of 4" in text and not any(name in text for name in NAMES)
        side = 0 if favorite in body.locator(".qfig-columns > div").nth(0).inner_text() else 1
        button = page.locator("button").nth(side)
        button.focus()
        page.keyboard.press("Enter")
        if i < 3:
            assert page.evaluate("document.activeElement.textContent").startswith("Pair")
    text = body.inner_text()
    split = "4 to 0" if favorite == "alpha" else "0 to 4"
    assert split in text and f"prefer {verdict}" in text
    low, high = wilson(4, 4).low, wilson(4, 4).high
    ends = (low, high) if favorite == "alpha" else (1 - high, 1 - low)
    assert f"{ends[0] * 100:.0f}% and {ends[1] * 100:.0f}%" in text
    # Every line names who was A and who was B, and what was chosen.
    assert text.count(f"you chose {verdict}") == 4
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 1
    assert wrong == [] and sent == []


@pytest.mark.tools
def test_ties_and_few_votes_show_nothing(page):
    page.set_content(HEAD + reading(OPENINGS, FIRST, SECOND, NAMES).markup)
    body = page.locator(".qfig-body")
    for votes, words in ((4, "alike"), (3, "without a choice")):
        for i in range(4):
            body.locator("button").nth(2 if i < votes else 0).click()
        assert words in body.inner_text()
        body.locator("button").first.click()  # read again
    assert "Pair 1 of 4" in body.inner_text()


@pytest.mark.tools
def test_both_orders_are_drawn(page):
    left = set()
    for _ in range(12):
        page.set_content(HEAD + reading(OPENINGS, FIRST, SECOND, NAMES).markup)
        left.add(page.locator(".qfig-columns > div").first.inner_text().split()[1])
    assert left == {"alpha", "omega"}  # by chance only one: 2 in 4096
