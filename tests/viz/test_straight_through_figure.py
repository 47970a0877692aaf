"""The figure of the straight-through path: its walk, and its script in a browser."""

import numpy as np
import pytest
import torch

from qlab.errors import QlabError
from qlab.training import fake_quantize
from qlab.viz.straight_through import RATES, RULES, STARTS, STEPS, straight_through_path, walk
from tests.browser import chromium


@pytest.mark.parametrize("rule", RULES[:2])
@pytest.mark.parametrize("start", [-1.1, 0.3, 2.3, -2.5])
def test_the_walk_is_descent_by_fake_quantize(rule, start):
    w = torch.tensor([[start]], requires_grad=True)
    for ours, hat in walk(start, 0.62, 0.2, rule, 0.5, 3):
        assert w.item() == pytest.approx(ours, abs=1e-4)
        y = fake_quantize(w, "int3-tensor", torch.tensor([[0.5]]), clip=rule == RULES[1])
        assert y.item() == pytest.approx(hat)
        ((y - 0.62) ** 2 / 2).sum().backward()
        with torch.no_grad():
            w -= 0.2 * w.grad
        w.grad = None


def test_what_the_chapter_says_of_it():
    free, masked, true = (walk(2.3, 0.62, 0.2, rule, 0.5, 3) for rule in RULES)
    assert {w for w, _ in true} == {2.3} and {w for w, _ in masked} == {2.3}
    assert free[-1][0] < 1
    mean = np.mean([hat for _, hat in walk(-1.1, 0.62, 0.2, RULES[0], 0.5, 3)[-20:]])
    assert mean == pytest.approx(0.62, abs=0.06)  # between 0.5 and 1.0: a mean of 20 steps


def test_bad_input_is_refused():
    for bad in ({"target": float("nan")}, {"scale": 0.0}, {"top": 0}):
        with pytest.raises(QlabError, match="straight_through_path"):
            straight_through_path(**bad)


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 390, "height": 844})


@pytest.mark.tools
def test_the_script_walks_as_python_does(page):
    """And at both ends of every control, on a phone: finite numbers, nothing too wide."""
    wrong = []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.set_content(straight_through_path().markup)
    body = page.locator(".qfig-body")
    for start in (STARTS[0], -1.1, 0.3, STARTS[-1]):
        for lr in RATES:
            for i, rule in enumerate(RULES):
                theirs = body.evaluate("(e, a) => e.qlabWalk(...a)", [start, lr, i])
                ours = walk(start, 0.62, lr, rule, 0.5, 3)
                assert len(theirs) == STEPS + 1
                np.testing.assert_allclose(theirs, ours, atol=1e-9)
    for control in page.locator("input[type=range], select").all():
        assert control.get_attribute("aria-label")
        for key in ("End", "Home"):
            control.focus()
            page.keyboard.press(key)
            html = body.inner_html()
            assert "NaN" not in html and "undefined" not in html and "Infinity" not in html
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(wide) <= 1
    assert wrong == []
