"""What the chapter on GPU kernels says, on input of our own; and its cell that reads results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch

import qlab
from qlab.viz.gpu_time import GPUS, seconds
from tests.scripts import load_script

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "gpu-kernel.md"
CELLS = [c.source for c in jupytext.read(CHAPTER, fmt="md:myst").cells if c.cell_type == "code"]


def cell(words: str) -> str:
    (found,) = [c for c in CELLS if words in c]
    return found


@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (28672, 8192)])
def test_the_ratio_holds_for_other_matrices(shape):
    for g in GPUS:
        assert seconds(g, *shape, 1) / seconds(g, *shape, 1, 4.125) == pytest.approx(3.87, abs=0.01)


def test_a_scheme_has_the_bits_that_the_prediction_takes():
    q = qlab.quantize(torch.randn(64, 1024), "int4-g128-sfp16")
    assert q.bits_per_weight == 4.125


def test_a_code_in_the_mantissa_is_exact_for_any_offset():
    """Also for real zero points: the difference is that of float32 numbers near 2^(23 - b)."""
    for plane in range(4):
        b = 4 * plane
        codes = np.arange(16, dtype=np.int32)
        number = ((codes << b) | ((150 - b) << 23)).view(np.float32)
        for zero in range(16):
            difference = number - np.float32((1 << (23 - b)) + zero)
            assert (difference == codes - zero).all()
        # Whatever the other bits of the word are, the mask removes them.
        word = codes << b | np.int32(-1) & ~np.int32(15 << b)
        assert (((word & (15 << b)) | ((150 - b) << 23)).view(np.float32) == number).all()


def test_the_order_of_a_sum_shows():
    """What split-K avoids: eight floats in another order, another result."""
    g = np.random.default_rng(0)
    parts = g.standard_normal(8).astype(np.float32)
    sums = set()
    for _ in range(100):
        total = np.float32(0)
        for p in parts[g.permutation(8)]:
            total = np.float32(total + p)
        sums.add(float(total))
    assert len(sums) > 1


def test_fast_memory_meets_the_second_limit_first():
    """With any number of instructions a weight, cards wait for memory in order of their balance."""
    order = sorted(GPUS, key=lambda g: g.bandwidth / g.instructions)
    for each in (1, 2, 3, 5, 8, 12):
        bound = [seconds(g, 4096, 4096, 1, 4.125, each) > seconds(g, 4096, 4096, 1, 4.125)
                 for g in order]  # fmt: skip
        assert bound == sorted(bound)
    assert order[0].name == "L40S" and order[-1].name == "H200 SXM"


def run_measured(folder: Path, capsys) -> str:
    code = cell("Not yet measured").replace(
        'Path(qlab.__file__).parents[1] / "benchmarks" / "results"', "given"
    )
    exec(code, {"given": folder, "json": json, "Path": Path, "qlab": qlab})
    return capsys.readouterr().out


def test_without_results_it_says_so(tmp_path, capsys):
    assert "Not yet measured" in run_measured(tmp_path, capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux alone")
def test_results_are_shown_when_there_are_some(tmp_path, capsys):
    """In the form in which benchmarks/gpu.py writes them. The numbers are invented."""
    benchmark = load_script("benchmarks/gpu.py")
    run = benchmark.Run(rehearse=True, budget=1)
    run.shapes = {"7B attention": (64, 128)}
    run.add("cuBLAS fp16", "7B attention", 1, 12e-6, 1000)
    run.add("qlab int4-g128-sfp16", "7B attention", 1, 4e-6, 250)
    result = {"device": {"name": "A GPU"}, "date": "2000-01-01", "rows": run.rows,
              "versions": {"torch": "0", "triton": "0"}}  # fmt: skip
    (tmp_path / "gpu-a.json").write_text(json.dumps(result), encoding="utf-8")
    out = run_measured(tmp_path, capsys)
    assert "4.0 µs, 3.00 times" in out and "Not yet" not in out


def test_no_time_is_claimed_outside_the_section_for_it():
    """The prose of the chapter names microseconds nowhere; tables are marked as predicted."""
    text = CHAPTER.read_text(encoding="utf-8")
    prose = "".join(part for i, part in enumerate(text.split("```")) if i % 2 == 0)
    assert "µs" not in prose and "microseconds" not in prose
    assert '"16 bits, predicted"' in text and "predicted ratio" in text
