"""What the chapter on serving says, on input of our own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab.engine
from qlab.serve import Request, Scheduler
from qlab.serve.toy import continuous_cost, static_cost
from tests.engine.conftest import make

seeds = st.integers(0, 2**32 - 1)


def static_steps(new, places):
    """The chapter's."""
    return sum(max(new[i : i + places]) for i in range(0, len(new), places))


def continuous_steps(new, places):
    """The chapter's."""
    waiting, running, steps = list(new), [], 0
    while waiting or running:
        while waiting and len(running) < places:
            running.append(waiting.pop(0))
        running = [left - 1 for left in running if left > 1]
        steps += 1
    return steps


@settings(max_examples=60, deadline=None)
@given(new=st.lists(st.integers(1, 20), min_size=1, max_size=20), places=st.integers(1, 6))
def test_the_chapters_steps_are_the_schedulers(new, places):
    read = [3] * len(new)
    assert static_cost(read, new, places).steps == static_steps(new, places)
    assert continuous_cost(read, new, places, 4).steps == continuous_steps(new, places)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.integers(1, 9), length=st.integers(1, 40))
def test_attention_through_a_table_is_attention(seed, size, length):
    rng = np.random.default_rng(seed)
    query, keys, values = rng.standard_normal(8), *rng.standard_normal((2, length, 8))
    table = rng.permutation(60)[: -(-length // size)]
    memory = np.full((2, 60, size, 8), np.nan)
    for t in range(length):
        memory[:, table[t // size], t % size] = keys[t], values[t]
    k, v = (np.array([m[table[t // size], t % size] for t in range(length)]) for m in memory)

    def attention(k, v):
        e = np.exp(k @ query - (k @ query).max())
        return e / e.sum() @ v

    np.testing.assert_array_equal(attention(k, v), attention(keys, values))


@pytest.mark.parametrize("size", [2, 7, 16, 64])
def test_half_a_block_is_wasted_on_average(size):
    waste = [-(-n // size) * size - n for n in range(1, 40 * size + 1)]
    assert np.mean(waste) == (size - 1) / 2 and max(waste) == size - 1


def test_speculative_decoding_changes_no_token():
    """The chapter's solution, with a draft that is mostly wrong."""
    big = qlab.engine.load(make("llama"))
    draft = qlab.engine.load(make("llama", num_hidden_layers=1))
    start = [1, 2, 3]
    told, calls, taken = list(start), 0, 0
    while len(told) < len(start) + 40:
        proposed = list(draft.generate(told, 4, stop=()))
        likeliest = big.logits(told + proposed).argmax(1)[len(told) - 1 :]
        good = next((i for i, t in enumerate(proposed) if t != likeliest[i]), len(proposed))
        told += [*proposed[:good], int(likeliest[good])]
        calls, taken = calls + 1, taken + good
    # Weights as clear as these leave no close decision to another order of sums.
    assert told[: len(start) + 40] == start + list(big.generate(start, 40, stop=()))
    assert calls + taken == len(told) - len(start)


def test_the_scheduler_on_the_engine_gives_back_every_block():
    engine = qlab.engine.load(make("llama"))
    rng = np.random.default_rng(5)
    asks = [Request(rng.integers(0, 131, 5 + 6 * i), 24, stop=()) for i in range(8)]
    scheduler = Scheduler(engine, 3, 4, 32)
    handles = [scheduler.submit(r) for r in asks]
    scheduler.run()
    assert scheduler.preemptions and scheduler.pool.free == 4
    for ask, handle in zip(asks, handles, strict=True):
        alone = Scheduler(engine)
        one = alone.submit(ask)
        alone.run()
        assert one.tokens == handle.tokens
