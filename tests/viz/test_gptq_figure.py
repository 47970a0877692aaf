"""The figure of GPTQ's steps: what Python computes is GPTQ, and the script shows it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qlab
from qlab.methods.gptq import GptqOptions, gptq
from qlab.viz.gptq import gptq_steps, pushed_error
from tests.browser import chromium


def small(seed=0, rows=4, columns=8):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=g)
    x += 2 * torch.randn(200, 1, generator=g)
    return torch.randn(rows, columns, generator=g), x.T @ x / 100


def picture():
    w, h = small()
    return pushed_error(w, {"as they are": h, "alone": torch.diag(h.diagonal())})


def payload():
    text = re.search(r'<script type="application/json">(.*?)</script>', picture().markup, re.S)[1]
    return json.loads(text)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_steps_end_where_gptq_does(bits):
    for seed in range(5):
        w, h = small(seed)
        steps = gptq_steps(w, h, bits)
        stats = SimpleNamespace(hessian=h, name="")
        q = gptq(w, stats, f"int{bits}-channel", GptqOptions(damping=0.0, scales="static"))
        np.testing.assert_array_equal(steps["codes"], q.codes)
        np.testing.assert_allclose(steps["weights"][-1], q.dequantize(), rtol=1e-6)
        plain = gptq_steps(w, h, bits, pay=False)
        np.testing.assert_array_equal(plain["codes"], qlab.quantize(w, f"int{bits}-channel").codes)


def test_done_columns_stay_and_each_step_adds_its_square():
    w, h = small()
    steps = gptq_steps(w, h)
    u = np.linalg.cholesky(np.linalg.inv(h.double().numpy())).T
    for i in range(8):
        before, after = steps["weights"][i : i + 2]
        np.testing.assert_array_equal(before[:, :i], after[:, :i])
        e = (before[:, i] - after[:, i]) / u[i, i]
        assert steps["loss"][i + 1] - steps["loss"][i] == pytest.approx((e**2).sum(), rel=1e-6)


def test_with_inputs_on_their_own_nobody_pays():
    data = payload()
    alone = data["kinds"][1]
    assert alone["gptq"]["change"] == alone["rtn"]["change"]
    together = data["kinds"][0]
    assert together["gptq"]["loss"][-1] < 0.7 * together["rtn"]["loss"][-1]


def test_it_refuses_what_it_cannot_show():
    w, h = small()
    for weight, hessians in (
        (torch.ones(9, 8), {"x": h}), (torch.ones(2, 13), {"x": torch.eye(13)}), (w, {}),
        (w * float("nan"), {"x": h}), (w, {"x": torch.eye(7)}), (w, {"x": torch.ones(8, 8)}),
    ):  # fmt: skip
        with pytest.raises(qlab.QlabError, match="pushed_error"):
            pushed_error(weight, hessians)


@pytest.mark.tools
def test_the_script_shows_the_steps(tmp_path):
    path = tmp_path / "figure.html"
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    path.write_text(f"{head}<body>{picture().markup}", encoding="utf-8")
    data, errors = payload(), []
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        body = page.locator(".qfig-body")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for step in range(1, 9):
            page.get_by_role("button", name="Next column").click()
            assert body.get_attribute("data-step") == str(step)
            loss = float(body.get_attribute("data-loss"))
            assert loss == data["kinds"][0]["gptq"]["loss"][step]
        page.get_by_label("Later columns").select_option(index=1)
        assert float(body.get_attribute("data-loss")) == data["kinds"][0]["rtn"]["loss"][8]
        page.get_by_label("Inputs").select_option(index=1)
        page.get_by_role("slider", name="Columns quantized").press("ArrowLeft")
        assert body.get_attribute("data-step") == "7"
        assert float(body.get_attribute("data-loss")) == data["kinds"][1]["rtn"]["loss"][7]
        assert "No later weight pays" in page.locator(".qfig-read").first.text_content()
    assert errors == []
