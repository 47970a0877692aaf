"""Exact allocation against trying everything; the bootstrap against a normal distribution."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from qlab.errors import QlabError
from qlab.evaluate.allocation import Choice, allocate, frontier
from qlab.evaluate.bootstrap import perplexity_interval, perplexity_ratio
from qlab.evaluate.perplexity import TextScore

a_choice = st.builds(
    Choice, st.sampled_from("abcd"), st.integers(0, 30), st.integers(0, 40).map(float)
)
some_layers = st.lists(st.lists(a_choice, min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(some_layers, st.integers(0, 120))
def test_no_set_of_choices_is_cheaper(lists, budget):
    choices = {f"layer{i}": options for i, options in enumerate(lists)}
    sets = [
        (sum(c.nbytes for c in every), sum(c.cost for c in every))
        for every in itertools.product(*lists)
    ]
    fitting = [cost for nbytes, cost in sets if nbytes <= budget]
    if not fitting:
        with pytest.raises(QlabError, match=f"{min(n for n, _ in sets):,} bytes"):
            allocate(choices, budget)
        return
    found = allocate(choices, budget)
    assert found.cost == min(fitting)
    assert found.nbytes <= budget
    # The schemes are those whose bytes and cost are stated.
    options = [
        [(c.nbytes, c.cost) for c in lists[i] if c.scheme == found.schemes[f"layer{i}"]]
        for i in range(len(lists))
    ]
    assert (found.nbytes, found.cost) in {
        (sum(n for n, _ in every), sum(c for _, c in every))
        for every in itertools.product(*options)
    }


@settings(max_examples=50, deadline=None)
@given(some_layers)
def test_the_frontier_falls(lists):
    points = frontier({f"layer{i}": options for i, options in enumerate(lists)})
    sizes, costs = [p.nbytes for p in points], [p.cost for p in points]
    assert sizes == sorted(set(sizes))
    assert costs == sorted(set(costs), reverse=True)


def test_a_model_of_many_layers_is_quick():
    random = np.random.default_rng(0)
    schemes = [("int2", 2), ("int3", 3), ("int4", 4), ("int5", 5), ("int6", 6), ("int8", 8)]
    weights = random.choice([65_536, 196_608, 262_144], 200)
    choices = {
        f"layer{i}": [Choice(s, int(w * b // 8), float(w * 4.0**-b)) for s, b in schemes]
        for i, w in enumerate(weights)
    }
    found = allocate(choices, int(weights.sum() * 4 // 8))
    assert found.nbytes <= weights.sum() * 4 // 8
    # The cost is the same for each weight, and convex in bits: four bits everywhere is the best.
    assert set(found.schemes.values()) == {"int4"}


def test_bad_input_is_named():
    with pytest.raises(QlabError, match="no layers"):
        allocate({}, 10)
    with pytest.raises(QlabError, match="layer 'x' has no choice"):
        allocate({"x": []}, 10)
    with pytest.raises(QlabError, match="cost of 'int4' is nan"):
        allocate({"x": [Choice("int4", 1, math.nan)]}, 10)


def test_the_interval_of_a_mean_is_the_textbooks():
    random = np.random.default_rng(1)
    losses = random.normal(3.0, 0.2, 400)
    scores = [TextScore(float(x) * 100, 100) for x in losses]
    found = perplexity_interval(scores, resamples=4000)
    half = 1.96 * losses.std(ddof=1) / math.sqrt(400)
    assert math.log(found.value) == pytest.approx(losses.mean())
    # The ends of 4000 resamples are known to about a twentieth of the half width.
    assert math.log(found.low) == pytest.approx(losses.mean() - half, abs=0.1 * half)
    assert math.log(found.high) == pytest.approx(losses.mean() + half, abs=0.1 * half)


def test_pairs_see_a_difference_that_intervals_hide():
    random = np.random.default_rng(2)
    hard = random.normal(3.0, 0.5, 60)
    better = [TextScore(float(x) * 50, 50) for x in hard]
    harder = hard + random.normal(0.02, 0.02, 60)
    worse = [TextScore(float(x) * 50, 50) for x in harder]
    a, b = perplexity_interval(better), perplexity_interval(worse)
    assert b.low < a.high, "the intervals overlap"
    ratio = perplexity_ratio(better, worse)
    assert ratio.high < 1, "and yet one is better"
    same = perplexity_ratio(better, better)
    assert (same.low, same.value, same.high) == (1, 1, 1)


def test_scores_of_other_texts_are_refused():
    one = [TextScore(10.0, 5), TextScore(10.0, 5)]
    with pytest.raises(QlabError, match="same"):
        perplexity_ratio(one, [TextScore(10.0, 5), TextScore(10.0, 6)])
    with pytest.raises(QlabError, match="at least two"):
        perplexity_interval(one[:1])
    with pytest.raises(QlabError, match="confidence 95"):
        perplexity_interval(one, confidence=95)
