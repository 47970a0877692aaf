"""``qlab bench``: it runs, it says on what, and nothing else. Times themselves are not tested."""

import json

import pytest

from qlab import cli_bench
from qlab.cli import main


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cli_bench, "ROWS", 64)
    monkeypatch.setattr(cli_bench, "COLUMNS", 256)
    monkeypatch.setattr(cli_bench, "COLD", 1e5)


def test_it_measures_all_and_prints_one_object(small, capsys):
    assert main(["bench", "--seconds", "0", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"]["threads"] == 1 and found["device"]["cpu"]
    assert all(speed > 0 for speed in found["ceilings"].values())
    names = {(row["scheme"], row["name"]) for row in found["kernels"]}
    assert {(s, "qlab") for s in cli_bench.SCHEMES} <= names
    # Peers that the tests' environment has.
    assert {("F32", "torch"), ("BF16", "torch"), ("Q4_0", "onnxruntime")} <= names
    for row in found["kernels"]:
        assert row["bytes_per_second"] == pytest.approx(row["bytes"] / row["seconds"])
        ours = next(
            r for r in found["kernels"] if r["name"] == "qlab" and r["scheme"] == row["scheme"]
        )
        # The header and the padding of so small a matrix count.
        assert row["bytes"] == pytest.approx(ours["bytes"], rel=0.15)
    engine = found["engine"]
    assert engine["decode_tokens_per_second"] > 0 and engine["prefill_tokens_per_second"] > 0
    text = cli_bench.table(found)
    assert text.count("qlab  ") == len(cli_bench.SCHEMES) and "GB/s" in text
    found["device"]["busy_share"] = 0.5
    assert "busy: other programs take 50%" in cli_bench.table(found)


def test_contestants_multiply_the_same_weights(small):
    import numpy as np

    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(64, 256)).astype(np.float32), rng.normal(size=(1, 256))
    x = x.astype(np.float32)
    for scheme in ("F32", "Q4_0", "Q8_0", "NF4"):
        found = cli_bench._contestants(scheme, w, x, 1)
        results = {}
        for name, (runs, _) in found.items():
            y = runs[0]()
            y = y[0] if isinstance(y, list) else y
            results[name] = np.asarray(y, np.float32).reshape(-1).copy()
            assert np.array_equal(results[name], np.asarray(runs[-1]()[0], np.float32).reshape(-1))
        for y in results.values():
            # Q4_0's search is not plain rounding, so two 4-bit weights differ by some of a step.
            error = np.linalg.norm(y - results["qlab"]) / np.linalg.norm(results["qlab"])
            assert error < {"F32": 1e-5, "Q8_0": 0.02, "Q4_0": 0.2, "NF4": 0.02}[scheme]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--threads", "0"], "at least 1"),
        (["--seconds", "-1"], "not negative"),
        (["--seconds", "nan"], "not negative"),
    ],
)
def test_bad_input_is_one_line(args, said, capsys):
    assert main(["bench", *args]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
