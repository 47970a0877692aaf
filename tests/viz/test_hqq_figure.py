"""The figure of HQQ's iterations: what Python computes, and that the script does the same."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.viz.hqq import BITS, STEPS, betas, half_quadratic_steps, state, trace
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def group(seed=0, n=64):
    return (np.random.default_rng(seed).standard_normal(n) * 0.07).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(BITS))
def test_the_next_zero_point_takes_out_the_mean_of_what_is_left(seed, bits):
    """z moves by minus the mean of the errors that were not put aside, in steps."""
    w = group(seed).astype(np.float64)
    for beta in betas(float(np.ptp(w)) / (2**bits - 1)):
        zeros, scale = trace(w, bits, beta)
        assert len(zeros) == STEPS + 1
        for z, after in itertools.pairwise(zeros):
            moved = -state(w, bits, scale, z, beta)["left"] / scale
            assert after - z == pytest.approx(moved, abs=1e-9)


def test_the_library_s_beta_puts_nothing_aside_here_and_larger_ones_do():
    w = group(1).astype(np.float64)
    for bits in (4, 3):
        choices = betas(float(np.ptp(w)) / (2**bits - 1))
        kept = []
        for beta in choices:
            zeros, scale = trace(w, bits, beta)
            kept.append(state(w, bits, scale, zeros[0], beta)["kept"])
        assert kept[0] == 0 < kept[1] < kept[2] < 64


def test_it_takes_torch_and_numpy_and_refuses_what_is_no_group():
    w = group()
    picture = half_quadratic_steps(w)
    assert picture.markup == half_quadratic_steps(torch.from_numpy(w)).markup
    assert "<table" in picture.markup and len(picture.markup) < 60_000
    for bad in ([1.0], [2.0, 2.0], [1.0, np.nan], np.zeros(300)):
        with pytest.raises(qlab.QlabError, match="finite numbers"):
            half_quadratic_steps(np.array(bad))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The figure on a page of its own."""
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    path.write_text(f"{HEAD}<body>{half_quadratic_steps(group()).markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
def test_the_script_computes_what_python_computes(page):
    data = payload(half_quadratic_steps(group()))
    w = np.array(data["weights"])
    body = page.locator(".qfig-body")
    for i, run in enumerate(data["runs"]):
        for k in (0, 1, 7, STEPS):
            theirs = body.evaluate("(e, [run, k]) => e.qlabState(run, k)", [i, k])
            ours = state(w, run["bits"], run["scale"], run["zeros"][k], run["beta"])
            assert theirs["codes"] == ours["codes"] and theirs["kept"] == ours["kept"]
            for name in ("absolute", "square", "left"):
                assert theirs[name] == pytest.approx(ours[name], rel=1e-9, abs=1e-12)


@pytest.mark.tools
def test_controls_work_by_keyboard_and_fit_a_phone(page):
    slider = page.locator(".qfig-body input[type=range]")
    read = page.locator(".qfig-read").first
    assert "of the range" in read.text_content()
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "3"
    assert "After 3 iterations" in read.text_content() and "moved by" in read.text_content()
    beta = page.locator(".qfig-body select").nth(1)
    assert "0 of 64" in read.text_content()
    beta.select_option("2")
    assert "0 of 64" not in read.text_content()
    assert page.locator(".qfig-body svg path[stroke='#009E73']").count() > 0
    page.locator(".qfig-body select").first.select_option("2")
    assert "NaN" not in page.locator(".qfig-body").inner_html()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
