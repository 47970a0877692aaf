"""What the chapter on AWQ says of scales and clipping, and that its record is the record."""

import re
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.methods.awq import awq_scales, clip_limits, scaled_rounding

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = (ROOT / "book" / "awq.md").read_text(encoding="utf-8")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_error_of_a_column_alone(seed):
    """Equation 1: mean x² times the squared error of the column."""
    w, x, delta = normal(seed, 8, 6), normal(seed + 1, 30, 6), normal(seed + 2, 8, 6)
    for j in range(6):
        only = torch.zeros_like(w)
        only[:, j] = delta[:, j]
        made = (x @ only.T).square().sum(1).mean()
        torch.testing.assert_close(made, x[:, j].square().mean() * delta[:, j].square().sum())


def test_dividing_by_s_divides_the_error_until_the_step_grows():
    """A law of the chapter: 1/s² at first, a constant at the end, with symmetric groups."""
    w = normal(0, 512, 128)
    chosen = torch.arange(128) == 5
    found = {}
    for factor in (1.0, 1.25, 16.0, 64.0):
        s = torch.where(chosen, factor, 1.0)
        error = (scaled_rounding(w, s, "int3-g128") - w).square()
        found[factor] = float(error[:, chosen].mean()), float(error[:, ~chosen].mean())
    # A row in a hundred has its largest weight in that column; errors vary by sqrt(2 / 512).
    assert abs(found[1.25][0] / found[1.0][0] * 1.25**2 - 1) < 0.2
    assert abs(found[1.25][1] / found[1.0][1] - 1) < 0.1
    # At the end the column alone sets the step, and is exact; the others are lost.
    assert found[64.0][0] < 0.1 * found[1.0][0] and found[64.0][1] > 3 * found[1.0][1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 4))
def test_the_search_can_only_improve_on_rtn(seed, bits):
    """Ratio 0 is on the grid and leaves the codes of RTN, up to rounding at ties."""
    w, x = normal(seed, 6, 32), normal(seed + 1, 40, 32) * torch.exp(normal(seed + 2, 32))
    scheme = f"int{bits}-asym-g16"
    mean_abs = x.abs().mean(0)
    assert (awq_scales(mean_abs, 0.0) == 1).all()
    assert torch.equal(
        scaled_rounding(w, awq_scales(mean_abs, 0.0), scheme), qlab.quantize(w, scheme).dequantize()
    )


def test_the_open_search_of_limits_is_that_of_qlab():
    cell = re.search(r"(def best_limits.*?)\nx512", CHAPTER, re.S)[1]
    space = {"torch": torch, "qlab": qlab}
    exec(cell, space)  # the chapter's own function
    for seed in range(5):
        w, x = normal(seed, 12, 64) ** 3, normal(seed + 9, 50, 64)
        for scheme in ("int3-asym-g32", "int4-g32"):
            ours, theirs = space["best_limits"](w, x, scheme, 32), clip_limits(w, x, scheme)
            # The sums run in another order: a near tie may fall to the other side.
            assert (ours == theirs).float().mean() > 0.95


def test_the_record_in_the_chapter_is_the_record():
    text = re.search(r'recorded = """\n(.*?)"""', CHAPTER, re.S)[1]
    record = np.load(ROOT / "tests" / "parity" / "data" / "awq.npz")["lesson losses"]
    assert text.split() == [f"{loss:.4f}" for loss in record]
