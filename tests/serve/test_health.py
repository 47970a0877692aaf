"""Known prompts, repeated tokens, hashes: on small models of our own and on the engine."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab.engine
from qlab.errors import QlabError
from qlab.serve import health
from tests.engine.conftest import make


class Table:
    """A model whose logits depend on the last token alone."""

    def __init__(self, seed=0, vocabulary=17):
        self.table = np.random.default_rng(seed).normal(0, 2, (vocabulary, vocabulary))

    def logits(self, ids):
        return self.table[np.asarray(ids)].astype(np.float32)

    def generate(self, ids, count):
        last = int(ids[-1])
        for _ in range(count):
            last = int(self.table[last].argmax())
            yield last


PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]


def test_a_model_passes_its_own_probes_and_another_does_not():
    probes = health.make_probes(Table(), PROMPTS)
    found = health.examine(Table(), probes)
    assert found.ok and found.why == "all passed"
    assert [f.check for f in found.findings] == ["finite", "answers", "surprise"]
    other = health.examine(Table(1), probes)
    assert not other.ok and "answers" in other.why and "surprise" in other.why


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 3), st.integers(0, 100))
def test_the_surprise_is_the_mean_log_loss(noise, seed):
    model, other = Table(), Table()
    other.table = other.table + np.random.default_rng(seed).normal(0, noise, other.table.shape)
    probes = health.make_probes(model, PROMPTS)

    def loss(table, probe):
        ids = [*probe.prompt, *probe.answer]
        p = np.exp(table) / np.exp(table).sum(1, keepdims=True)
        return -np.mean([np.log(p[a, b]) for a, b in itertools.pairwise(ids)])

    grown = np.mean([loss(other.table, p) - loss(model.table, p) for p in probes])
    if abs(grown - 0.05) > 1e-4:  # on the very edge float32 decides
        found = health.examine(other, probes, agreement=0.0)
        assert found.ok == (grown <= 0.05), (grown, found.why)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_and_named(bad):
    broken = Table()
    broken.table[3, 5] = bad
    probes = health.make_probes(Table(), PROMPTS)
    found = health.examine(broken, probes)
    assert not found.ok and found.findings[0].check == "finite" and "of 3 probes" in found.why
    with pytest.raises(QlabError, match="healthy"):
        health.make_probes(broken, PROMPTS)


def test_no_probes_and_short_prompts_are_errors():
    with pytest.raises(QlabError, match="no probes"):
        health.examine(Table(), [])
    for prompts in ([], [[1]]):
        with pytest.raises(QlabError, match="two tokens"):
            health.make_probes(Table(), prompts)
    with pytest.raises(QlabError, match="repeats"):
        health.check_answer([1], repeats=0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=25),
    st.integers(1, 6),
)
def test_the_longest_repeat_is_the_longest(ids, most):
    best = 0
    for period in range(1, most + 1):
        for i in range(len(ids)):
            for j in range(i + 2 * period, len(ids) + 1):
                part = ids[i:j]
                if part[period:] == part[:-period]:
                    best = max(best, len(part) - period)
    found, block = health.longest_repeat(ids, most)
    assert found == best and (block == 0) == (best == 0) and block <= most


def test_an_answer_in_circles_fails():
    rng = np.random.default_rng(0)
    good = rng.integers(0, 100, 200).tolist()
    assert health.check_answer(good).passed and health.check_answer([]).passed
    for block in ([7], [7, 8], list(range(8))):
        assert not health.check_answer(good + block * (24 // len(block) + 2)).passed
        assert health.check_answer(good + block * 2).passed


def test_a_flipped_bit_changes_the_fingerprint_and_the_probes():
    model = make("llama")
    engine, twin = qlab.engine.load(model), qlab.engine.load(model)
    before = health.fingerprint(engine)
    assert before == health.fingerprint(twin)  # addresses differ, weights do not
    probes = health.make_probes(engine, [[1, 2, 3], [5, 4]], tokens=4)
    assert health.examine(twin, probes).ok
    engine.arrays.arena[100] ^= 0x40
    assert health.fingerprint(engine) != before
    engine.arrays.arena[100] ^= 0x40
    assert health.fingerprint(engine) == before
    engine.arrays.numbers[:] = np.nan  # the weights of the norms
    assert not health.examine(engine, probes).ok
