"""What the chapter on many machines says in its text, of formulas and files."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.sharding import smallest_piece
from qlab.training.zero import zero_memory
from qlab.viz.fine_tuning import MODELS

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "scaling-out.md"


@pytest.fixture(scope="module")
def text():
    return re.sub(r"\s+", " ", CHAPTER.read_text(encoding="utf-8"))


def test_sixteen_bytes_of_which_twelve_are_the_optimizers(text):
    held = zero_memory(1, 1, 0)
    assert (held.device, held.optimizer) == (16, 12)
    assert "Together 16 bytes, three quarters of them the optimizer's" in text


def test_a_model_of_seventy_billion(text):
    assert zero_memory(70e9, 1, 0).device > 1e12 and "more than a terabyte" in text
    # A whole copy of the weights remains in stages 1 and 2, however many workers there are.
    assert round(zero_memory(70.55e9, 10**9, 2).device / 1e9) == 141 and "141 GB do not fit" in text
    assert dict(MODELS)["Llama-3.1-70B"].inner == 28672


def test_groups_of_down(text):
    import torch

    q = qlab.quantize(torch.randn(1, 28672), "int4-g128")
    groups = 28672 // smallest_piece(q, "columns")
    assert groups == 224 and groups % 8 == 0 and groups // 8 == 28 and groups % 64
    assert "there are 224 groups: 8 workers take 28 each, and 64 workers have no even share" in text


@given(p=st.integers(1, 12), m=st.integers(1, 40))
def test_waiting_in_a_pipeline(p, m):
    """(p - 1) / (m + p - 1): the last worker ends after m + p - 1 turns, m of them work."""
    end = [[0] * m for _ in range(p)]
    for i in range(p):
        for j in range(m):
            end[i][j] = 1 + max(end[i - 1][j] if i else 0, end[i][j - 1] if j else 0)
    assert end[-1][-1] == m + p - 1
    assert 1 - m / end[-1][-1] == pytest.approx((p - 1) / (m + p - 1))


def test_messages_of_stage_three_are_half_as_much_again(text):
    """Volumes a step, in parameters: reduce-scatter and all-gather move P each."""
    data_parallel, stage_three = 1 + 1, 2 + 1
    assert stage_three / data_parallel == 1.5 and "half as much again" in text
