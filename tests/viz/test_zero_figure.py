"""The calculator of ZeRO: its script counts what Python counts."""

from __future__ import annotations

import pytest

from qlab.training.zero import zero_memory
from qlab.viz.zero import MODELS, PRECISIONS, STAGES, zero_calculator
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
PARTS = ("weights", "gradients", "optimizer", "host")


def test_the_fallback():
    markup = zero_calculator().markup
    assert "<table" in markup and len(markup) < 60_000
    assert "120.0 GB" in markup and "1.9 GB" in markup  # figure 1 of the paper


@pytest.mark.tools
def test_it_counts_as_python_does_by_keyboard_on_a_phone(tmp_path):
    path = tmp_path / "figure.html"
    path.write_text(f"{HEAD}<body>{zero_calculator().markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())

        def expect(model, workers, offload="none", precision=0):
            rows = page.locator(".qfig-body tbody tr")
            found = [rows.nth(k).locator("td").all_text_contents() for k in range(len(PARTS))]
            for stage in range(len(STAGES)):
                # A stage takes of the offload what it allows.
                word = offload
                if stage < 3 and word == "optimizer and weights":
                    word = "optimizer"
                word = word if stage else "none"
                held = zero_memory(
                    MODELS[model][1] * 1e9, workers, stage, word, PRECISIONS[precision][1]
                )
                for k, part in enumerate(PARTS):
                    shown = float(f"{getattr(held, part) / 1e9:.3g}")
                    # toPrecision and Python round a tie in their own ways.
                    assert float(found[k][stage]) == pytest.approx(shown, rel=6e-3, abs=1e-9)

        expect(5, 8)
        sliders, selects = (
            page.locator(f".qfig-body {w}") for w in ("input[type=range]", "select")
        )
        sliders.nth(0).focus()
        page.keyboard.press("ArrowRight")
        assert sliders.nth(0).get_attribute("aria-valuetext") == "16"
        expect(5, 16)
        selects.nth(2).select_option("1")
        expect(5, 16, "optimizer")
        selects.nth(2).select_option("2")
        expect(5, 16, "optimizer and weights")
        selects.nth(3).select_option("1")
        selects.nth(0).select_option("0")
        expect(0, 16, "optimizer and weights", 1)
        selects.nth(1).select_option("0")
        assert "no stage: each worker holds" in page.locator(".qfig-read").text_content()
        assert "too small" in page.locator(".qfig-read").text_content()
        sliders.nth(0).focus()
        page.keyboard.press("Home")
        for option in range(len(MODELS)):
            selects.nth(0).select_option(str(option))
            assert "NaN" not in page.locator(".qfig-body").inner_html()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert errors == []
