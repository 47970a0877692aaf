"""The calculator of fine-tuning: its script counts what Python counts."""

from __future__ import annotations

import json
import re

import pytest

from qlab.training.lora_memory import WAYS, fine_tuning_memory, kept_numbers
from qlab.viz.fine_tuning import BASES, MODELS, PARTS, coefficients, fine_tuning_calculator
from tests.browser import chromium

HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def test_the_sizes_of_the_models():
    for name, billions in (
        ("SmolLM2-135M", 0.1345),
        ("Llama-3.2-1B", 1.236),
        ("Llama-3.2-3B", 3.213),
        ("Llama-3.1-8B", 8.030),
        ("Llama-3.1-70B", 70.55),
    ):
        shape = dict(MODELS)[name]
        assert (shape.linear + shape.rest) / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("name, shape", MODELS)
def test_the_coefficients(name, shape):
    c = coefficients(shape)
    assert c["layers"] * c["full"] == kept_numbers(shape, "full", 16)
    assert c["layers"] * (c["lora"] + 16 * c["maps"]) == kept_numbers(shape, "lora", 16)
    assert 16 * c["adapter"] == shape.adapters(16)


def test_the_fallback():
    markup = fine_tuning_calculator().markup
    assert "<table" in markup and len(markup) < 60_000
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', markup, re.S)[1])
    assert [m[0] for m in data["models"]] == [name for name, _ in MODELS]


def shown(gb):
    """A number as the script writes it: three digits."""
    return float(f"{gb:.3g}")


@pytest.mark.tools
def test_it_counts_as_python_does_by_keyboard_on_a_phone(tmp_path):
    path = tmp_path / "figure.html"
    path.write_text(f"{HEAD}<body>{fine_tuning_calculator().markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())

        def cells():
            rows = page.locator(".qfig-body tbody tr")
            return [
                [float(c) for c in rows.nth(k).locator("td").all_text_contents()]
                for k in range(len(PARTS))
            ]

        def expect(model, **options):
            shape, base = MODELS[model][1], options.pop("bits", BASES[0][1])
            found = cells()
            for i, way in enumerate(WAYS):
                memory = fine_tuning_memory(shape, way, bits=base, **options)
                for k, part in enumerate(PARTS):
                    # toPrecision and Python round a tie in their own ways.
                    assert found[k][i] == pytest.approx(
                        shown(getattr(memory, part) / 1e9), rel=6e-3, abs=1e-9
                    ), (way, part)

        expect(3, rank=16, tokens=2048)
        sliders = page.locator(".qfig-body input[type=range]")
        sliders.nth(0).focus()
        page.keyboard.press("ArrowRight")
        assert sliders.nth(0).get_attribute("aria-valuetext") == "32"
        sliders.nth(1).focus()
        page.keyboard.press("ArrowLeft")
        expect(3, rank=32, tokens=1024)
        selects = page.locator(".qfig-body select")
        selects.nth(0).select_option("4")
        selects.nth(1).select_option("1")
        selects.nth(2).select_option("3")
        expect(4, rank=32, tokens=1024, checkpointing=True, bits=2.25)
        assert "LLaMA-65B, rank 32, 1,024 tokens" in page.locator(".qfig-read").text_content()
        before = page.locator(".qfig-body rect").last.get_attribute("x")
        selects.nth(3).select_option("1")
        assert page.locator(".qfig-body rect").last.get_attribute("x") != before
        for option in range(len(MODELS)):
            selects.nth(0).select_option(str(option))
            assert "NaN" not in page.locator(".qfig-body").inner_html()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert errors == []
