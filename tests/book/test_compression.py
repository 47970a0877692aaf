"""What the chapter on pruning, low rank and distillation says of formulas, on input of our own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.compress import Target, to_sparse
from qlab.compress.distill import divergence
from qlab.compress.low_rank import half_of, rank_for
from qlab.compress.magnitude import magnitude
from tools.record_compress import CASES, INT4, KEEPS, RECORDS, SEEDS, STEPS, story_runs
from tools.weights import weights_hash

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "compression.md"


def test_the_smaller_half_of_normal_numbers_holds_seven_percent_of_the_power():
    """∫ x² φ over |x| < the median of |x|, 0.6745: Φ part minus 2 · 0.6745 φ(0.6745)."""
    edge = 0.674489750196
    density = np.exp(-(edge**2) / 2) / np.sqrt(2 * np.pi)
    assert 0.5 - 2 * edge * density == pytest.approx(0.07, abs=0.002)
    assert "it is 7%" in CHAPTER.read_text(encoding="utf-8")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    share=st.floats(0, 0.95),
    bits=st.sampled_from([2, 3, 4, 8]),
)
def test_the_formula_of_bits(seed, share, bits):
    """b (1 - s) + 1, for a bitmask whose rows keep the same number, whatever the values."""
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    q = qlab.quantize(magnitude(w, None, Target(share), "row"), f"int{bits}-tensor")
    s = to_sparse(q)
    zeros = float((q.dequantize() == 0).float().mean())  # rounding makes some more
    offsets = 0 if s.even else 32 / 64
    counted = bits * (1 - zeros) + 1 + offsets + 32 / w.numel()
    assert s.bits_per_weight == pytest.approx(counted, abs=8 / w.numel())
    assert (s.bits_per_weight - offsets < q.bits_per_weight) == (zeros > 1 / bits) or abs(
        zeros - 1 / bits
    ) < 0.01


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 300), n=st.integers(2, 300))
def test_thin_factors_save_nothing_above_the_bound(m, n):
    bound = m * n / (m + n)
    assert bound >= 1 or m * n < m + n
    if bound >= 1:
        rank = rank_for((m, n), 1.0)
        assert rank * (m + n) <= m * n and (rank + 1) * (m + n) > m * n * (1 - 1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_error_of_outputs_is_a_norm_behind_the_triangle(seed):
    g = torch.Generator().manual_seed(seed)
    x, delta = torch.randn(50, 8, generator=g), torch.randn(3, 8, generator=g).double()
    s = half_of(x.T @ x / 25, 8)
    h = (s @ s.T).double()
    assert float((delta @ h @ delta.T).trace()) == pytest.approx(
        float((delta @ s).square().sum()), rel=1e-9
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 100.0])
def test_the_gradient_at_a_temperature(temperature):
    g = torch.Generator().manual_seed(0)
    p, z = torch.randn(1, 10, generator=g), torch.randn(1, 10, generator=g, requires_grad=True)
    logs, places = (p / temperature).log_softmax(-1).topk(10)
    divergence(z, places, logs, temperature).backward()
    by_hand = (z / temperature).softmax(-1) - (p / temperature).softmax(-1)
    torch.testing.assert_close(z.grad, temperature * by_hand.detach(), rtol=1e-3, atol=1e-4)
    if temperature == 100:  # a limit that has lost the temperature: (z - p) about their means, / n
        limit = ((z - z.mean()) - (p - p.mean())) / 10
        torch.testing.assert_close(z.grad, limit.detach(), rtol=0.05, atol=0.01)


def test_what_the_chapter_says_of_the_records():
    text = CHAPTER.read_text(encoding="utf-8")
    assert len(CASES) == 13 and "thirteen small layers" in text
    assert f"{STEPS} steps of 512 tokens" in text
    runs = json.loads((RECORDS / "compress.json").read_text(encoding="utf-8"))["runs"]
    assert len({run["name"] for run in runs}) == len(runs) > 20
    for run in runs:
        if run["name"].endswith("2:4"):
            assert run["bits_per_weight"] == 9.0
        if run["name"].endswith("2:4 int4-g128-sfp16"):
            # 3 bits and a scale; bitmasks of layers with many zeros may be smaller.
            assert 3 < run["bits_per_weight"] <= 3.125


@pytest.mark.parametrize("what", ["storyteller", "students"])
def test_the_record_is_whole_and_of_these_weights(what):
    remedy = f"run tools/record_compress.py {what} --fresh"
    name = "compress.json" if what == "storyteller" else f"compress_{what}.json"
    record = json.loads((RECORDS / name).read_text(encoding="utf-8"))
    assert record["weights"] == weights_hash(), remedy
    found = [(run["name"], run.get("seed")) for run in record["runs"]]
    if what == "storyteller":
        wanted = [("none", None), *((name, None) for name in story_runs(qlab.story.load()))]
    else:
        wanted = []
        for keep in KEEPS:
            name = f"student of {len(keep)} blocks"
            wanted.append((f"{name}, untrained", SEEDS[0]))
            for seed in SEEDS:
                wanted += [(n, seed) for n in (name, f"{name}, text alone", f"{name} {INT4}")]
    assert sorted(found, key=str) == sorted(wanted, key=str), remedy
