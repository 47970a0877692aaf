"""The benchmark of the kernels: it runs, it writes what it says, and refuses a busy machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "kernels.py"


@pytest.mark.slow
def test_all_contestants_multiply_the_same_weights(tmp_path):
    out = tmp_path / "r.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--shapes", "64x256", "--seconds", "0", "--cold-mb", "0.01",
         "--threads", "1", "--anyway", "--schemes", "Q4_0,Q8_0,Q4_K,NF4,INT8,F32",
         "--out", str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"cpu", "threads", "path", "busy_share", "read_bytes_per_second"} <= set(
        result["device"]
    )
    for row in result["contests"]:
        names = set(row["contestants"])
        if row["scheme"] == "Q4_0":
            assert {"qlab", "ggml", "onnxruntime"} <= names
        for name, found in row["contestants"].items():
            # Inputs of 8 bits, or weights and results of bfloat16.
            assert found["error"] < 0.02, (row["scheme"], name)
            assert 0 < found["hot_ms"] <= found["hot_median_ms"]
        ours = min(c["hot_ms"] for n, c in row["contestants"].items() if n.startswith("qlab"))
        peer = row["contestants"][row["hot_peer"]]["hot_ms"]
        assert row["hot_ratio"] == pytest.approx(peer / ours)
        assert f"{row['hot_ratio']:.2f} times as fast as" in done.stdout
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| Q4_0 | 64 x 256 | 1 | qlab |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--shapes", "64x100"], "multiple of 256"), (["--schemes", "Q9"], "Q9 is not one of")],
)
def test_bad_input_is_refused(arguments, message):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


def test_a_busy_machine_is_refused(monkeypatch, capsys):
    kernels = load_script("benchmarks/kernels.py")
    monkeypatch.setattr(kernels, "busy_share", lambda: 0.5)
    with pytest.raises(SystemExit):
        kernels.main(["--shapes", "64x256"])
    assert "others use is 50%" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("kernels-*.json")))
def test_committed_results_say_on_what(file):
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["device"]["cpu"] and result["versions"]["numba"]
    assert all(c["error"] < 0.02 for r in result["contests"] for c in r["contestants"].values())
