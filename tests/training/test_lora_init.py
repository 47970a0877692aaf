"""LoftQ and the SVD of the error: laws of low rank, peft's own function, and what is refused."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.training.lora import add_lora, lora_layers, merge
from qlab.training.lora_init import init_loftq, loftq
from tests.training.lora_cases import fill, llama


def matrix(seed, shape=(48, 64)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    word=st.sampled_from(["nf4-g8", "int2-channel", "int4-asym-g8"]),
    rank=st.integers(1, 16),
)
def test_one_round_leaves_the_smaller_singular_values(seed, word, rank):
    """Eckart and Young: of the error W - Q, the squares of all σ behind the first r."""
    w = matrix(seed, (16, 24))
    q, left, right = loftq(w, lambda x: qlab.quantize(x, word), rank)
    rest = (w - q.dequantize()).double()
    s = np.linalg.svd(rest.numpy(), compute_uv=False)
    error = float((rest - left.double() @ right.double()).square().sum())
    # The factors are rounded to float32: a relative 1e-6 of the whole at most.
    assert error == pytest.approx(float((s[rank:] ** 2).sum()), rel=1e-4, abs=1e-6 * (s**2).sum())


@pytest.mark.parametrize("w", [torch.zeros(8, 16), torch.ones(8, 16), torch.eye(16) * 1e4])
def test_hard_matrices(w):
    q, left, right = loftq(w, lambda x: qlab.quantize(x, "nf4-g16"), 2, 3)
    both = q.dequantize() + left @ right
    # Each is on the levels, or of rank 1.
    torch.testing.assert_close(both, w, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("word", ["nf4-g64", "int3-g64", "int2-asym-g64"])
@pytest.mark.parametrize("rank", [1, 8, 48])
def test_more_rank_and_more_rounds_never_hurt(word, rank):
    w = matrix(3)

    def quantize(x):
        return qlab.quantize(x, word)

    def error(parts):
        q, left, right = parts
        return float((w - q.dequantize() - left @ right).norm() / w.norm())

    alone = float((w - quantize(w).dequantize()).norm() / w.norm())
    one, five = error(loftq(w, quantize, rank)), error(loftq(w, quantize, rank, 5))
    assert five <= one + 1e-7 and one < alone
    assert torch.equal(loftq(w, quantize, rank)[0].packed, quantize(w).packed)
    if rank == 48:  # full rank: nothing is left but the rounding of two float32 factors
        assert one < 1e-4


@pytest.mark.oracle("training loftq", "peft", "the same adapters, to the precision of its SVD")
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_pefts_own_loftq(iterations, monkeypatch):
    """peft computes it on a GPU; its lines, told to stay on the CPU, give the same numbers."""
    from peft.utils import loftq_utils

    source = inspect.getsource(loftq_utils.loftq_init)
    assert source.count('"cuda"') == 1
    space = dict(vars(loftq_utils))
    exec(source.replace('"cuda"', '"cpu"'), space)
    w, rank = matrix(5, (96, 128)), 8
    theirs_q, theirs_a, theirs_b = space["loftq_init"](w, 4, rank, num_iter=iterations)

    def quantize(x):
        return qlab.quantize(x, "nf4-g64")

    # Round by round, since ours returns the best round and theirs the last.
    low = torch.zeros_like(w)
    for _ in range(iterations):
        q, left, right = loftq(w, quantize, rank, 1, quantize(w - low))
        low = left @ right
    # The first round quantizes the same numbers. Later ones quantize what differs in the last bits
    # (our SVD is of float64), which may carry a weight over a border of NF4.
    if iterations == 1:
        assert torch.equal(q.dequantize(), theirs_q)
    same = torch.isclose(q.dequantize(), theirs_q, rtol=1e-4, atol=1e-6)
    assert float(same.float().mean()) > 0.999
    gap = float((low - theirs_b @ theirs_a).norm() / low.norm())
    assert gap < (1e-4 if iterations == 1 else 2e-2)  # their SVD is of float32
    # And the best is no worse than their last.
    q, left, right = loftq(w, quantize, rank, iterations)
    ours = float((w - q.dequantize() - left @ right).norm())
    assert ours <= float((w - theirs_q - theirs_b @ theirs_a).norm()) * (1 + 1e-4)


@pytest.mark.parametrize("alpha", [4, 32])
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_model_begins_near_to_the_unquantized_one(alpha, iterations):
    model = llama()
    base, _ = qlab.quantize_model(model, "rtn", "int3-g64")
    lora = add_lora(base, 8, alpha)
    errors = init_loftq(lora, model, iterations)
    assert set(errors) == {n for n, _ in lora_layers(lora)}
    assert all(after < before for before, after in errors.values())
    whole = merge(lora)
    for name, (_, after) in errors.items():
        w, near = (m.get_submodule(name).weight for m in (model, whole))
        assert float((w - near).norm() / w.norm()) == pytest.approx(after, rel=1e-3)
    ids = torch.arange(3, 60).reshape(1, -1)
    far, near = (float((model(ids).logits - m(ids).logits).norm()) for m in (base, lora))
    assert near < far
    if iterations == 1:
        for name, layer in lora_layers(lora):
            assert torch.equal(layer.base.packed, base.get_submodule(name).packed)


def test_what_is_refused():
    model = llama()
    base, _ = qlab.quantize_model(model, "rtn", "int4-g64")
    lora = add_lora(base, 2)
    with pytest.raises(qlab.QlabError, match="without data"):
        init_loftq(lora, model, method="gptq")
    with pytest.raises(qlab.QlabError, match="at least one iteration"):
        init_loftq(lora, model, 0)
    with pytest.raises(qlab.QlabError, match="no adapter lies on a quantized layer"):
        init_loftq(fill(add_lora(model, 2)), model)
    with pytest.raises(qlab.QlabError, match="has no layer"):
        init_loftq(lora, torch.nn.Linear(2, 2))
