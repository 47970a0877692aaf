"""The bit flipper and the ruler: their scripts compute what qlab computes, and they can be used.

Each figure is written to a page of its own and opened in Chromium, without the book.
"""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

import qlab
from qlab import viz
from qlab.core import get_format
from qlab.viz import bits
from qlab.viz.ruler import LABELS as ON_THE_RULER
from tests.browser import chromium

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def open_figure(browser, tmp_path):
    """``open_figure(picture)`` -> its page; errors of its script fail the test."""
    errors, pages = [], []

    def go(picture, width=800):
        path = tmp_path / f"{len(pages)}.html"
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        path.write_text(f"<!doctype html>{head}<body>{picture.markup}", encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(path.as_uri())
        assert page.locator("figure.qfig").get_attribute("data-ready") == "yes"
        return page

    yield go
    for page in pages:
        page.close()
    assert errors == []


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


def floats(values):
    """Numbers of a script, where JSON has no NaN: it sends strings."""
    return np.array([float(v) for v in values], np.float32)


TEXT = "v => Object.is(v, -0) ? '-0' : String(v).replace('Infinity', 'inf')"


def their_decode(page, index, codes):
    body = page.locator(".qfig-body")
    return floats(
        body.evaluate(
            f"(e, [i, codes]) => codes.map(c => e.qlabBits.decode(i, c)).map({TEXT})",
            [index, codes],
        )
    )


def their_encode(page, index, values):
    body = page.locator(".qfig-body")
    return body.evaluate(
        "(e, [i, values]) => values.map(v => e.qlabBits.encode(i, Number(v)))",
        [index, [str(float(v)).replace("inf", "Infinity") for v in values]],
    )


def stored(name, codes):
    """qlab's codes as bit patterns."""
    fmt = get_format(name)
    return [int(c) & ((1 << fmt.bits) - 1) for c in np.asarray(codes).tolist()]


def our_decode(name, patterns):
    fmt = get_format(name)
    if not hasattr(fmt, "exponent_bits"):
        top = 1 << fmt.bits
        return np.array([p - top if fmt.signed and p >= top // 2 else p for p in patterns], float)
    dtype = np.uint8 if fmt.bits <= 8 else np.uint16 if fmt.bits <= 16 else np.uint32
    return np.asarray(fmt.decode(np.array(patterns, dtype)))


def some_patterns(name):
    """All patterns of a narrow format; of a wide one the special ones and 5,000 random ones."""
    fmt = get_format(name)
    if fmt.bits <= 8:
        return list(range(1 << fmt.bits))
    m, ones = fmt.mantissa_bits, (1 << (fmt.bits - 1)) - 1
    edges = [0, 1, 2, (1 << m) - 1, 1 << m, (1 << m) + 1, fmt.max_code - 1, fmt.max_code]
    edges += [fmt.max_code + 1, fmt.max_code + 2, ones]
    edges += [c | 1 << (fmt.bits - 1) for c in edges]
    return edges + np.random.default_rng(0).integers(0, 1 << fmt.bits, 5000).tolist()


def same(theirs, ours):
    """Equal with the sign of zero, NaN equal to NaN."""
    number = ~np.isnan(ours)
    return (
        np.array_equal(theirs, ours, equal_nan=True)
        and (np.signbit(theirs) == np.signbit(ours))[number].all()
    )


def test_the_flipper_decodes_as_qlab_does(open_figure):
    page = open_figure(viz.bit_flipper())
    for i, name in enumerate(bits.LABELS):
        patterns = some_patterns(name)
        assert same(their_decode(page, i, patterns), our_decode(name, patterns)), name


def test_the_flipper_encodes_as_qlab_does(open_figure):
    page = open_figure(viz.bit_flipper())
    rng = np.random.default_rng(1)
    for i, name in enumerate(bits.LABELS):
        fmt = get_format(name)
        values = our_decode(name, some_patterns(name))
        finite = np.unique(values[np.isfinite(values)])
        ties = finite[1:] / 2 + finite[:-1] / 2
        high, low = np.log2(np.abs(finite).max()), np.log2(finite[finite > 0].min())
        # Between the smallest and twice the largest value, and far outside.
        wild = rng.normal(size=2000) * np.exp2(rng.uniform(low - 3, high + 1, 2000))
        edges = [0.0, -0.0, 1e-45, 3.4e38, -3.4e38, np.inf, -np.inf]
        with np.errstate(over="ignore"):
            x = np.concatenate([finite, ties, wild, edges]).astype(np.float32)
        if fmt.bits > 16:  # float32 has no ties of fp32; those of tf32 are exact
            x = x[np.isfinite(x)]
        ours = stored(name, fmt.encode(x))
        theirs = their_encode(page, i, x)
        assert theirs == ours, (
            name,
            [t for t in zip(x, theirs, ours, strict=True) if t[1] != t[2]][:5],
        )


def test_neighbours_are_the_next_levels(open_figure):
    page = open_figure(viz.bit_flipper())
    for i, name in enumerate(bits.LABELS):
        if get_format(name).bits > 8:
            continue
        patterns = some_patterns(name)
        pairs = page.locator(".qfig-body").evaluate(
            "(e, [i, codes]) => codes.map(c => e.qlabBits.neighbours(i, c))", [i, patterns]
        )
        levels = sorted({float(v) + 0.0 for v in our_decode(name, patterns) if math.isfinite(v)})
        # Python reads a whole number of a script as an int; 2^55 printed shortest is another one.
        pairs = [[None if v is None else float(v) for v in pair] for pair in pairs]
        for value, (below, above) in zip(our_decode(name, patterns), pairs, strict=True):
            if not math.isfinite(value):
                assert below is None and above is None
                continue
            k = levels.index(float(value))
            assert below == (levels[k - 1] if k else None), (name, value)
            assert above == (levels[k + 1] if k + 1 < len(levels) else None), (name, value)


def test_bits_are_flipped_by_mouse_and_by_keyboard(open_figure):
    page = open_figure(viz.bit_flipper("fp8_e4m3", 0b01001101))
    body, bit = page.locator(".qfig-body"), page.locator(".qbits button")
    assert bit.count() == 8 and "6.5" in body.inner_text()
    pressed = [b.get_attribute("aria-pressed") for b in bit.all()]
    assert pressed == ["false", "true", "false", "false", "true", "true", "false", "true"]
    bit.nth(0).click()
    assert "−6.5" in body.inner_text() and bit.nth(0).get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")  # to the highest bit of the exponent, worth 8
    page.keyboard.press("Space")
    assert body.inner_text().count("−0.02539") >= 1  # -2^(1-7) * 1.625
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert "0.0234375" in body.inner_text()  # -2^(1-7) * 1.5
    assert all(b.get_attribute("aria-label") for b in bit.all())


def test_a_typed_number_becomes_the_nearest(open_figure):
    page = open_figure(viz.bit_flipper("fp8_e4m3"))
    typed, body = page.get_by_label("Number to encode"), page.locator(".qfig-body")
    typed.fill("1.95")
    assert "the nearest value is 2," in body.inner_text()
    typed.fill("1000")
    assert "448" in body.inner_text() and "out of range" in body.inner_text()
    typed.fill("nonsense")
    assert typed.get_attribute("aria-invalid") == "true" and "448" in body.inner_text()
    page.locator("select").select_option(label="fp16 (float16)")
    typed.fill("2049")
    assert "the nearest value is 2048," in body.inner_text()
    typed.fill("1e6")
    assert "infinity" in body.inner_text()
    for name in bits.LABELS.values():
        page.locator("select").select_option(label=name)
        for number in ("1e6", "-0.3", "0", "-1e-42", "Infinity"):
            typed.fill(number)
            assert "undefined" not in body.inner_html() and "null" not in body.inner_html()
            assert "NaN" not in page.locator("svg").inner_html()


def test_the_ruler_finds_the_nearest_level(open_figure):
    picture = viz.ruler()
    page, names = open_figure(picture), list(ON_THE_RULER)
    rng = np.random.default_rng(2)
    for i, name in enumerate(names):
        fmt = get_format(name)
        x = rng.normal(size=300) * np.exp2(rng.uniform(-12, 12, 300))
        x = np.concatenate([x, [0.0, fmt.max, fmt.min, min(2 * fmt.max, 3e38)]]).astype(np.float32)
        found = page.locator(".qfig-body").evaluate(
            "(e, [i, xs]) => xs.map(x => e.qlabNearest(i, x))", [i, x.tolist()]
        )
        inside = np.clip(x, fmt.min, fmt.max)
        if not hasattr(fmt, "exponent_bits") or name == "e8m0":
            levels = np.array(fmt.levels())
            least = np.abs(levels[:, None] - inside.astype(np.float64)).min(0)
        else:
            least = np.abs(fmt.decode(fmt.encode(inside)).astype(np.float64) - inside)
        theirs = np.array([f["value"] for f in found])
        # No level is nearer; at a tie either will do. Levels are exact in float64.
        np.testing.assert_allclose(np.abs(theirs - inside), least, rtol=1e-9, atol=0, err_msg=name)
        for f in found:
            assert f["step"] == pytest.approx(fmt.step(f["value"]), rel=1e-9), (name, f)


@pytest.mark.parametrize("width", [390, 1000])
def test_the_ruler_can_be_set(open_figure, width):
    page = open_figure(viz.ruler(["fp8_e4m3"]), width)
    body = page.locator(".qfig-body")
    drawn = "[...e.querySelectorAll('svg path')].map(p => p.getAttribute('d'))"
    ticks = f"e => {drawn}.map(d => d.split('M').length - 1)"
    assert body.evaluate(ticks) == [253]  # 254 finite patterns, zero twice
    buttons = page.locator(".qruler button")
    for i in range(buttons.count()):
        if buttons.nth(i).get_attribute("aria-pressed") == "false":
            buttons.nth(i).click()
    assert body.locator("tbody tr").count() == len(ON_THE_RULER)
    for axis in ("linear", "logarithmic"):
        page.locator("select[aria-label=Axis]").select_option(label=axis)
        for scale in ("own values", "largest value at 1"):
            page.locator("select[aria-label=Scale]").select_option(label=scale)
            for key in ("End", "Home"):
                page.locator("input[aria-label^=Zoom]").focus()
                page.keyboard.press(key)
                for end in ("Home", "End"):
                    page.locator("input[aria-label^=Read]").focus()
                    page.keyboard.press(end)
                    shown = body.inner_html()
                    assert (
                        "NaN" not in shown and "undefined" not in shown and "Infinity" not in shown
                    )
    before = body.inner_text()
    page.locator("svg").hover(position={"x": 150, "y": 60})
    assert body.inner_text() != before
    for i in range(buttons.count()):  # the last one cannot be taken away
        if buttons.nth(i).get_attribute("aria-pressed") == "true":
            buttons.nth(i).click()
    assert body.locator("tbody tr").count() == 1
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 1


def test_bad_settings_are_refused():
    with pytest.raises(qlab.QlabError, match="no format 'fp9'"):
        viz.bit_flipper("fp9")
    with pytest.raises(qlab.QlabError, match="256 is no pattern of int8"):
        viz.bit_flipper("int8", 256)
    with pytest.raises(qlab.QlabError, match="no format 'fp9'"):
        viz.ruler(["int8", "fp9"])
    with pytest.raises(qlab.QlabError, match="nothing to show"):
        viz.ruler([])
    with pytest.raises(qlab.QlabError, match="linear or log"):
        viz.ruler(axis="cubic")


def test_the_figures_say_something_without_scripts():
    for picture in (viz.bit_flipper(), viz.ruler()):
        assert "<table" in picture.markup.split('<div class="qfig-body">')[1].split("</div>")[0]
        assert payload(picture)["formats"]
