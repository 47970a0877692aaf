"""What is watched, and what two ways of batching cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.serve import Request, Scheduler
from qlab.serve.toy import Toy, continuous_cost, static_cost, watch

texts = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 15)), min_size=1, max_size=14)


@settings(max_examples=80, deadline=None)
@given(texts=texts, places=st.integers(1, 5), size=st.integers(1, 9))
def test_costs_have_their_bounds(texts, places, size):
    read, new = zip(*texts, strict=True)
    fixed, flowing = static_cost(read, new, places), continuous_cost(read, new, places, size)
    least = -(-sum(new) // places)
    # List scheduling takes at most the average load and the longest text together (Graham 1969).
    assert least <= flowing.steps <= fixed.steps
    assert flowing.steps <= sum(new) / places + max(new)
    for cost in (fixed, flowing):
        assert cost.working == pytest.approx(sum(new) / (cost.steps * places))
        assert 0 <= cost.waste < 1
    # Every token is in the cache in the same number of steps, in whatever batch.
    total = sum(p * n + n * (n - 1) // 2 for p, n in texts)
    assert flowing.used == total and fixed.used >= total
    assert flowing.held <= total + (size - 1) * sum(new)
    assert continuous_cost(read, new, places, 1).waste == 0
    assert static_cost(read, new, places, room=30).held >= fixed.held


@settings(max_examples=60, deadline=None)
@given(texts=texts, places=st.integers(1, 4), extra=st.integers(0, 6), data=st.data())
def test_frames_tell_one_story(texts, places, extra, data):
    blocks = max(-(-(p + n) // 4) for p, n in texts) + extra
    arrivals = sorted(data.draw(st.lists(st.integers(0, 9), min_size=len(texts), max_size=99)))
    arrivals = arrivals[: len(texts)]
    requests = [Request([i % 7] * p, n, stop=()) for i, (p, n) in enumerate(texts)]
    scheduler = Scheduler(Toy(blocks, 4), places, step_tokens=places + 5)
    frames = watch(scheduler, requests, arrivals)
    for i, (frame, arrived) in enumerate(
        (f, sum(a <= s for a in arrivals)) for s, f in enumerate(frames)
    ):
        assert len(frame.states) == len(texts)
        assert frame.states.count("-") == len(texts) - arrived, i
        assert sum(s in "rti" for s in frame.states) <= places + len(frame.said)
        assert all(bool(o) == bool(n) for o, n in zip(frame.owners, frame.filled, strict=True))
        listed = {o for owners in frame.owners for o in owners}
        assert all(frame.states[o] in "rti" for o in listed)
    assert scheduler.preemptions == sum("preempted" in s for f in frames for s in f.said)
    assert sum("has ended" in s for f in frames for s in f.said) == len(texts)
    assert frames[-1].used == 0


def test_arrivals_must_be_in_order_and_the_end_must_come():
    one = Request([1], 3, stop=())
    with pytest.raises(QlabError, match="in order"):
        watch(Scheduler(Toy(4, 4), 1), [one, one], [3, 1])
    with pytest.raises(QlabError, match="in order"):
        watch(Scheduler(Toy(4, 4), 1), [one, one], [3])
    with pytest.raises(QlabError, match="after 2 steps"):
        watch(Scheduler(Toy(4, 4), 1), [one], most=2)


def test_a_toy_writes_ones():
    toy = Toy(4, 4)
    logits = toy.read(np.zeros((2, 3), np.int64), np.zeros((1, 1), np.int64), np.array([1]))
    assert logits.shape == (1, 100) and logits.argmax() == 1
