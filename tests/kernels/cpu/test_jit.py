"""Compiling leaves the number of threads that torch works with as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PARALLEL = """
import numpy as np
from numba import prange
from qlab.kernels.cpu.jit import jit

@jit(parallel=True)
def add_one(a):
    for i in prange(a.size):
        a[i] += 1

a = np.zeros(1000)
add_one(a)
assert a.sum() == 1000
"""
TORCH = "import torch; before = torch.get_num_threads(); "
CASES = {
    "torch first": TORCH + PARALLEL + "print(before, torch.get_num_threads())",
    "torch first, told": TORCH
    + "before = 3; torch.set_num_threads(3)\n"
    + PARALLEL
    + "print(before, torch.get_num_threads())",
    "torch last": "before = 1\n"
    + PARALLEL
    + "import torch; print(before, torch.get_num_threads())",
}


@pytest.mark.parametrize("case", CASES)
def test_torch_keeps_its_threads(case, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CASES[case])
    done = subprocess.run(
        [sys.executable, script],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split()
    assert before == after
