"""The figure of the lanes: its sums against the product, and its script in a browser."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.viz.lanes import lane_sums, lanes
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def block(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 16, (16, 32)), rng.integers(-127, 128, 32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_last_sums_are_the_product(seed):
    codes, inputs = block(seed)
    sums = lane_sums(codes, inputs)
    assert sums.shape == (9, 16)
    np.testing.assert_array_equal(sums[-1], (codes - 8) @ inputs)
    for step in range(8):
        part = slice(4 * step, 4 * step + 4)
        np.testing.assert_array_equal(sums[step + 1] - sums[step], codes[:, part] @ inputs[part])


def test_bad_input_is_refused():
    codes, inputs = block()
    with pytest.raises(qlab.QlabError, match="16 x 32 codes"):
        lanes(codes[:, :31], inputs)
    with pytest.raises(qlab.QlabError, match="from 0 to 15"):
        lanes(codes - 8, inputs)


@pytest.mark.tools
def test_it_works_by_keyboard_on_a_phone(tmp_path):
    codes, inputs = block(3)
    picture, path, errors = lanes(codes, inputs), tmp_path / "figure.html", []
    assert "<table" in picture.markup
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    sums = json.loads(text)["sums"]
    path.write_text(f"{HEAD}<body>{picture.markup}", encoding="utf-8")
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        step, lane = page.locator("input[type=range]").all()
        read = page.locator(".qfig-read")
        lane.focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        assert lane.get_attribute("aria-valuetext") == "row 5"
        step.focus()
        page.keyboard.press("End")
        assert f"= {sums[8][5]}." in read.text_content().replace("−", "-")
        assert "upper halves" in read.text_content()
        page.keyboard.press("Home")
        assert "begins at" in read.text_content()
        assert str(sums[0][5]) in read.text_content().replace("−", "-")
        assert "undefined" not in page.locator(".qfig-body").inner_html()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert errors == []
