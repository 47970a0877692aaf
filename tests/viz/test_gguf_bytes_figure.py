"""The figure of a block's bytes: its layout against the decoders, and its script in a browser."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.gguf import block_type, dequantize, quantize
from qlab.gguf.blocks._iq4 import LEVELS
from qlab.viz.gguf_bytes import TYPES, codes_of, formulas, gguf_bytes, layout
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def weights(seed=0):
    return (np.random.default_rng(seed).standard_normal(256) * 0.05).astype(np.float32)


def payload(picture):
    text = re.search(r'<script type="application/json">(.*?)</script>', picture.markup, re.S)[1]
    return json.loads(text)


@pytest.mark.parametrize("name", TYPES)
def test_pieces_cover_each_bit_once(name):
    bytes_of_block = layout(name)
    assert len(bytes_of_block) == block_type(name).block_bytes
    for pieces in bytes_of_block:
        at = 0
        for p in pieces:
            assert p.low == at and p.kind in ("code", "scale", "minimum")
            assert 0 <= p.start < p.start + p.count <= block_type(name).block_size
            at += p.bits
        assert at == 8
    # And the codes of all weights are there, with equally many bits each.
    bits = np.zeros(block_type(name).block_size, int)
    for p in (p for pieces in bytes_of_block for p in pieces if p.kind == "code"):
        bits[p.start] += p.bits
    assert set(bits) == {{"Q8_0": 8, "Q6_K": 6}.get(name, 4)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(TYPES))
def test_flipped_bits_change_the_weights_that_the_layout_names_and_no_other(seed, name):
    """The decoder decides, not the drawing."""
    rng = np.random.default_rng(seed)
    kind = block_type(name)
    block = quantize(weights(seed), name)[: kind.block_bytes]
    before = dequantize(block, name)
    pieces = [(i, p) for i, piece in enumerate(layout(name)) for p in piece]
    flipped = np.tile(block, (len(pieces), 1))
    for row, (i, p) in zip(flipped, pieces, strict=True):
        row[i] ^= rng.integers(1, 1 << p.bits) << p.low
    # By their bits: a flipped exponent can make NaN.
    changed = dequantize(flipped, name).view(np.uint32) != before.view(np.uint32)
    for row, (_, p) in zip(changed, pieces, strict=True):
        inside = row[p.start : p.start + p.count]
        assert row.sum() == inside.sum(), p
        # Zero times another scale is still zero; a code changes its one weight.
        if p.kind == "code":
            scale_is_zero = not before[p.start : p.start + 1].any() and name in ("Q4_0", "Q6_K")
            assert inside.all() or scale_is_zero, p


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(TYPES))
def test_a_formula_gives_the_weight(seed, name):
    x = weights(seed)
    data = quantize(x, name)
    decoded, codes, found = dequantize(data, name), codes_of(data, name), formulas(data, name)
    run = 256 // len(found)
    assert run * len(found) == 256
    for i in range(0, 256, 5):
        text = found[i // run].replace("{q}", str(codes[i]))
        if name == "IQ4_NL":
            text = text.replace("{level}", f"({LEVELS[codes[i]]:.0f})")
        value = eval(text.replace("·", "*").replace("−", "-"))  # of numbers and + - * ( )
        # Scales are shown with five digits; the two terms of Q4_1 and Q4_K may nearly cancel.
        assert value == pytest.approx(decoded[i], rel=1e-3, abs=5e-4 * float(np.abs(x).max()))


def test_what_the_script_is_given():
    x = weights(3)
    data = payload(gguf_bytes(x, "weights of a test"))
    assert [t["name"] for t in data["types"]] == list(TYPES)
    for t in data["types"]:
        raw = quantize(x, t["name"])
        assert t["bytes"] == raw.tolist() and t["codes"] == codes_of(raw, t["name"]).tolist()
        np.testing.assert_allclose(t["decoded"], dequantize(raw, t["name"]), rtol=1e-4)
        assert t["sqnr"] == pytest.approx(qlab.sqnr(x, dequantize(raw, t["name"])), abs=1e-3)
        assert 8 * len(t["bytes"]) / 256 == t["bits"]
    assert "<table" in gguf_bytes(x).markup and len(gguf_bytes(x).markup) < 150_000


def test_bad_input_is_refused():
    for bad in (weights()[:-1], np.zeros(256), np.full(256, np.nan)):
        with pytest.raises(qlab.QlabError, match="256 finite weights"):
            gguf_bytes(bad)
    with pytest.raises(qlab.QlabError, match="no layout of 'Q2_K'"):
        layout("Q2_K")


@pytest.mark.tools
def test_it_works_by_keyboard_on_a_phone(tmp_path):
    picture, path, errors = gguf_bytes(weights()), tmp_path / "figure.html", []
    types = payload(picture)["types"]
    path.write_text(f"{HEAD}<body>{picture.markup}", encoding="utf-8")
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        read, buttons = page.locator(".qfig-read"), page.locator(".qbytes-block button")
        slider = page.locator("input[type=range]")
        for k, t in enumerate(types):
            page.locator(".qfig-body select").first.select_option(str(k))
            assert buttons.count() == len(t["bytes"])
            buttons.nth(0).focus()
            page.keyboard.press("ArrowRight")
            shown = read.text_content()
            assert f"byte 1 of {t['blockBytes']}" in shown and f"{t['bytes'][1]:02X}" in shown
            page.keyboard.press("End")
            last = len(t["bytes"]) - 1
            assert buttons.nth(last).get_attribute("aria-pressed") == "true"
            page.keyboard.press("ArrowDown")  # and no farther
            assert buttons.nth(last).get_attribute("tabindex") == "0"
            page.keyboard.press("Home")
            assert page.locator("svg .framed").count() >= 1
            slider.focus()
            page.keyboard.press("ArrowRight")
            assert slider.get_attribute("aria-valuetext") == "no. 1"
            assert "Weight 1 was" in read.text_content() and t["name"] in read.text_content()
            # A weight needs its scale beside its code.
            assert page.locator(".qbytes-block button.linked").count() >= 3
            assert page.locator("svg .framed").count() == 1
            assert "NaN" not in page.locator(".qfig-body").inner_html()
            assert "undefined" not in page.locator(".qfig-body").inner_html()
        page.locator(".qfig-body select").nth(1).select_option("1")
        page.locator(".qfig-body svg").click(position={"x": 3, "y": 3})
        assert "Weight 0 was" in read.text_content()
        assert all(b.get_attribute("aria-label") for b in buttons.all())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert errors == []
