"""The figure of pruning: its script takes the same weights away as the library does."""

from __future__ import annotations

import json
import re

import pytest
import torch

import qlab
from qlab.compress.masks import Target
from qlab.viz.pruning import WAYS, _Stats, prune_small, pruning
from tests.browser import chromium


def small(rows=8, columns=16):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, columns, generator=g) * (0.1 + 4 * torch.rand(columns, generator=g) ** 3)
    x += torch.randn(200, 1, generator=g)
    return torch.randn(rows, columns, generator=g), x.T @ x / 100


def payload():
    found = re.search(r"application/json\">(.*?)</script>", pruning(*small()).markup, re.S)
    return json.loads(found[1])


def expected(way, pattern, share):
    """What the library does with the numbers that are in the page."""
    data = payload()
    w, h = (torch.tensor(data[k], dtype=torch.float32) for k in ("weight", "hessian"))
    target = Target.parse(pattern="2:4") if pattern else Target(share)
    pruned, error = prune_small(w, _Stats(h), WAYS[way], target)
    return int((pruned == 0).sum()), error


def test_letting_others_pay_costs_least():
    for share in (0.3, 0.5, 0.7):
        errors = [expected(way, 0, share)[1] for way in range(3)]
        assert errors[2] < 0.8 * min(errors[:2]), (share, errors)


def test_without_a_script_the_errors_are_in_a_table():
    markup = pruning(*small()).markup
    assert f"<td>{expected(1, 1, 0)[1]:.2%}</td>" in markup and "<td>2:4</td>" in markup


def test_it_refuses_what_it_cannot_show():
    w, h = small()
    for weight, hessian in (
        (torch.ones(13, 8), torch.eye(8)), (torch.ones(2, 28), torch.eye(28)),
        (torch.ones(2, 6), torch.eye(6)), (w * float("nan"), h), (w * 0, h), (w, torch.eye(7)),
    ):  # fmt: skip
        with pytest.raises(qlab.QlabError, match="pruning"):
            pruning(weight, hessian)


@pytest.mark.tools
def test_the_script_prunes_as_the_library_does(tmp_path):
    path = tmp_path / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{pruning(*small()).markup}", encoding="utf-8")
    errors = []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        body = page.locator(".qfig-body")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for way in range(3):
            for pattern, share in ((0, 0.0), (0, 0.35), (0, 0.5), (0, 0.9), (1, 0.5)):
                count, error = body.evaluate(f"b => b.qlabRun({way}, {pattern}, {share})")
                right = expected(way, pattern, share)
                assert count == right[0]
                # The library's SparseGPT works in float32.
                assert error == pytest.approx(right[1], rel=1e-3, abs=1e-9)
        share = page.get_by_role("slider", name="Weights that go")
        share.press("ArrowRight")
        assert int(body.get_attribute("data-count")) == expected(0, 0, 0.55)[0]
        page.get_by_label("Who decides").select_option(index=2)
        page.get_by_label("Places").select_option(index=1)
        page.get_by_label("Bits of a weight").select_option(index=2)
        assert share.is_disabled()
        assert int(body.get_attribute("data-count")) == 64
        assert "3.00 bits per weight" in page.locator(".qfig-read").first.text_content()
    assert errors == []
