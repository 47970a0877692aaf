"""The benchmark of quantizing: it runs, it writes what it says, and qlab is as fast as torchao."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "quantize.py"


def run(out, *args):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", str(out), *args], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_it_measures_the_same_thing_and_says_on_what(tmp_path):
    said, result = run(tmp_path / "r.json", "--size", "256", "--rounds", "2")
    assert {row["scheme"] for row in result["quantize"]} == {"int4-g128", "int4-asym-g128"}
    for row in result["quantize"]:
        assert row["equal_codes"] > 0.999
        assert row["ratio"] == pytest.approx(row["torchao_seconds"] / row["qlab_seconds"])
        assert f"{row['ratio']:.2f} times" in said
    assert result["clip_search"]["sqnr_searched"] > result["clip_search"]["sqnr_minmax"]
    assert result["device"]["cpu"] and result["device"]["threads"] == 1
    assert set(result["versions"]) == {"python", "qlab", "torch", "torchao", "numpy"}


def test_bad_sizes_are_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--size", "100"], capture_output=True, text=True)
    assert done.returncode == 2 and "multiple of 128" in done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("quantize-*.json")))
def test_committed_results_reach_the_goals(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["tensor"].startswith("4096 x 4096")
    assert all(row["ratio"] >= 1 for row in result["quantize"])
    assert result["clip_search"]["seconds"] < result["clip_search"]["goal_seconds"]


def test_results_are_committed():
    assert list((ROOT / "benchmarks" / "results").glob("quantize-*.json"))


@pytest.mark.speed
def test_quantizing_is_at_least_as_fast_as_torchao(tmp_path):
    """A ratio within one run, of the fastest of several, so that neighbors matter little."""
    _, result = run(tmp_path / "r.json", "--size", "4096", "--rounds", "7")
    for row in result["quantize"]:
        assert row["ratio"] >= 1, row
