"""The benchmark of the exact clipping search: it runs, and the committed results reach the goal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "clip_search.py"
FILES = sorted((ROOT / "benchmarks" / "results").glob("clip-search-*.json"))


def run(*args):
    return subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True)


@pytest.mark.slow
def test_it_measures_every_format_and_says_on_what(tmp_path):
    out = tmp_path / "r.json"
    done = run("--size", "128", "--rounds", "1", "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["format"] for row in result["search"]] == ["int2", "int3", "int4", "nf4", "int8"]
    # The grid never wins; -1e-6 is float32's rounding of its scales.
    assert all(row["excess"] > -1e-6 for row in result["search"] if "excess" in row)
    assert result["device"]["cpu"] and result["device"]["threads"] == 1
    assert set(result["versions"]) == {"python", "qlab", "numba", "numpy", "torch"}


def test_bad_arguments_are_refused():
    done = run("--threads", "0")
    assert done.returncode == 2 and "--threads" in done.stderr


def test_results_are_committed():
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_committed_results_reach_the_goal(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    (row,) = [r for r in result["search"] if r["format"] == "int4"]
    assert row["rows"] == 4096 and row["seconds"] < result["goal_seconds"] == 2
