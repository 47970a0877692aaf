"""The record of tools/record_tools.py, and qlab beside it, measured again."""

from __future__ import annotations

import ast
import json
import math
import re

import pytest

from qlab.viz.who_loads import tools_beside
from tools import record_tools as toolbox
from tools.toolbox.environments import ENVIRONMENTS, python_of
from tools.weights import weights_hash

RECORD = json.loads(toolbox.RECORD.read_text("utf-8"))
AGAIN = "run tools/record_tools.py (make tools)"
QUICK = ("float32", "rtn int8", "rtn int4", "rtn int4-asym", "hqq", "gguf q8_0", "gguf q4_0")
SLOW = tuple(name for name in RECORD["ours"] if name not in QUICK)


def test_the_record_is_of_the_weights_that_are_shipped():
    assert RECORD["weights"] == weights_hash(), AGAIN
    assert (RECORD["texts"], RECORD["calibration"]) == (toolbox.TEXTS, toolbox.CALIBRATION), AGAIN


@pytest.mark.parametrize("tool", toolbox.TOOLS)
def test_the_code_that_the_chapters_show_is_the_script_that_ran(tool):
    known = RECORD["tools"][tool]
    assert known["script"] == toolbox.script_hash(tool), AGAIN
    assert known["code"] == toolbox.shown(tool)
    for text in known["code"].values():
        # A body of a function may end with a return, which alone is not a program.
        ast.parse("def shown():\n" + "\n".join(f"    {line}" for line in text.splitlines()))


def test_every_tool_has_a_row_an_error_or_an_honest_status():
    for tool, about in toolbox.TOOLS.items():
        known = RECORD["tools"][tool]
        expected = {name for name, row in toolbox.ROWS.items() if row.tool == tool}
        if known["status"] == "run":
            assert not known["error"] and (set(known["rows"]) == expected or about.gpu)
        elif known["status"] == "refused":
            assert known["error"] and set(known["rows"]) <= expected
        else:
            assert known["status"] == toolbox.NOT_YET and not known["rows"]
        # Nothing of the machine that ran it.
        assert not re.search(r"/(tmp|root|home|work)/", json.dumps(known["error"]))


def rows():
    """Each recorded row, as a claim of what agrees with what."""
    for name, row in toolbox.ROWS.items():
        known = RECORD["tools"].get(row.tool, {}).get("rows", {})
        if name in known:
            version = known[name]["version"]
            what = f"perplexity of the storyteller within {row.within:.1%} ({version})"
            kind = {"rtn": "method rtn", "hqq": "method hqq", "gptq": "method gptq"}
            kind |= {"awq": "method awq", "autoround": "method autoround"}
            kind |= {"smoothquant": "method smoothquant", "gguf": "export gguf"}
            subject = kind.get(row.ours.split()[0].strip(","), "export onnx")
            mark = pytest.mark.oracle(subject, f"{row.tool} (recorded)", what)
            yield pytest.param(name, marks=[mark] if row.ours != "float32" else [])


@pytest.mark.parametrize("name", list(rows()))
def test_a_tool_says_what_qlab_says(name):
    row = toolbox.ROWS[name]
    theirs = RECORD["tools"][row.tool]["rows"][name]
    ours = RECORD["ours"][row.ours]
    assert math.isfinite(theirs["perplexity"]) and theirs["bytes"] >= 0
    assert abs(theirs["perplexity"] / ours - 1) <= row.within, row.why
    assert (theirs["ours"], theirs["within"]) == (row.ours, row.within), AGAIN


def is_recorded(name):
    found = toolbox.perplexity(toolbox.ours(name))
    # What looks at inputs has border cases that fall to the other side on other processors: another
    # rounding as good. The others add float32 in another order.
    searching = name.split()[0].strip(",") in ("gptq", "awq", "autoround", "smoothquant")
    assert found == pytest.approx(RECORD["ours"][name], rel=0.02 if searching else 1e-3), AGAIN


@pytest.mark.parametrize("name", [n for n in QUICK if n in RECORD["ours"]])
def test_ours_is_as_recorded(name):
    is_recorded(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_rest_of_ours_is_as_recorded(name):
    is_recorded(name)


def test_round_to_nearest_costs_more_with_fewer_bits():
    ours = RECORD["ours"]
    if {"rtn int8", "rtn int4"} <= set(ours):
        assert (
            abs(ours["rtn int8"] / ours["float32"] - 1) < 0.01 < ours["rtn int4"] / ours["float32"]
        )


def test_every_environment_has_a_tool_and_pins_its_version():
    used = {tool.environment for tool in toolbox.TOOLS.values()} - {None}
    assert used <= set(ENVIRONMENTS)
    for name in used:
        own = [word for words in ENVIRONMENTS[name] for word in words]
        assert any("==" in word and not word.startswith("torch==") for word in own), name


def test_the_interpreter_lies_in_the_folder(tmp_path):
    assert tmp_path in python_of("hqq", tmp_path).parents


def test_shown_takes_the_marked_lines_and_no_others():
    found = toolbox.shown("gptqmodel")["quantize"]
    assert found.startswith("import torch") and "[shown]" not in found
    assert "def " not in found and "model.save" in found


def test_a_figure_without_rows_says_what_to_run():
    from qlab import QlabError

    with pytest.raises(QlabError, match="record_tools"):
        tools_beside([], 30.0)
