"""The figure of codebook levels: what Python computes, and that the script does the same."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab import viz
from qlab.core.kmeans import kmeans_1d
from qlab.viz.levels import BINS, SIZES, distortion, starts
from tests.browser import chromium


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def values(seed=0, n=5000):
    return np.random.default_rng(seed).standard_t(5, n).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 16))
def test_the_distortion_is_that_of_the_bins(seed, k):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 30, BINS)
    counts[0] += 1
    centers = (np.arange(BINS) + 0.5) * 2 * 3.0 / BINS - 3.0
    levels = np.sort(rng.uniform(-3, 3, k))
    every = np.repeat(centers, counts)
    truth = np.abs(every[:, None] - levels).min(1) ** 2
    assert distortion(counts, 3.0, levels) == pytest.approx(truth.mean(), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_optimum_is_the_best_of_the_rules(seed):
    counts, _edges = np.histogram(values(seed), BINS, range=(-12, 12))
    for size in SIZES:
        rules = starts(counts, 12.0, size)
        errors = {word: distortion(counts, 12.0, levels) for word, levels in rules.items()}
        assert list(rules)[-1] == "k-means, the optimum"
        assert min(errors.values()) == errors["k-means, the optimum"]
        assert errors["equal steps, best range"] <= errors["equal steps to the largest"] + 1e-12
        for word, levels in rules.items():
            assert list(levels) == sorted(levels)
            assert len(levels) == size - (word == "powers of two")


def test_bins_change_little():
    x = values()
    data = payload(viz.codebook_levels(x))
    x = x / x.std()
    for i, size in enumerate(data["sizes"]):
        by_bins = distortion(np.array(data["counts"]), data["amax"], data["presets"][i][-1])
        truth = kmeans_1d(x, size).inertia / x.size
        # A bin is amax / 200 wide; its own spread is width² / 12.
        assert by_bins == pytest.approx(truth, abs=(data["amax"] / 200) ** 2, rel=0.02)
    assert data["bounds"] == [size**-2.0 for size in SIZES]


def test_it_takes_torch_and_numpy_and_refuses_what_has_no_histogram():
    x = values().reshape(50, 100)
    picture = viz.codebook_levels(x)
    assert picture.markup == viz.codebook_levels(torch.from_numpy(x)).markup
    assert "<table" in picture.markup
    for bad in ([1.0], [2.0, 2.0], [1.0, np.nan], [0.0, np.inf]):
        with pytest.raises(qlab.QlabError, match="two different finite values"):
            viz.codebook_levels(np.array(bad))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The figure on a page of its own."""
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{viz.codebook_levels(values()).markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


def shown(page):
    """The mean squared error that the figure reads out."""
    text = page.locator(".qfig-read").first.text_content()
    return float(re.search(r"error ([\d.e+-]+) σ²", text)[1]), text


@pytest.mark.tools
@pytest.mark.parametrize("seed", range(3))
def test_the_script_computes_what_python_computes(page, seed):
    data = payload(viz.codebook_levels(values()))
    levels = np.sort(np.random.default_rng(seed).uniform(-3, 3, 2**seed * 3)).tolist()
    theirs = page.locator(".qfig-body").evaluate("(e, levels) => e.qlabDistortion(levels)", levels)
    ours = distortion(np.array(data["counts"]), data["amax"], levels)
    assert theirs == pytest.approx(ours, rel=1e-9)


@pytest.mark.tools
def test_rules_lloyd_and_keys_do_what_they_say(page):
    data = payload(viz.codebook_levels(values()))
    buttons = page.locator(".qfig-body button")
    for i, rule in enumerate(data["rules"]):
        buttons.nth(i).click()
        assert buttons.nth(i).get_attribute("aria-pressed") == "true"
        assert buttons.nth(i).text_content() == rule
        levels = data["presets"][2][i]
        expected = distortion(np.array(data["counts"]), data["amax"], levels)
        assert shown(page)[0] == pytest.approx(expected, rel=0.01)  # three digits are shown
        assert page.locator(".qfig-body [role=slider]").count() == len(levels)
    best, text = shown(page)
    assert "0.00 dB from the best levels" in text

    buttons.first.click()
    before = shown(page)[0]
    for _ in range(3):
        buttons.last.click()  # a step of Lloyd's algorithm
        after = shown(page)[0]
        assert best <= after <= before
        before = after

    buttons.nth(4).click()
    handle = page.locator(".qfig-body [role=slider]").nth(7)
    handle.focus()
    at = float(handle.get_attribute("aria-valuenow"))
    page.keyboard.press("ArrowRight")
    assert float(handle.get_attribute("aria-valuenow")) > at
    assert shown(page)[0] > best  # the optimum left in any direction is worse
    for _ in range(40):  # it stops at its neighbor
        page.keyboard.press("PageUp")
    assert handle.get_attribute("aria-valuenow") == (
        page.locator(".qfig-body [role=slider]").nth(8).get_attribute("aria-valuenow")
    )
    assert "NaN" not in page.locator(".qfig-body").inner_html()


@pytest.mark.tools
def test_a_level_follows_the_pointer(page):
    page.locator(".qfig-body button").nth(1).click()
    handle = page.locator(".qfig-body [role=slider]").nth(7)
    dot = handle.locator("circle")
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    at = float(handle.get_attribute("aria-valuenow"))
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 3, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    moved = at - float(handle.get_attribute("aria-valuenow"))
    # 3 of about 270 pixels that show 2 · amax
    amax = payload(viz.codebook_levels(values()))["amax"]
    assert moved == pytest.approx(3 / 270 * 2 * amax, rel=0.4)
