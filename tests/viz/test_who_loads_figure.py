"""The figures of the toolbox: the scripts show what the records say, at every choice."""

from __future__ import annotations

import json
import re

import pytest

from qlab import QlabError
from qlab.viz.who_loads import old_names, tools_beside, who_loads
from tests.browser import chromium

RECORD = {
    "ours": {"plain": 30.0, "small": 31.0},
    "engines": {
        "one": {
            "version": "1",
            "cells": {
                "plain": {"status": "agrees", "perplexity": 30.01},
                "small": {"status": "refuses", "why": "ValueError: <no> & never"},
            },
        },
        "two": {"version": "2", "cells": {"plain": {"status": "differs", "perplexity": 33.0}}},
    },
}
ROWS = [("b int4", 31.0, 31.5, 5.0), ("a int8", 30.1, 30.1, 9.0), ("c int3", 40.0, 38.0, 4.0)]
NAMES = [
    {"old": "./main", "was": "a program", "now": "llama-cli", "line": "llama-cli -m <x>"},
    {"old": "auto-gptq", "was": "a package", "now": "GPTQModel", "line": "import gptqmodel"},
]


def payload(picture):
    found = re.search(r"application/json\">(.*?)</script>", picture.markup, re.S)
    return json.loads(found[1])


def test_a_cell_that_was_not_tried_is_known_as_that():
    cells = payload(who_loads(RECORD))["cells"]
    assert cells[1][1]["status"] == "not tried" and cells[0][0]["status"] == "agrees"


def test_without_a_script_everything_is_in_a_table():
    assert "<td>no</td>" in who_loads(RECORD).markup
    assert "<td>-1.59%</td>" in tools_beside(ROWS, 30.0).markup
    assert "GPTQModel" in old_names(NAMES).markup


def test_they_refuse_what_they_cannot_show():
    with pytest.raises(QlabError, match="record"):
        who_loads({"ours": {}, "engines": {}})
    with pytest.raises(QlabError, match="lacks line"):
        old_names([{"old": "a", "was": "b", "now": "c"}])


@pytest.mark.tools
def test_the_scripts_show_the_record(tmp_path):
    path, errors = tmp_path / "figures.html", []
    head = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    parts = [who_loads(RECORD), tools_beside(ROWS, 30.0), old_names(NAMES)]
    body = "".join(part.markup for part in parts)
    path.write_text(f"{head}<body>{body}", encoding="utf-8")
    with chromium() as running:
        page = running.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        figures = page.locator(".qfig-body")

        loads = figures.nth(0)
        cells = payload(who_loads(RECORD))["cells"]
        for i in range(2):
            for j in range(2):
                page.get_by_label("I have").select_option(index=i)
                page.get_by_label("I want to run it in").select_option(index=j)
                assert loads.get_attribute("data-status") == cells[i][j]["status"]
        page.get_by_label("I want to run it in").select_option(index=0)
        assert "ValueError: <no> & never" in loads.text_content()
        assert "Files on which this engine agrees: plain" in loads.text_content()

        page.get_by_label("Tool and scheme").select_option(index=2)
        assert figures.nth(1).get_attribute("data-row") == "c int3"
        assert "a difference of 5.26%" in figures.nth(1).text_content()
        page.get_by_label("Order").select_option(index=3)
        assert page.locator(".qfig-body svg text").nth(1).text_content() == "c int3"

        field = page.get_by_label("Old name", exact=True)
        field.fill("gptq")
        assert figures.nth(2).get_attribute("data-count") == "1"
        assert "import gptqmodel" in figures.nth(2).text_content()
        field.fill("nothing of the kind")
        assert "Nothing of that name" in figures.nth(2).text_content()
    assert errors == []
