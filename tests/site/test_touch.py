"""What a reader can touch: figures, buttons, folded solutions, the search."""

from __future__ import annotations

import json

import pytest

from tools.chapters import notebooks, project_urls

from .conftest import built_pages

PAGES = built_pages()


@pytest.mark.parametrize("width", ["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_every_control_of_every_figure_does_something(visit, name, width):
    visited = visit(name, "dark", width)
    page = visited.page
    figures = page.locator("figure.qfig")
    for i in range(figures.count()):
        figure = figures.nth(i)
        assert figure.get_attribute("data-ready") == "yes", "the figure's script did not finish"
        assert figure.get_attribute("aria-label")
        for kind in ("input[type=range]", "select"):
            controls = figure.locator(kind)
            for j in range(controls.count()):
                control = controls.nth(j)
                assert control.get_attribute("aria-label")
                before = figure.locator(".qfig-body").inner_html()
                value = control.input_value()
                control.focus()
                for key in ("End", "Home"):
                    page.keyboard.press(key)
                    if control.input_value() != value:
                        break
                assert control.input_value() != value, "the keyboard does not move it"
                after = figure.locator(".qfig-body").inner_html()
                assert after != before, "moving it changes nothing"
                assert "NaN" not in after and "undefined" not in after
    assert visited.errors == []
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 1, "a moved figure is wider than the page"


@pytest.mark.parametrize("name", [p.stem for p in notebooks()])
def test_a_figure_says_something_without_scripts(html, name):
    text = (html / "book" / f"{name}.html").read_text(encoding="utf-8")
    for part in text.split('<figure class="qfig"')[1:]:
        body = part.split('<div class="qfig-body">', 1)[1].split("</div>", 1)[0]
        assert "<table" in body or "<p" in body


def test_some_chapters_have_figures_to_touch(html):
    for name in ("why-quantize", "meet-the-storyteller", "case-study"):
        text = (html / "book" / f"{name}.html").read_text(encoding="utf-8")
        assert '<figure class="qfig"' in text, name


def test_the_theme_button_goes_through_its_modes(visit):
    page = visit("book/preface.html").page
    seen = set()
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        seen.add(page.evaluate("document.documentElement.dataset.mode"))
    assert seen == {"light", "dark", "auto"}


@pytest.mark.parametrize("name", [p.stem for p in notebooks()])
def test_colab_and_download_lead_to_the_notebook(visit, name, html):
    page = visit(f"book/{name}.html").page
    hrefs = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
    repository = project_urls()["Repository"].removeprefix("https://github.com/")
    colab = (
        f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb"
    )
    assert colab in hrefs
    local = [h for h in hrefs if h.endswith(f"_notebooks/{name}.ipynb")]
    assert local, "no button downloads the notebook"
    downloaded = json.loads((html / "_notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert downloaded["nbformat"] == 4 and downloaded["cells"]


@pytest.mark.parametrize("name", [p.stem for p in notebooks()])
def test_solutions_are_folded_and_open(visit, name):
    page = visit(f"book/{name}.html").page
    solutions = page.locator("div.solution.dropdown, div.solution.toggle, .solution .toggle")
    if solutions.count() == 0:
        assert "solution-start" not in (
            next(p for p in notebooks() if p.stem == name).read_text(encoding="utf-8")
        )
        return
    first = page.locator("div.solution").first
    hidden = first.locator(".section, section, p, pre").last
    assert not hidden.is_visible()
    first.locator("button.toggle-button, summary, .admonition-title").first.click()
    hidden.wait_for(state="visible", timeout=3_000)


def test_the_figure_computes_what_python_computes(visit):
    """The clipping figure's script and its Python twin give the same error at every setting."""
    from qlab.viz.clipping import error_parts

    page = visit("book/meet-the-storyteller.html").page
    figure = page.locator('figure.qfig[data-kind="clipping"]').first
    data = json.loads(figure.locator('script[type="application/json"]').text_content())
    import numpy as np

    for bits in (2, 4, 8):
        for share in (0.1, 0.5, 1.0):
            clip = share * data["amax"]
            theirs = figure.locator(".qfig-body").evaluate(
                "(e, [clip, bits]) => e.qlabParts(clip, bits)", [clip, bits]
            )
            ours = error_parts(np.array(data["counts"]), data["amax"], clip, bits)
            assert theirs == pytest.approx(ours, rel=1e-9, abs=1e-15)
