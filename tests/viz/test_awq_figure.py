"""The figure of AWQ's ratio: its numbers, and its script in a browser."""

import json
import re

import numpy as np
import pytest
import torch

import qlab
from qlab.methods.awq import awq_scales, scaled_rounding
from qlab.viz.awq import BINS, RATIOS, errors, scale_ratio
from tests.browser import chromium


def layer(seed=0):
    """A weight (24, 64) and inputs (50, 64), some features of which are far larger."""
    g = torch.Generator().manual_seed(seed)
    far = torch.exp(2 * torch.randn(64, generator=g))
    return torch.randn(24, 64, generator=g), torch.randn(50, 64, generator=g) * far


def test_the_parts_are_the_errors_of_the_columns():
    w, x = layer()
    parts, totals = errors(w, x, 3, 32)
    assert parts.shape == (20, BINS) and totals.shape == (20,)
    mean_abs = x.abs().mean(0)
    for k in (0, 7, 19):
        delta = scaled_rounding(w, awq_scales(mean_abs, RATIOS[k]), "int3-asym-g32") - w
        alone = [float((x[:, j, None] * delta[:, j]).square().mean()) for j in range(64)]
        alone = np.array(alone)[mean_abs.argsort(descending=True).numpy()]
        np.testing.assert_allclose(parts[k], alone.reshape(BINS, 2).sum(1), rtol=1e-4)
        assert totals[k] == pytest.approx(float((x @ delta.T).square().mean()), rel=1e-4)
    assert parts[0].sum() > 0 and totals.min() < totals[0]
    # Moving the ratio helps the largest inputs and costs the smallest ones.
    assert (
        parts[10, 0] < 0.5 * parts[0, 0]
        and parts[10, BINS // 2 :].sum() > parts[0, BINS // 2 :].sum()
    )


def test_bad_input_is_refused():
    w, x = layer()
    for weight, inputs in ((w, x[:, :5]), (w[:, :8], x[:, :8]), (w[0], x)):
        with pytest.raises(qlab.QlabError, match="scale_ratio"):
            scale_ratio(weight, inputs)
    for inputs in (x * 0, x / 0):
        with pytest.raises(qlab.QlabError, match="not all zero"):
            scale_ratio(w, inputs, 32)


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 390, "height": 844})


@pytest.mark.tools
def test_the_script_computes_what_python_computes_and_says_it(page):
    """And at both ends of every control, on a phone: finite numbers, nothing too wide."""
    w, x = layer()
    picture = scale_ratio(w, x, 32, "a layer")
    wrong = []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.set_content(picture.markup)
    body = page.locator(".qfig-body")
    for run, bits in enumerate((4, 3, 2)):
        parts, totals = errors(w, x, bits, 32)
        for k, top in ((0, 1), (7, 4), (19, BINS)):
            theirs = body.evaluate("(e, a) => e.qlabState(...a)", [run, k, top])
            # The embedded numbers have four digits.
            assert theirs["total"] == pytest.approx(totals[k] / totals[0], rel=3e-3)
            assert theirs["important"] == pytest.approx(
                parts[k, :top].sum() / parts[0, :top].sum(), rel=3e-3
            )
            assert theirs["share"] == pytest.approx(parts[0, :top].sum() / parts[0].sum(), rel=3e-3)
    for control in page.locator("input[type=range], select").all():
        assert control.get_attribute("aria-label")
        for key in ("End", "Home"):
            control.focus()
            page.keyboard.press(key)
            html = body.inner_html()
            assert "NaN" not in html and "undefined" not in html and "Infinity" not in html
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(wide) <= 1
    page.locator("input[type=range]").first.focus()
    page.keyboard.press("Home")
    assert "Ratio 0.00: output error +0%" in page.locator(".qfig-read").first.inner_text()
    assert wrong == []


def test_without_a_script_there_is_a_table():
    markup = scale_ratio(*layer(), 32).markup
    assert "<table>" in markup and "best ratio" in markup
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])
    assert [run["bits"] for run in data["runs"]] == [4, 3, 2] and len(data["ratios"]) == 20
