"""The figures of outliers: Python computes what qlab computes, and the scripts what Python does."""

from __future__ import annotations

import json
import re

import pytest
import torch

import qlab
from qlab.methods.llm_int8 import decompose
from qlab.methods.smoothquant import smoothing_scales
from qlab.viz.outliers import ALPHAS, int8_error, mixed_error, outlier_columns, smoothing
from tests.browser import chromium


def layer(seed=0, features=40, far=(3, 17)):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(60, features, generator=g)
    x[:, list(far)] *= 50
    return x, torch.randn(24, features, generator=g) * 0.05


def layers():
    x, w = layer(1, 32, far=())
    w[:, 5] = 0
    x[:, 9] = 0
    return {"with outliers": layer(), "without <them>": (x, w)}


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def test_the_errors_are_those_of_w8a8():
    data = payload(smoothing(layers()))
    assert data["alphas"] == list(ALPHAS) and ALPHAS[10] == 0.5
    for one, (x, w) in zip(data["layers"], layers().values(), strict=True):
        for kind, word in (("a scale a token", "int8-token"), ("one scale", "int8-tensor")):
            assert one["plain"][kind] == pytest.approx(int8_error(x, w, word), abs=1e-3)
            for i in (0, 10, 20):
                s = smoothing_scales(x.abs().amax(0), w.abs().amax(0), ALPHAS[i])
                y = qlab.quantize(x / s, word).dequantize() @ (
                    qlab.quantize(w * s, "int8-channel").dequantize().T
                )
                assert one["errors"][kind][i] == pytest.approx(qlab.sqnr(x @ w.T, y), abs=1e-3)
    far = data["layers"][0]
    assert far["errors"]["one scale"][10] > far["plain"]["one scale"] + 6


def test_the_columns_are_those_of_the_decomposition():
    data = payload(outlier_columns(layers(), thresholds=12))
    for one, (x, w) in zip(data["layers"], layers().values(), strict=True):
        assert one["thresholds"] == sorted(set(one["thresholds"]))
        assert one["thresholds"][one["six"]] == 6.0
        for threshold, count, error in zip(
            one["thresholds"], one["columns"], one["errors"], strict=True
        ):
            assert count == len(decompose(x, threshold).outliers)
            assert error == pytest.approx(mixed_error(x, w, threshold)[1], abs=1e-3)
        assert one["columns"] == sorted(one["columns"], reverse=True) and one["columns"][-1] == 0
        assert one["errors"][-1] == pytest.approx(int8_error(x, w, "int8-token"), abs=0.3)
    far = data["layers"][0]
    assert far["columns"][far["six"]] == 2 and far["errors"][far["six"]] > far["errors"][-1] + 3


@pytest.mark.parametrize("make", [smoothing, outlier_columns])
def test_the_figures_are_small_and_the_same_each_time(make):
    picture = make(layers())
    assert picture.markup == make(layers()).markup
    assert len(picture.markup) < 60_000 and "<table" in picture.markup
    assert "without &lt;them&gt;" in picture.markup and "aria-label" in picture.markup


@pytest.mark.parametrize("make", [smoothing, outlier_columns])
@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"a": (torch.ones(3, 4), torch.ones(2, 5))},
        {"a": (torch.ones(4), torch.ones(2, 4))},
        {"a": (torch.ones(0, 4), torch.ones(2, 4))},
        {"a": (torch.ones(2, 1025), torch.ones(2, 1025))},
        {"a": (torch.zeros(3, 4), torch.ones(2, 4))},
        {"a": (torch.full((3, 4), float("nan")), torch.ones(2, 4))},
    ],
)
def test_what_cannot_be_drawn_is_refused(make, bad):
    with pytest.raises(qlab.QlabError, match=make.__name__):
        make(bad)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Both figures on a page of their own, as wide as a phone."""
    path = tmp_path_factory.mktemp("figure") / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    body = smoothing(layers()).markup + outlier_columns(layers(), thresholds=12).markup
    path.write_text(f"{head}<body>{body}", encoding="utf-8")
    errors = []
    with chromium() as running:
        opened = running.new_page(viewport={"width": 390, "height": 844})
        opened.on("pageerror", lambda e: errors.append(str(e)))
        opened.goto(path.as_uri())
        yield opened
    assert errors == []


@pytest.mark.tools
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_the_script_moves_ranges_as_qlab_does(page, alpha):
    for i, (x, w) in enumerate(layers().values()):
        theirs = page.locator('[data-kind="smoothing"] .qfig-body').evaluate(
            "(e, [i, a]) => e.qlabRun(i, a)", [i, alpha]
        )
        s = smoothing_scales(x.abs().amax(0), w.abs().amax(0), alpha)
        # Ranges are embedded with four digits.
        assert theirs["x"] == pytest.approx((x.abs().amax(0) / s).tolist(), rel=2e-3)
        assert theirs["w"] == pytest.approx((w.abs().amax(0) * s).tolist(), rel=2e-3)


@pytest.mark.tools
def test_words_follow_the_sliders_and_keys(page):
    data = payload(smoothing(layers()))["layers"]
    figure = page.locator('figure[data-kind="smoothing"]')
    read, alpha = figure.locator("p[aria-live] strong"), figure.locator('input[aria-label="Alpha"]')
    assert read.nth(2).text_content() == f"{data[0]['errors']['a scale a token'][10]:.1f} dB"
    alpha.focus()
    page.keyboard.press("Home")
    assert alpha.get_attribute("aria-valuetext") == "0.00"
    assert read.nth(2).text_content() == f"{data[0]['errors']['a scale a token'][0]:.1f} dB"
    assert read.nth(1).text_content() == "1 times"  # the weights are even
    page.keyboard.press("End")
    assert read.nth(0).text_content() == "1 times"  # the activations are even
    figure.locator("select").select_option(label="without <them>")
    assert read.nth(3).text_content() == f"{data[1]['errors']['one scale'][20]:.1f} dB"

    data = payload(outlier_columns(layers(), thresholds=12))["layers"]
    figure = page.locator('figure[data-kind="outliercolumns"]')
    read = figure.locator("p[aria-live] strong")
    knob = figure.locator('input[aria-label="Threshold"]')
    assert knob.get_attribute("aria-valuetext") == "6"
    assert read.nth(0).text_content() == "2 of 40"
    knob.focus()
    page.keyboard.press("End")
    assert read.nth(0).text_content() == "0 of 40"
    assert read.nth(1).text_content() == f"{data[0]['errors'][-1]:.1f} dB"
    figure.locator("select").select_option(label="without <them>")
    knob = figure.locator('input[aria-label="Threshold"]')
    assert knob.get_attribute("aria-valuetext") == "6"
    knob.focus()
    page.keyboard.press("Home")
    assert read.nth(0).text_content() == f"{data[1]['columns'][0]} of 32"


@pytest.mark.tools
def test_nothing_is_missing_and_nothing_sticks_out(page):
    for body in page.locator(".qfig-body").all():
        text = body.inner_html()
        assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
    assert (
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        <= 1
    )
