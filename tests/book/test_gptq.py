"""What the chapter on GPTQ says of formulas and of production, on input of our own."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.methods.gptq import GptqOptions, gptq
from tools.record_gptq import CASES, DATA, TOOLS, case_inputs

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "gptq.md"


def problem(seed, n=10, tokens=80):
    """(row, H): float64."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, 4)) @ rng.standard_normal((4, n))
    x += 0.3 * rng.standard_normal((tokens, n))
    return rng.standard_normal(n), 2 / tokens * x.T @ x


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), p=st.integers(0, 9), value=st.floats(-2, 2))
def test_the_surgeons_answer_is_the_best_one(seed, p, value):
    w, h = problem(seed)
    inverse = np.linalg.inv(h)
    after = w - (w[p] - value) / inverse[p, p] * inverse[p]
    cost = (w[p] - value) ** 2 / inverse[p, p]
    d = after - w
    assert np.isclose(after[p], value)
    assert np.isclose(d @ h @ d, cost, rtol=1e-6, atol=1e-12)
    rng = np.random.default_rng(seed)
    for _ in range(5):  # any other answer that keeps weight p costs more
        other = d + 0.1 * rng.standard_normal(10) * (np.arange(10) != p)
        assert other @ h @ other >= cost * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_all_rows_of_obq_are_in_one_factor(seed):
    _, h = problem(seed)
    inverse = np.linalg.inv(h)
    u = np.linalg.cholesky(inverse).T
    for i in range(10):
        np.testing.assert_allclose(inverse[i, i:], u[i, i] * u[i, i:], rtol=1e-5, atol=1e-9)
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]


def test_endless_damping_is_round_to_nearest():
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(16, 32, generator=g), torch.randn(100, 32, generator=g)
    stats = SimpleNamespace(hessian=x.T @ x / 50, name="")
    q = gptq(w, stats, "int3-g16", GptqOptions(damping=1e6))
    rtn = gptq(w, SimpleNamespace(hessian=torch.eye(32), name=""), "int3-g16")
    assert torch.equal(q.codes, rtn.codes)


def test_the_codes_in_the_chapter_are_those_of_both_tools():
    text = CHAPTER.read_text(encoding="utf-8")
    shown = re.search(r'recorded = """\n(.*?)"""', text, re.S)[1].split()
    codes = np.array([[int(c, 16) - 8 for c in line] for line in shown])
    for tool in TOOLS:
        kept = np.load(DATA / f"gptq_{tool}.npz")
        np.testing.assert_array_equal(kept["chapter/codes"], codes)
        assert CASES[tool]
    # And the chapter draws the same inputs as the record.
    case = next(c for c in CASES["gptqmodel"] if c.kind == "chapter")
    space = {"np": np, "torch": torch}
    cell = re.search(r"\nrng = np.*?\nws = [^\n]*\n", text, re.S)[0]
    exec(cell, space)
    made = case_inputs(case)
    np.testing.assert_array_equal(space["xs"], made["x"])
    np.testing.assert_array_equal(space["ws"].numpy(), made["weight"])


def test_the_number_of_layers_compared_is_as_the_chapter_says():
    assert 30 <= sum(len(cases) for cases in CASES.values()) < 40
    assert "thirty such layers" in CHAPTER.read_text(encoding="utf-8")
