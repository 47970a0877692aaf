"""The figure of the traps: its numbers are qlab's perplexities, and its script shows them."""

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.errors import QlabError
from qlab.evaluate.perplexity import cut
from qlab.evaluate.windows import token_losses, windows
from qlab.viz.perplexity_traps import STRIDES, perplexity_traps
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
TEXT = "once upon a time the fox and the moon went on and on, once upon a time. " * 3
CONTEXTS = (8, 16, 512)


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


@pytest.fixture(scope="module")
def picture(tiny):
    return perplexity_traps(*tiny, TEXT, CONTEXTS)


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.integers(1, 60),
    room=st.integers(1, 20),
    part=st.floats(0, 1),
    bos=st.booleans(),
)
def test_every_token_is_scored_once_or_has_nothing_before_it(tokens, room, part, bos):
    stride = max(1, min(room, round(part * room)))
    found = windows(tokens, room, stride, bos)
    scored = [i for start, end, first in found for i in range(first, end)]
    assert len(scored) == len(set(scored)) and set(scored) <= set(range(tokens))
    for start, end, first in found:
        assert start <= first < end <= min(start + room, tokens)
        assert bos or first > start
    if bos:
        assert scored == list(range(tokens))
    elif stride < room and room > 1:
        assert scored == list(range(1, tokens))  # overlap gives every later token a token before it


def test_windows_are_those_of_the_perplexity(tiny):
    _, tokenizer = tiny
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    for context in (4, 9, 33):
        for stride in (1, 2, context - 1):
            ours = windows(len(ids), context - 1, stride, True)
            theirs = cut(tokenizer, TEXT, context, stride)
            assert [(b - a + 1, b - first) for a, b, first in ours] == [
                (len(w.ids), w.scored) for w in theirs
            ]


def test_the_numbers_are_qlabs(tiny, picture):
    model, tokenizer = tiny
    runs = iter(payload(picture)["runs"])
    for context in CONTEXTS:
        for bos in (True, False):
            for share in STRIDES:
                losses = [x for x in next(runs)["losses"] if x is not None]
                if bos:
                    stride = max(1, int((context - 1) * share))
                    theirs = qlab.perplexity(model, tokenizer, TEXT, context, stride)
                    # Losses are embedded with four decimals.
                    assert math.exp(sum(losses) / len(losses)) == pytest.approx(theirs, rel=1e-3)


def test_a_loss_depends_only_on_what_stands_before_it(tiny):
    model, tokenizer = tiny
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    once = token_losses(model, ids, [[0, len(ids), 0]], 1)
    parts = token_losses(model, ids, [[0, 20, 0], [0, len(ids), 20]], 1)
    assert once == pytest.approx(parts, abs=1e-4)


def test_bad_input_is_refused(tiny):
    model, tokenizer = tiny
    for contexts, text, words in (
        ((), TEXT, "contexts"),
        ((1,), TEXT, "2 to 512"),
        ((600,), TEXT, "2 to 512"),
        ((64,), "the fox", "at least 64"),
    ):
        with pytest.raises(QlabError, match=words):
            perplexity_traps(model, tokenizer, text, contexts)


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 390, "height": 844})


@pytest.mark.tools
def test_the_script_counts_as_python_does(page, picture):
    wrong = []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.set_content(HEAD + picture.markup)
    body, data = page.locator(".qfig-body"), payload(picture)
    count = data["counts"]
    for c in range(len(CONTEXTS)):
        for b in (0, 1):
            for s in range(len(STRIDES)):
                losses = data["runs"][(c * 2 + b) * len(STRIDES) + s]["losses"]
                scored = [x for x in losses if x is not None]
                share = len(scored) / len(losses)
                values = [
                    math.exp(sum(scored) / len(scored)),
                    math.exp(sum(scored) / (count["words"] * share)),
                    sum(scored) / math.log(2) / (count["characters"] * share),
                    sum(scored) / math.log(2) / (count["bytes"] * share),
                ]
                for unit, value in enumerate(values):
                    found = body.evaluate("(e, a) => e.qlabFigure(...a)", [c, b, s, unit])
                    assert found["value"] == pytest.approx(value, rel=1e-9)
                    assert found["scored"] == len(scored)
    for control in page.locator("select").all():
        assert control.get_attribute("aria-label")
        for key in ("End", "Home"):
            control.focus()
            page.keyboard.press(key)
            html = body.inner_html()
            assert "NaN" not in html and "undefined" not in html and "Infinity" not in html
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(wide) <= 1
    page.locator(".qfig-pieces span").first.focus()
    page.keyboard.press("ArrowRight")
    assert "pieces of the text" in body.inner_text() or "piece of the text" in body.inner_text()
    assert wrong == []
