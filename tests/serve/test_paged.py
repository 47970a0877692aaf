"""The paged cache gives the engine's own numbers, and they depend on nothing beside the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
import qlab.engine
from qlab.errors import QlabError
from qlab.serve import Request, Scheduler
from qlab.serve.paged import PagedEngine
from tests.engine.conftest import SHAPES, make


def paged_logits(engine, texts, order, kind="fp32", pieces=(1000,)):
    """Logits after each text, read together, each in blocks that ``order`` scatters."""
    blocks = [-(-len(t) // 32) for t in texts]
    paged = PagedEngine(engine, sum(blocks), kind)
    tables = np.zeros((len(texts), max(blocks)), np.int64)
    at = 0
    for i, count in enumerate(blocks):
        tables[i, :count] = order[at : at + count]
        at += count
    begin, found = [0] * len(texts), {}
    for piece in (*pieces, 1000):
        rows, wanted, whom = [], [], []
        for i, text in enumerate(texts):
            part = text[begin[i] : begin[i] + piece]
            rows += [(t, i, begin[i] + j) for j, t in enumerate(part)]
            begin[i] += len(part)
            if part and begin[i] == len(text):
                wanted.append(len(rows) - 1)
                whom.append(i)
        if rows:
            logits = paged.read(np.array(rows, np.int64), tables, np.array(wanted, np.int64))
            found.update(zip(whom, logits, strict=True))
    return np.stack([found[i] for i in range(len(texts))])


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_same_bits_as_the_cache_in_one_piece(shape, kind):
    """Two texts, so that both ways multiply more than one row at a time."""
    engine = qlab.engine.load(make(shape))
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 131, n).tolist() for n in (70, 33)]
    cache = engine.cache(96, 2, kind)
    rows = [(t, i, p) for i, text in enumerate(texts) for p, t in enumerate(text)]
    whole = engine._forward(np.array(rows, np.int64), np.array([69, 102]), cache)
    ours = paged_logits(engine, texts, [4, 0, 3, 1, 2], kind)
    np.testing.assert_array_equal(ours, whole)


@pytest.mark.parametrize("scheme", [None, "int4-g32", "int8-channel", "nf4-g64"])
def test_a_text_does_not_depend_on_what_is_computed_beside_it(scheme):
    model = make("llama", intermediate_size=128)
    if scheme is not None:
        model, _ = qlab.quantize_model(model, "rtn", scheme)
    engine = qlab.engine.load(model)

    @settings(max_examples=12, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), company=st.integers(0, 9), piece=st.integers(1, 50))
    def check(seed, company, piece):
        rng = np.random.default_rng(seed)
        texts = [rng.integers(0, 131, rng.integers(1, 60)).tolist() for _ in range(company + 1)]
        order = rng.permutation(sum(-(-len(t) // 32) for t in texts))
        alone = paged_logits(engine, texts[:1], range(2))
        np.testing.assert_array_equal(
            paged_logits(engine, texts, order, pieces=(piece,))[:1], alone
        )

    check()


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.9, "top_k": 30, "top_p": 0.95},
        {"repetition_penalty": 1.2},
    ],
)
def test_under_load_and_out_of_memory_the_texts_are_those_of_the_engine(sampling):
    engine = qlab.engine.load(make("llama"))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 131, n).tolist() for n in (1, 5, 40, 33, 64, 7, 100)]
    prompts += [[*prompts[2][:35], 3, 4], prompts[2]]
    expected = [list(engine.generate(p, 40, stop=(), seed=7, **sampling)) for p in prompts]
    for blocks in (None, 12, 6):
        scheduler = Scheduler(engine, 6, blocks, step_tokens=30)
        handles = [scheduler.submit(Request(p, 40, stop=(), seed=7, **sampling)) for p in prompts]
        scheduler.run()
        # The engine alone adds in another order; weights as clear as these leave no close decision.
        assert [h.tokens for h in handles] == expected
        assert scheduler.pool.free == scheduler.pool.count
        assert blocks is None or scheduler.preemptions
        assert scheduler.shared_tokens


def test_sharing_changes_no_bit(engine, story):
    """Samples of one prompt, with and without shared blocks."""
    ids = story.tokenizer(story.validation()[0])["input_ids"][:45]
    told = {}
    for share in (True, False):
        scheduler = Scheduler(engine, 8, share=share)
        handles = [
            scheduler.submit(Request(ids, 24, 0.8, seed=i, stop=(), logprobs=1)) for i in range(6)
        ]
        told[share] = [
            (e.handle.id, e.token, e.logprob)
            for e in sorted(scheduler.run(), key=lambda e: e.handle.id)
            if e.kind == "token"
        ]
        assert all(h.shared == (44 if share and h.id else 0) for h in handles)
    assert told[True] == told[False]
    assert len({tuple(t for i, t, _ in told[True] if i == j) for j in range(6)}) > 1


def test_no_blocks_and_no_such_kind():
    engine = qlab.engine.load(make("llama"))
    with pytest.raises(QlabError, match="at least 1"):
        PagedEngine(engine, 0)
    with pytest.raises(QlabError, match="choose fp32 or int8"):
        PagedEngine(engine, 4, "int2")
