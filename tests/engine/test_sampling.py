"""Sampling: the distribution is that of transformers' filters, and the seed decides the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.engine import sample
from qlab.engine.layers import exponential
from qlab.kernels.cpu.jit import jit


@jit()
def spread(logits, how, kept, weights, out):
    """Probabilities of all tokens."""
    out[:] = 0.0
    size, total = sample.candidates(logits, how, kept, weights)
    for i in range(size):
        out[kept[i]] = weights[kept[i]] / total


@jit()
def draw_many(logits, how, state, kept, weights, out):
    for i in range(len(out)):
        out[i] = sample.choose(logits, how, state, kept, weights)


@jit()
def exponentials(x, out):
    for i in range(len(x)):
        out[i] = exponential(x[i])


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    text=st.lists(st.integers(0, 59), min_size=1, max_size=80),
    penalty=st.sampled_from([0.5, 1.0, 1.15, 3.0]),
)
def test_the_penalty_is_that_of_transformers_bit_for_bit(seed, n, text, penalty):
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    text = [token % n for token in text]
    logits = (np.random.default_rng(seed).standard_normal(n) * 3).astype(np.float32)
    logits[seed % n] = 0.0
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([text]), torch.from_numpy(logits.copy())[None]
    )
    seen = np.zeros(n, np.bool_)
    seen[text] = True
    sample.penalize(logits, seen, penalty)
    # torch multiplies by the float64 number: one rounding at the end, where the number is exact.
    exact = float(np.float32(penalty)) == penalty
    np.testing.assert_allclose(logits, theirs[0].numpy(), rtol=0 if exact else 2e-7)


def probabilities(logits, how):
    n, out = len(logits), np.zeros(len(logits))
    spread(logits, how, np.empty(n, np.int64), np.empty(n, np.float32), out)
    return out


def theirs(logits, how):
    """transformers' own filters, one after the other."""
    from transformers.generation import logits_process as t

    x = torch.from_numpy(logits)[None] / how.temperature
    if how.top_k:
        x = t.TopKLogitsWarper(how.top_k)(None, x)
    if how.top_p < 1:
        x = t.TopPLogitsWarper(how.top_p)(None, x)
    if how.min_p:
        x = t.MinPLogitsWarper(how.min_p)(None, x)
    return torch.softmax(x, -1)[0].numpy()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([1.0, 0.05, 0.33, 0.7, 0.95]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)
def test_the_distribution_is_that_of_transformers(seed, n, temperature, top_k, top_p, min_p):
    logits = (np.random.default_rng(seed).standard_normal(n) * 3).astype(np.float32)
    how = sample.choice(temperature, top_k, top_p, min_p)
    ours, expected = probabilities(logits, how), theirs(logits, how)
    if (ours > 0).sum() != (expected > 0).sum():
        # A limit that is met to the last bit of float32 may fall either way: then without it.
        tail = np.sort(expected[expected > 0])
        assert abs((ours > 0).sum() - len(tail)) == 1 and np.abs(ours - expected).max() < 0.5
        return
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)


def test_equal_logits_and_one_token():
    flat = np.zeros(8, np.float32)
    np.testing.assert_allclose(probabilities(flat, sample.choice(1.0)), 1 / 8)
    assert (probabilities(flat, sample.choice(1.0, top_k=3)) > 0).sum() == 3
    assert (probabilities(flat, sample.choice(1.0, top_p=0.5)) > 0).sum() == 4
    assert (probabilities(flat, sample.choice(1.0, min_p=1.0)) > 0).sum() == 8
    assert probabilities(flat[:1], sample.choice(0.5, 4, 0.1, 0.9)) == [1.0]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = np.array([2.0, 1.0, 0.0, -1.0, -60.0], np.float32)
    n, many = len(logits), 20_000
    for how in (sample.choice(1.0), sample.choice(2.0, top_k=2), sample.choice(0.7, top_p=0.9)):
        out = np.empty(many, np.int64)
        room = np.empty(n, np.int64), np.empty(n, np.float32)
        draw_many(logits, how, np.array([3], np.uint64), *room, out)
        share = np.bincount(out, minlength=n) / many
        # Four standard deviations of a share.
        np.testing.assert_allclose(share, probabilities(logits, how), atol=4 * 0.5 / many**0.5)


def test_the_generator_is_splitmix64():
    """Its first numbers from the seed 1234567, as published with the algorithm's test vectors."""
    state = np.array([1234567], np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for value in expected:
        assert sample.next_uniform(state) == (value >> 11) / 2**53


def test_greedy_takes_the_first_of_equals():
    logits = np.array([1.0, 5.0, 5.0, -3.0], np.float32)
    assert sample.likeliest(logits) == 1


def test_exponential_is_close_everywhere():
    x = np.linspace(-87, 88, 200_001).astype(np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    assert np.abs(out / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    ends = np.array([-1e30, 1e30, -0.0, 0.0], np.float32)
    out = np.empty_like(ends)
    exponentials(ends, out)
    assert out[0] < 1e-37 and out[1] > 1e38 and out[2] == out[3] == 1


@pytest.mark.parametrize("bad", [0, 1])
def test_the_heap_never_loses_a_token(bad):
    rng = np.random.default_rng(bad)
    logits = rng.standard_normal(500).astype(np.float32)
    kept, weights = np.empty(500, np.int64), np.empty(500, np.float32)
    size, _ = sample.candidates(logits, sample.choice(1.0, top_k=499), kept, weights)
    assert size == 499 and list(kept[:499]) == list(np.argsort(-logits)[:499])
