"""The figure of the scheduler: what it shows is what was watched."""

import json
import re

import pytest

from qlab.serve import Request, Scheduler
from qlab.serve.toy import Toy, watch
from qlab.viz.paged import paged
from tests.browser import chromium

REQUESTS = [Request([1] * n, new, stop=()) for n, new in ((6, 9), (3, 3), (14, 5), (4, 6))]


def runs():
    return {
        "roomy": watch(Scheduler(Toy(20, 4), 3, step_tokens=10), REQUESTS, [0, 0, 2, 3]),
        "small": watch(Scheduler(Toy(6, 4), 3, step_tokens=10), REQUESTS, [0, 0, 2, 3]),
    }


def picture():
    return paged(runs(), {title: ["first", "second", "third", "fourth"] for title in runs()}, 4)


def test_it_is_whole():
    markup = picture().markup
    assert markup == picture().markup and "<table" in markup and "A is admitted" in markup
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])
    assert [r["title"] for r in data["runs"]] == ["roomy", "small"]
    assert data["runs"][0]["names"] == list("ABCD")
    for run, frames in zip(data["runs"], runs().values(), strict=True):
        assert len(run["frames"]) == len(frames)
        for shown, frame in zip(run["frames"], frames, strict=True):
            assert shown["states"] == frame.states and len(frame.states) == 4
            for owners, filled in zip(shown["owners"], shown["filled"], strict=True):
                assert 0 <= filled <= 4 and bool(owners) == bool(filled)


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
def test_the_script_shows_each_step_and_follows_keys(page):
    body = page.locator(".qfig-body")
    for i, frames in enumerate(runs().values()):
        for step, frame in enumerate(frames):
            shown = body.evaluate("(e, a) => e.qlabRun(...a)", [i, step])
            assert shown == ["".join("ABCD"[o] for o in owners) for owners in frame.owners]
    body.evaluate("e => e.qlabRun(0, 0)")
    read = page.locator(".qfig-read")
    assert "Step 1 of" in read.inner_text() and "A is admitted" in read.inner_text()
    page.get_by_label("Step on").click()
    assert "Step 2 of" in read.inner_text()
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    assert "Step 3 of" in read.inner_text()
    page.get_by_label("Step back").click()
    assert "Step 2 of" in read.inner_text()
    page.get_by_label("Run").select_option("1")
    assert "Step 1 of" in read.inner_text()
    said = [f.said for f in runs()["small"]]
    step = next(i for i, words in enumerate(said) if any("preempted" in w for w in words))
    body.evaluate("(e, a) => e.qlabRun(...a)", [1, step])
    assert "is preempted" in read.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
