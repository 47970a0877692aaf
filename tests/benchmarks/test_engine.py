"""The benchmark of the engine: it runs, and it writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "engine.py"
FILES = sorted((ROOT / "benchmarks" / "results").glob("engine-*.json"))
PEERS = {"llama.cpp", "llama.cpp, plain"}


def run(*args):
    return subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True)


def check(result):
    assert result["device"]["cpu"] and set(result["device"]["busy_share"]) == {"before", "after"}
    native = {"llama-cpp-python"} & set(result["versions"])  # only where --llama was given
    assert set(result["versions"]) == {"python", "qlab", "numpy", "numba", "xllamacpp"} | native
    peers = PEERS | native
    for row in result["rows"]:
        best, median = row["tokens_per_second"], row["median"]
        assert set(best) == {"qlab", *peers} and set(row["ratio"]) == peers
        for peer in peers:
            assert row["ratio"][peer] == pytest.approx(best["qlab"] / best[peer])
        assert all(best[name] >= median[name] for name in best)


@pytest.mark.slow
def test_it_measures_the_same_thing_and_says_on_what(tmp_path):
    out = tmp_path / "r.json"
    done = run("--mixes", "q8_0", "--seconds", "0", "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    check(result)
    assert [row["what"] for row in result["rows"]] == ["decode", "prefill"]
    decode = result["rows"][0]
    # Rounded inputs may turn a close decision; the first tokens are no close ones.
    assert decode["first_tokens_equal"]["qlab"] == 64
    assert decode["first_tokens_equal"]["llama.cpp, plain"] >= 3
    table = out.with_suffix(".md").read_text(encoding="utf-8")
    assert table.count("| storyteller, q8_0 |") == 2


def test_bad_arguments_are_refused(tmp_path):
    for args, said in (
        (("--threads", "0"), "at least 1"),
        (("--mixes", "none"), "nothing to measure"),
        (("--file", str(tmp_path / "no.gguf")), "no file at"),
    ):
        done = run(*args)
        assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_committed_results_say_what_they_are(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    check(result)
    assert file.with_suffix(".md").exists()
