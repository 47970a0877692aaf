"""The figures of the chapter on families: advice that can be followed, errors that are right."""

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
from qlab import viz
from qlab.core import Scheme
from qlab.viz.calibration import BINS, Calibrated, calibration_ranges, error_parts
from qlab.viz.decision import PAGES, QUESTIONS, decide
from tools.chapters import ROOT

GIVEN = list(itertools.product(*[[w for w, _ in a] for _, a in QUESTIONS.values()]))


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


@pytest.mark.parametrize("answers", GIVEN, ids="/".join)
def test_every_advice_can_be_followed(answers):
    advice = decide(*answers)
    names = {"qlab": qlab, "texts": [torch.randn(1, 5, 128)]}
    names["model"] = torch.nn.Sequential(torch.nn.Linear(128, 64))
    small, report = eval(
        f"qlab.quantize_model(model, 'rtn', {advice.call})", names
    )  # as a reader would
    assert small[0](names["texts"][0]).shape == (1, 5, 64)
    bits = {"8": 8, "4": 4, "3": 3}[answers[3]]
    assert Scheme.parse(report.scheme).format.bits == bits
    assert ("activations" in advice.call) == ("activations" in advice.family)
    assert ("calibration" in advice.call) == ("static" in advice.family)
    assert all(subject in PAGES for subject in advice.read)


def test_the_pages_of_the_map_exist():
    for subject, page in PAGES.items():
        assert page is None or (ROOT / "book" / f"{page}.md").is_file(), subject


def test_a_chip_of_integers_gets_integers():
    for answers in GIVEN:
        advice = decide(*answers)
        if answers[0] == "integer":
            assert "static" in advice.family and "-g" not in advice.call
        if answers[1] == "one" and answers[0] != "integer":
            assert "weights only" in advice.family


def test_the_figure_holds_an_answer_to_everything():
    advice = payload(viz.decision_map())
    text = json.dumps(advice)
    for answers in GIVEN:
        assert "/".join(answers) in text
        assert decide(*answers).family in text


def test_a_word_that_is_no_answer():
    with pytest.raises(qlab.QlabError, match="batch 'two': choose one of one, many"):
        decide("cpu", "two", "none", "8")


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(2, 8),
    low=st.floats(-4, -0.01),
    high=st.floats(0.01, 4),
)
def test_the_error_is_that_of_the_scheme(seed, bits, low, high):
    """Against qlab's own asymmetric quantization with parameters of the same range."""
    from qlab.core.affine import affine_dequantize, affine_params, affine_quantize
    from qlab.core.formats import get_format

    x = np.random.default_rng(seed).standard_normal(400)
    fmt = get_format(f"int{bits}")
    ends = (np.array([low], np.float32), np.array([high], np.float32))
    scale, zero = affine_params(*ends, fmt, symmetric=False)
    codes = affine_quantize(x.astype(np.float32), scale, zero, fmt, symmetric=False)
    truth = ((x - affine_dequantize(codes, scale, zero)) ** 2).mean()
    parts = error_parts(x, float(ends[0][0]), float(ends[1][0]), bits)
    # A value within float32's rounding of a half goes to the neighbor, which is as far away.
    assert sum(parts) == pytest.approx(float(truth), rel=1e-4, abs=1e-9)
    wide = error_parts(x, float(x.min()) - 1, float(x.max()) + 1, bits)
    assert wide[1] == 0


def test_the_figure_of_ranges_holds_every_setting():
    x = np.random.default_rng(0).standard_normal(3000)
    made = [
        Calibrated(source, p, bits, -p / 40, p / 50, 10 + p / bits)
        for source in ("a", "b")
        for p in (99.0, 100.0)
        for bits in (8, 6)
    ]
    data = payload(calibration_ranges(x, made, 9.5, "layer"))
    assert sum(data["counts"]) == 3000 and len(data["counts"]) == BINS
    assert len(data["grid"]) == 8
    at = {(g["low"], g["perplexity"]): g for g in data["grid"]}
    for s in made:
        found = at[s.low, s.perplexity]
        assert found["clipped"] == pytest.approx(((x < s.low) | (x > s.high)).mean())
        assert (found["rounding"], found["clipping"]) == error_parts(x, s.low, s.high, s.bits)
    with pytest.raises(qlab.QlabError, match="no setting for b, 6 bits"):
        calibration_ranges(x, made[:-1], 9.5, "layer")
    with pytest.raises(qlab.QlabError, match="two different finite values"):
        calibration_ranges(np.ones(5), made, 9.5, "layer")
