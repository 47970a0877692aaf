"""Intervals of shares, McNemar's test and numbers of texts, beside scipy and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qlab.errors import QlabError
from qlab.evaluate.bootstrap import perplexity_ratio
from qlab.evaluate.perplexity import TextScore
from qlab.evaluate.significance import mcnemar, texts_needed, wilson


@pytest.mark.oracle("evaluate wilson", "scipy", "equal intervals to 1e-9")
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case):
    right, count = case
    ours = wilson(right, count)
    theirs = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= ours.value <= ours.high


def test_wilson_covers_as_it_says():
    """Over all outcomes of 60 questions: the chance that the interval holds the true share."""
    for share in (0.25, 0.5, 0.8):
        holds = [wilson(k, 60).low <= share <= wilson(k, 60).high for k in range(61)]
        chance = stats.binom.pmf(np.arange(61), 60, share) @ np.array(holds)
        assert 0.92 < chance < 0.98  # discrete: it cannot be 0.95 everywhere


@pytest.mark.oracle("evaluate mcnemar", "scipy", "equal p-values to 1e-9")
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_mcnemar_is_a_binomial_test_of_what_differs(pairs):
    first, second = zip(*pairs, strict=True)
    found = mcnemar(first, second)
    b, c = found.lost, found.gained
    assert sum(second) - sum(first) == c - b
    if b + c:
        assert found.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue, abs=1e-9)
    else:
        assert found.p_value == 1
    assert mcnemar(second, first).p_value == found.p_value


def test_the_published_form_is_its_limit():
    """McNemar's own statistic, (b - c)² / (b + c), is chi-squared with one degree of freedom for
    many answers: 42² / 160 = 11.0, p about 0.0009; the exact p is a little larger."""
    first = [True] * 101 + [False] * 59
    second = [False] * 101 + [True] * 59
    approximate = stats.chi2.sf((101 - 59) ** 2 / 160, 1)
    assert mcnemar(first, second).p_value == pytest.approx(approximate, rel=0.4)
    assert mcnemar(first, second).p_value > approximate


def texts(rng, count, shift=0.0, spread=0.02):
    """Baseline and model: as many nats as tokens on average, texts that differ much."""
    tokens = rng.integers(150, 300, count)
    base = tokens * rng.normal(3.4, 0.3, count)
    moved = base + tokens * rng.normal(shift, spread, count)
    pair = [(float(a), float(b), int(t)) for a, b, t in zip(base, moved, tokens, strict=True)]
    return [TextScore(a, t) for a, _, t in pair], [TextScore(b, t) for _, b, t in pair]


def test_pairs_need_far_fewer_texts():
    base, moved = texts(np.random.default_rng(0), 400)
    paired, alone = texts_needed(moved, base), texts_needed(moved)
    assert paired < alone / 50
    # Texts spread by 0.02 nats a token: ((1.96 + 0.84) · 0.02 / 0.00995)² = 31.7, and by 0.3 nats
    # for two models on texts of their own 2 · 0.3² instead: 14,200. Samples move both a little.
    assert 22 < paired < 45 and 10_000 < alone < 19_000
    assert texts_needed(moved, base, change=0.02) == pytest.approx(paired / 4, rel=0.15)


def test_so_many_texts_do_show_it():
    """With the number that it says, a true change of 1% is seen in about 80% of samples."""
    rng = np.random.default_rng(1)
    count = texts_needed(*reversed(texts(rng, 2000)))
    seen = 0
    for seed in range(60):
        base, moved = texts(rng, count, shift=math.log(1.01))
        seen += perplexity_ratio(moved, base, resamples=400, seed=seed).low > 1
    assert 0.62 < seen / 60 < 0.97  # 80% of 60: three deviations are 15 points


def test_bad_numbers_are_refused():
    base, moved = texts(np.random.default_rng(2), 5)
    for call, words in (
        (lambda: wilson(3, 2), "3 right of 2"),
        (lambda: wilson(0, 0), "0 right of 0"),
        (lambda: wilson(1, 2, confidence=1.5), "confidence 1.5"),
        (lambda: mcnemar([True], []), "1 and 0 answers"),
        (lambda: mcnemar([], []), "0 and 0 answers"),
        (lambda: texts_needed(base[:1]), "1 texts"),
        (lambda: texts_needed(moved, base[:4]), "different texts"),
        (lambda: texts_needed(moved, base, change=0), "change 0"),
        (lambda: texts_needed(moved, base, power=1.0), "power 1.0"),
    ):
        with pytest.raises(QlabError, match=words):
            call()
