"""benchmarks/gpu.py without a GPU: a rehearsal, the table, the figure, the tile sizes."""

from __future__ import annotations

import json

import pytest
import torch

from qlab.kernels.gpu import configs
from tests.scripts import load_script

benchmark = load_script("benchmarks/gpu.py")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="rehearsed where there is none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a rehearsal with tuning writes."""
    where = tmp_path_factory.mktemp("results")
    kept = configs.measured
    try:
        assert benchmark.main(["--rehearse", "--tune", "--out", str(where)]) == 0
    finally:
        configs.measured = kept
    return where


@pytest.fixture(scope="module")
def result(folder):
    (path,) = folder.glob("*.json")
    assert path.with_suffix(".md").exists()
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_every_kind_is_checked_and_run(result):
    kernels = {r["kernel"] for r in result["rows"]}
    assert kernels == {"cuBLAS fp16"} | {
        f"qlab {s}" for s in ("int4-g128-sfp16", *benchmark.OTHERS)
    }
    assert len(result["correctness"]) == 12 and max(result["correctness"].values()) < 0.02
    assert {e["kernel"] for e in result["configs"]} == set(configs.KERNELS)


@pytest.mark.slow
def test_bytes_are_counted(result):
    row = next(r for r in result["rows"] if r["kernel"] == "qlab int4-g128-sfp16")
    weights = 32 * 256 // 2 + 32 * 256 // 128 * 2
    assert row["bytes"] == weights + 2 * row["batch"] * (32 + 256)


def test_a_wrong_kernel_is_caught(monkeypatch):
    p = benchmark.packed("int4-g128-sfp16", 16, 256, "cpu", 0)
    assert benchmark.check(p, 2) < 0.01
    right = benchmark.dense
    monkeypatch.setattr(benchmark, "dense", lambda p: right(p) * 1.05)
    with pytest.raises(AssertionError, match="root mean square"):
        benchmark.check(p, 2)


def invented():
    """Rows that no one measured, to see them written."""
    rows = []
    for kernel, microseconds in (("cuBLAS fp16", 12.0), ("qlab int4-g128-sfp16", 4.0)):
        row = {"kernel": kernel, "matrix": "7B attention", "rows": 4096, "inputs": 4096}
        row |= {"batch": 1, "microseconds": microseconds, "bytes": 8e6, "operations_per_s": 1e13}
        rows.append(row)
    rows[1]["times_fp16"] = 3.0
    return {"device": {"name": "A GPU"}, "date": "2000-01-01", "versions": {"qlab": "0"},
            "bandwidth": 3e12, "peak": 8e14, "rows": rows, "not_measured": {"peer": "absent"},
            "configs": [{"kernel": "fp8"}]}  # fmt: skip


def test_the_table_and_the_figure(tmp_path):
    text = benchmark.markdown(invented())
    assert "| qlab int4-g128-sfp16 | 4.0 (3.00x) |" in text
    assert "Not measured: peer: absent" in text
    assert benchmark.draw(invented(), tmp_path / "figure.svg")
    assert "qlab int4-g128-sfp16" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_tile_sizes_are_adopted(tmp_path, monkeypatch):
    own = tmp_path / "configs.json"
    own.write_text('{"gpus": {"Another": {}}}', encoding="utf-8")
    benchmark.adopt(invented(), own)
    table = json.loads(own.read_text(encoding="utf-8"))["gpus"]
    assert set(table) == {"Another", "A GPU"}
    assert set(table["A GPU"]) == {"date", "versions", "entries"}


def test_bad_calls(capsys):
    for call, message in (([], "no NVIDIA GPU"), (["--rehearse"], "give --out")):
        with pytest.raises(SystemExit) as stopped:
            benchmark.main(call)
        assert stopped.value.code == 2 and message in capsys.readouterr().err
