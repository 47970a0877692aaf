"""The figures of drift and of choosing: their data, and their scripts in a browser."""

import itertools
import json
import re

import pytest

from qlab.serve.monitor import rank_limit
from qlab.study.choosing import Option, choose
from qlab.viz import choosing, drift
from tests.browser import chromium

OPTIONS = [
    Option("whole", 16.0, 0.0, 1.0, ("qlab", "llama.cpp", "vLLM", "transformers", "bitsandbytes")),
    Option("q8", 8.5, 0.001, 1.001, ("qlab", "llama.cpp", "transformers")),
    Option("w4", 4.125, 0.05, 1.05, ("qlab", "vLLM", "transformers")),
    Option("q2", 2.6, 0.5, 1.6, ("qlab", "llama.cpp", "transformers")),
]


def payload(picture):
    return json.loads(
        re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    )


def test_simulated_charts_obey_the_laws():
    found = drift.simulate()
    for window in map(str, drift.WINDOWS):
        false, delays = found["false"][window], found["delay"][window]
        assert false == sorted(false, reverse=True)  # a higher limit rings less often
        for one in delays:
            known = [d for d in one if d is not None]
            assert known == sorted(known) and one[: len(known)] == known
        for small, large in itertools.pairwise(delays):
            assert all(b is not None and b <= a for a, b in zip(small, large, strict=True) if a)
    # The same chance as the chart's own limit promises: 300 streams have a standard error of 0.017.
    limit = rank_limit(drift.OLD, drift.HORIZON, 0.1)
    near = min(range(len(drift.LIMITS)), key=lambda i: abs(drift.LIMITS[i] - limit))
    assert abs(found["false"]["1"][near] - 0.1) < 0.07


def test_the_aid_gives_the_answers_of_the_rules():
    data = payload(choosing.decision_aid(OPTIONS))
    assert len(data["answers"]) == len(list(itertools.product(*choosing.words())))
    for key in list(data["answers"])[::7]:
        needs = choosing.needs_of(*map(int, key.split("/")))
        found, (fits, said) = choose(OPTIONS, needs), data["answers"][key]
        assert fits == found.fits
        if found.best is None:
            assert [data["said"][i] for i in said] == list(found.relax)
        else:
            assert [OPTIONS[i].name for i, _, _ in said] == [
                found.best.name,
                found.smallest.name,
                found.fastest.name,
            ]
    assert "<table" in choosing.decision_aid(OPTIONS).markup


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    figures = drift.drift_alarm().markup + choosing.decision_aid(OPTIONS).markup
    path.write_text(f"{head}<body>{figures}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
def test_scripts_run_and_words_follow(page):
    first = page.locator("figure").nth(0)
    found, strong = drift.simulate(), first.locator("p[aria-live] strong")
    knob = first.locator('input[aria-label="Drift"]')
    knob.focus()
    page.keyboard.press("End")
    assert strong.nth(0).text_content() == "3 sd"
    limit = drift.LIMITS.index(8.0)
    assert strong.nth(1).text_content() == str(found["delay"]["5"][-1][limit])
    first.locator("select").select_option(index=2)
    assert strong.nth(1).text_content() == str(found["delay"]["20"][-1][limit])
    knob.focus()
    page.keyboard.press("Home")
    first.locator('input[aria-label="Limit"]').focus()
    page.keyboard.press("End")

    second = page.locator("figure").nth(1)
    selects = second.locator("select")
    needs = [2, 2, 0, 2, 2]
    for i, place in enumerate(needs):
        selects.nth(i).select_option(index=place)
    strong = second.locator("strong")
    assert strong.nth(0).text_content() == choose(OPTIONS, choosing.needs_of(*needs)).best.name
    big = next(i for i, s in enumerate(choosing.SIZES) if s.name == "Llama-3.1-70B")
    selects.nth(0).select_option(index=big)
    assert strong.nth(0).text_content() == "Nothing fits."
    assert second.locator("li").count() >= 1
    for body in page.locator(".qfig-body").all():
        text = body.inner_html()
        assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
    assert (
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        <= 1
    )
