"""The figure of rotated levels: its counts are those of qlab, and words follow the slider."""

import itertools
import json
import re

import pytest
import torch

import qlab
from qlab.methods.hadamard import hadamard
from qlab.viz.rotations import SIZES, far_tokens, rotated_levels
from tests.browser import chromium


def payload():
    markup = rotated_levels().markup
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])


def test_the_counts_are_qlabs():
    data = payload()
    assert data["codes"] == list(range(-7, 8)) and data["sizes"] == list(SIZES)
    for i in (0, 8, 16):
        x = far_tokens(SIZES[i])
        for key, tokens in (("before", x), ("after", x @ hadamard(256).float())):
            q = qlab.quantize(tokens, "int4-token")
            share = [(q.codes == c).double().mean().item() for c in data["codes"]]
            assert data["steps"][i][key] == pytest.approx(share, abs=1e-5)
    snr = [step["snr"] for step in data["steps"]]
    # As they are: the larger the outlier, the worse; all others are 0 in the end (0 dB).
    assert all(a[0] >= b[0] - 0.15 for a, b in itertools.pairwise(snr))
    assert abs(snr[-1][0]) < 0.3 and snr[8][1] > snr[8][0] + 6


def test_the_outlier_is_where_it_is_said_to_be():
    x = far_tokens(16.0)
    others = torch.cat([x[:, :37], x[:, 38:]], 1).abs().amax(1)
    torch.testing.assert_close(x[:, 37].abs(), 16 * others)


@pytest.mark.parametrize("bad", ["int8-token", "int4-asym-token", "int4-channel"])
def test_other_schemes_are_refused(bad):
    with pytest.raises(qlab.QlabError, match="rotated_levels"):
        rotated_levels(bad)
    with pytest.raises(qlab.QlabError, match="too few"):
        rotated_levels(features=32)


@pytest.mark.tools
def test_words_follow_the_slider(tmp_path):
    path = tmp_path / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{rotated_levels().markup}", encoding="utf-8")
    data, errors = payload(), []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        body, knob = page.locator(".qfig-body"), page.locator("input[type=range]")
        for key, i in (("Home", 0), ("End", len(SIZES) - 1)):
            knob.focus()
            page.keyboard.press(key)
            assert knob.get_attribute("aria-valuetext") == f"{SIZES[i]:g}"
            step, read = data["steps"][i], page.locator("p[aria-live] strong")
            used = [sum(v > 0.002 for v in step[k]) for k in ("before", "after")]
            assert read.all_text_contents() == [
                *map(str, used),
                *(f"{v:.1f} dB" for v in step["snr"]),
            ]
        text = body.inner_html()
        assert "NaN" not in text and "undefined" not in text and "Infinity" not in text
        assert (
            page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            <= 1
        )
    assert errors == []
