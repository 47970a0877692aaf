"""Requests get the tokens that they would get alone, nothing leaks, and nobody waits forever."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.serve import Request, Scheduler

from .conftest import ToyModel
from .test_blocks import check

prompts = st.lists(st.integers(1, 4), min_size=1, max_size=20)  # few tokens, so many begin alike


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_answers_are_those_given_alone(data):
    size, running = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    longest = 20 + 12
    blocks = -(-longest // size) + data.draw(st.integers(0, 10))
    model = ToyModel(blocks, size)
    budget = data.draw(st.integers(running, 40))
    scheduler = Scheduler(model, running, step_tokens=budget, share=data.draw(st.booleans()))
    todo = [
        Request(prompt, data.draw(st.integers(1, 12)), stop=data.draw(st.sampled_from([None, ()])))
        for prompt in data.draw(st.lists(prompts, min_size=1, max_size=10))
    ]
    arrive = data.draw(
        st.lists(st.integers(0, 15), min_size=len(todo), max_size=len(todo)).map(sorted)
    )
    handles, gone, events = [], set(), []
    for step in range(2000):
        while len(handles) < len(todo) and arrive[len(handles)] <= step:
            handles.append(scheduler.submit(todo[len(handles)]))
        if handles and data.draw(st.integers(0, 19)) == 0:
            handle = data.draw(st.sampled_from(handles))
            if scheduler.cancel(handle):
                gone.add(handle.id)
        oldest = min(scheduler.running + scheduler.waiting, key=lambda h: h.id, default=None)
        before = oldest and (oldest.unread, len(oldest.tokens))
        here = scheduler.step()
        events += here
        check(scheduler.pool, [h.table for h in scheduler.running])
        assert len(scheduler.running) <= running
        assert sum(e.count for e in here if e.kind == "read") <= budget
        # The oldest is never preempted and always gets on.
        if oldest is not None:
            assert not any(e.kind == "preempted" and e.handle is oldest for e in here)
            assert oldest.finish_reason or before != (oldest.unread, len(oldest.tokens))
        if len(handles) == len(todo) and not scheduler.busy:
            break
    assert not scheduler.busy and scheduler.pool.free == blocks
    for handle in handles:
        tokens, reason = model.alone(handle.request)
        if handle.id in gone:
            assert handle.finish_reason == "cancelled"
            assert handle.tokens == tokens[: len(handle.tokens)]
        else:
            assert (handle.tokens, handle.finish_reason) == (tokens, reason)
    told = Counter(e.handle.id for e in events if e.kind == "token")
    assert told == Counter({h.id: len(h.tokens) for h in handles if h.tokens})
    assert scheduler.written_tokens == sum(told.values())
    assert scheduler.preemptions == sum(h.preempted for h in handles)


def test_requests_that_begin_alike_share_blocks_and_copy_on_write():
    model = ToyModel(40, 4)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    scheduler = Scheduler(model, 8)
    handles = [scheduler.submit(Request(prompt, 6, stop=(), seed=i)) for i in range(4)]
    events = scheduler.step()  # the others wait for the first to have read
    assert [e.handle.id for e in events if e.kind == "admitted"] == [0]
    events = scheduler.step()
    assert [h.shared for h in handles] == [0, 9, 9, 9]
    # The last token of the prompt is read again by each, into a block of its own. The first text
    # writes into that block as well.
    assert sum(e.kind == "copied" for e in events) == 3
    used = scheduler.pool.count - scheduler.pool.free
    assert used == 2 + 4  # two whole blocks of all, a last one of each
    scheduler.run()
    assert {tuple(h.tokens) for h in handles} == {tuple(model.alone(handles[0].request)[0])}
    assert scheduler.read_tokens == 10 + 3 + 4 * 5


def test_a_long_prompt_does_not_keep_others_from_writing():
    model = ToyModel(40, 4, context=128)
    scheduler = Scheduler(model, 4, step_tokens=8)
    writer = scheduler.submit(Request([1, 2, 3], 30, stop=()))
    scheduler.step()
    reader = scheduler.submit(Request([5] * 60, 4, stop=()))
    for i in range(8):
        scheduler.step()
        assert len(writer.tokens) == i + 2  # a token each step
    assert reader.table.length == 8 * 7  # 7 places of the 8 were left for the prompt
    scheduler.run()
    for handle in (writer, reader):
        assert handle.tokens == model.alone(handle.request)[0]


def test_the_last_to_come_is_preempted_and_ends_well():
    model = ToyModel(8, 4)
    scheduler = Scheduler(model, 4)
    handles = [scheduler.submit(Request([i] * 6, 14, stop=())) for i in (1, 2, 3)]
    events = scheduler.run()
    hit = [e.handle.id for e in events if e.kind == "preempted"]
    assert hit and 0 not in hit and scheduler.preemptions == len(hit)
    for handle in handles:
        assert handle.tokens == model.alone(handle.request)[0]
    ended = [e.handle.id for e in events if e.kind == "finished"]
    assert ended[0] == 0


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(prompt=[]), "no tokens"),
        (dict(prompt=[97]), "knows 0 to 96"),
        (dict(prompt=[-1]), "knows 0 to 96"),
        (dict(max_tokens=0), "at least 1"),
        (dict(max_tokens=64), "takes 64"),
        (dict(max_tokens=40), "larger cache"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(top_p=0.0), "top_p"),
        (dict(min_p=2.0), "min_p"),
        (dict(top_k=-1), "top_k"),
        (dict(repetition_penalty=0.0), "repetition_penalty"),
        (dict(logprobs=-1), "logprobs"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_at_once(change, said):
    scheduler = Scheduler(ToyModel(8, 4), 2)
    with pytest.raises(QlabError, match=said):
        scheduler.submit(Request(**{"prompt": [1, 2], **change}))
    assert not scheduler.busy


def test_settings_out_of_range():
    with pytest.raises(QlabError, match="max_running 0"):
        Scheduler(ToyModel(8, 4), 0)
    with pytest.raises(QlabError, match="step_tokens 3"):
        Scheduler(ToyModel(8, 4), 4, step_tokens=3)


def test_log_probabilities_are_those_of_the_logits():
    model = ToyModel(8, 4)
    scheduler = Scheduler(model, 1)
    handle = scheduler.submit(Request([1, 2, 3], 5, stop=(), logprobs=3))
    text = [1, 2, 3]
    for event in scheduler.run():
        if event.kind != "token":
            continue
        z = model.logits_after(text).astype(np.float64)
        p = np.exp(z) / np.exp(z).sum()
        assert np.isclose(np.exp(event.logprob), p[event.token], rtol=1e-12)
        assert [i for i, _ in event.top] == np.argsort(-p)[:3].tolist()
        assert event.top[0] == (event.token, event.logprob)  # greedy
        text.append(event.token)
    assert text[3:] == handle.tokens


def test_a_seed_gives_the_same_text_in_any_company():
    def told(company):
        scheduler = Scheduler(ToyModel(60, 4), 8, step_tokens=16)
        mine = scheduler.submit(Request([1, 2, 3], 12, 0.9, top_k=40, seed=5, stop=()))
        for i in range(company):
            scheduler.submit(Request([1, 2, i + 4], 12, 0.9, seed=i, stop=()))
        scheduler.run()
        return mine.tokens

    assert told(0) == told(7)
    other = Scheduler(ToyModel(60, 4), 8)
    handle = other.submit(Request([1, 2, 3], 12, 0.9, top_k=40, seed=6, stop=()))
    other.run()
    assert handle.tokens != told(0)


def test_times_follow_the_clock():
    ticks = iter(range(100))
    scheduler = Scheduler(ToyModel(8, 4), 1, clock=lambda: float(next(ticks)))
    handle = scheduler.submit(Request([1], 3, stop=()))
    scheduler.run()
    assert handle.arrived < handle.first_token < handle.finished
