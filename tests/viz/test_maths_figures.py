"""The figures of the chapter on the mathematics: their numbers, and their scripts in a browser."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab import viz
from qlab.core.noise import optimal_clip
from qlab.viz.clip_theory import BITS, curves
from qlab.viz.staircase import KINDS, ROUNDINGS, code_range, fitted, stair, worst
from tests.browser import chromium


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


# --- the staircase ------------------------------------------------------------------------------


@given(
    st.floats(-8, 8, width=32),
    st.sampled_from([0.1, 0.25, 0.4, 1.0]),
    st.integers(-16, 16),
    st.sampled_from(KINDS),
    st.integers(2, 5),
)
def test_a_stair_is_the_affine_map(x, scale, zero, kind, bits):
    qmin, qmax = code_range(kind, bits)
    back = stair(x, scale, zero, qmin, qmax)
    code = round(back / scale) + zero
    assert qmin <= code <= qmax
    assert back == pytest.approx((code - zero) * scale)
    low, high = (qmin - zero) * scale, (qmax - zero) * scale
    nearest = min(max(x, low), high)
    assert abs(back - nearest) <= scale / 2 * (1 + 1e-9)


@given(st.floats(-5, 0), st.floats(0, 5), st.sampled_from(KINDS), st.integers(2, 5))
def test_the_fitted_parameters_err_by_half_a_step_at_most(low, high, kind, bits):
    if high - low < 1e-3:
        return
    scale, zero = fitted(low, high, kind, bits)
    qmin, qmax = code_range(kind, bits)
    assert qmin <= zero <= qmax
    assert worst(low, high, scale, zero, qmin, qmax, "nearest") <= scale / 2 * (1 + 1e-9)


def test_the_zero_point_of_unsigned_codes_is_wrong_for_signed_ones():
    scale, zero = fitted(-0.65, 2.15, "unsigned", 3)
    assert worst(-0.65, 2.15, scale, zero, *code_range("unsigned", 3), "nearest") < scale
    assert worst(-0.65, 2.15, scale, zero, *code_range("signed", 3), "nearest") > 3 * scale


def test_the_staircase_refuses_what_it_cannot_draw():
    for low, high in ((0.5, 1.0), (0.0, 0.0), (-1.0, np.inf), (-1.0, -0.5)):
        with pytest.raises(qlab.QlabError, match="low <= 0 <= high"):
            viz.staircase(low, high)
    with pytest.raises(qlab.QlabError, match="2 to 5 bits"):
        viz.staircase(bits=8)


# --- clipping and theory ------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["gaussian", "laplacian"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_theory_and_measurement_agree_on_data_of_that_distribution(distribution, bits):
    """A million values in bins: 3% for their width and the few far ones."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(10**6) if distribution == "gaussian" else rng.laplace(size=10**6)
    clips = np.geomspace(0.8, 5, 12)
    c = curves(x, bits, clips)
    total = np.array(c["rounding"]) + np.array(c["clipping"])
    np.testing.assert_allclose(total, c[distribution], rtol=0.03)
    fine = np.geomspace(0.8, 8, 200)
    best = fine[int(np.argmin(curves(x, bits, fine)[distribution]))]
    unit = 1.0 if distribution == "gaussian" else 2**-0.5
    assert best == pytest.approx(optimal_clip(distribution, bits) * unit, rel=0.02)


def test_the_parts_are_the_error_of_the_quantizer():
    """Rounding and clipping add up to what qlab's own codes leave, to the width of a bin."""
    x = np.random.default_rng(1).standard_t(5, 200_000).astype(np.float32)
    rms = float(np.sqrt((x.astype(np.float64) ** 2).mean()))
    amax = float(np.abs(x).max())
    for bits in (3, 5):
        c = curves(x, bits, np.array([amax / rms]))
        measured = qlab.mse(x, qlab.quantize(x, f"int{bits}-tensor")) / rms**2
        # A value exactly at the end of the range may count as clipped by a rounding error.
        assert c["clipping"][0] < 1e-6
        assert c["rounding"][0] + c["clipping"][0] == pytest.approx(measured, rel=0.01)


def test_the_figure_carries_every_curve():
    x = np.random.default_rng(2).standard_normal(5000)
    data = payload(viz.clip_theory({"a": x, "b": x**3}))
    assert [t["name"] for t in data["tensors"]] == ["a", "b"] and data["bits"] == list(BITS)
    for t in data["tensors"]:
        # What lies beyond the drawing is counted but not drawn.
        assert 0.97 < sum(t["density"]) < 1 + 1e-2
        for c in t["curves"]:
            assert {len(v) for v in c.values()} == {len(t["clips"])}


@pytest.mark.parametrize("bad", [{}, {"a": [1.0]}, {"a": [1.0, -1.0]}, {"a": [0.0, np.nan]}])
def test_tensors_without_a_histogram_are_refused(bad):
    with pytest.raises(qlab.QlabError, match="clip_theory"):
        viz.clip_theory({k: np.array(v) for k, v in bad.items()})


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 390, "height": 844})


@pytest.mark.tools
def test_the_script_of_the_staircase_computes_what_python_computes(page):
    page.set_content(viz.staircase().markup)
    rng = np.random.default_rng(3)
    cases = [
        (float(x), float(s), int(z), *code_range(kind, bits), rounding)
        for bits in (2, 3, 5)
        for kind in KINDS
        for rounding in ROUNDINGS
        for x, s, z in zip(
            [*rng.uniform(-4, 4, 20), 0.5, 1.5, -0.5, -2.5, 0.0],
            [*rng.uniform(0.05, 1, 20), 1, 1, 1, 1, 1],
            [*rng.integers(-16, 16, 20), 0, 0, 0, 0, 3],
            strict=True,
        )
    ]
    theirs = page.locator(".qfig-body").evaluate("(e, c) => c.map(a => e.qlabStair(...a))", cases)
    assert theirs == pytest.approx([stair(*c) for c in cases], rel=1e-12, abs=1e-12)


@pytest.mark.tools
@pytest.mark.parametrize("name", ["staircase", "clip_theory"])
def test_every_setting_says_something(page, name):
    """At both ends of every control, on a phone: finite numbers, nothing too wide."""
    x = np.random.default_rng(4).standard_t(4, 4000)
    picture = viz.staircase() if name == "staircase" else viz.clip_theory({"a": x, "b": x + 0.5})
    errors = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.set_content(picture.markup)
    body = page.locator(".qfig-body")
    for control in page.locator("input[type=range], select").all():
        assert control.get_attribute("aria-label")
        for key in ("End", "Home"):
            control.focus()
            page.keyboard.press(key)
            html = body.inner_html()
            assert "NaN" not in html and "undefined" not in html and "Infinity" not in html
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(wide) <= 1
    assert errors == []
