"""The figure of the ternary scale: its facts are qlab's, and words follow the slider."""

import json
import re

import numpy as np
import pytest
import torch

import qlab
from qlab.training.ternary import ternarize
from qlab.viz.ternary import EDGES, FACTORS, ternary_facts, ternary_scale
from tests.browser import chromium


def weight():
    return torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


def payload():
    markup = ternary_scale(weight()).markup
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])


def test_at_one_mean_magnitude_it_is_bitnet():
    w, data = weight(), payload()
    q, step = ternarize(w), data["steps"][FACTORS.index(1.0)]
    shares = [(q.codes == c).double().mean().item() for c in (-1, 0, 1)]
    assert step["shares"] == pytest.approx(shares, abs=1e-5)
    assert step["sqnr"] == pytest.approx(qlab.sqnr(w, q), abs=2e-3)
    assert sum(data["counts"]) == pytest.approx(1, abs=1e-4)
    assert len(data["counts"]) == len(EDGES) - 1


@pytest.mark.parametrize("factor", FACTORS)
def test_no_scale_beats_the_best_one(factor):
    w = weight().numpy().astype(np.float64)
    facts = ternary_facts(w, factor)
    gamma = factor * np.abs(w).mean()
    codes = np.clip(np.round(w / gamma), -1, 1)
    tries = [10 * np.log10((w**2).sum() / ((w - gamma * f * codes) ** 2).sum())
             for f in np.linspace(0.2, 8, 400)]  # fmt: skip
    assert max(tries) <= facts["best"] + 1e-3 and facts["sqnr"] <= facts["best"] + 1e-3
    assert 0 <= facts["entropy"] <= np.log2(3) + 1e-4


def test_what_it_cannot_show_is_refused():
    for bad in (torch.zeros(4), torch.tensor([float("nan")]), torch.zeros(0)):
        with pytest.raises(qlab.QlabError, match="all zero, or not finite"):
            ternary_scale(bad)


@pytest.mark.tools
def test_words_follow_the_slider(tmp_path):
    path = tmp_path / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{ternary_scale(weight()).markup}", encoding="utf-8")
    data, errors = payload(), []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        knob, read = page.locator("input[type=range]"), page.locator("p[aria-live] strong")
        for key, i in (("Home", 0), ("End", len(FACTORS) - 1)):
            knob.focus()
            page.keyboard.press(key)
            assert knob.get_attribute("aria-valuetext") == f"{FACTORS[i]:g}"
            words, step = read.all_text_contents(), data["steps"][i]
            assert words[1:] == [
                f"{100 * step['shares'][1]:.0f}%",
                f"{step['entropy']:.2f}",
                f"{step['sqnr']:.1f} dB",
                f"{step['best']:.1f} dB",
            ]
        text = page.locator(".qfig-body").inner_html()
        assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
        scroll = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(scroll) <= 1
    assert errors == []
