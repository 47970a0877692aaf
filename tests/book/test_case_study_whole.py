"""What the last telling of the case study says of intervals and of winners, on input of our own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.evaluate.bootstrap import perplexity_ratio
from qlab.evaluate.perplexity import TextScore
from qlab.study.rows import mean_interval


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-0.5, 0.5))
def test_the_ratio_is_that_of_the_two_perplexities(seed, shift):
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 300, 12)
    nll = tokens * random.uniform(2, 4, 12)
    whole = [TextScore(float(a), int(n)) for a, n in zip(nll, tokens, strict=True)]
    other = [TextScore(s.nll + shift * s.tokens, s.tokens) for s in whole]
    found = perplexity_ratio(other, whole)
    # Every story lost the same for each token: pairing leaves no chance at all.
    assert found.value == pytest.approx(np.exp(shift), rel=1e-9)
    assert found.low == pytest.approx(found.high, rel=1e-9)


def test_the_interval_holds_what_it_promises():
    random = np.random.default_rng(0)
    held, trials, true = 0, 300, 1.7
    for _ in range(trials):
        _, low, high = mean_interval(random.gamma(2, true / 2, 28), [1] * 28)
        held += low <= true <= high
    # 95%, less a little: 28 draws of a skewed quantity (Efron and Tibshirani 1993, chapter 13).
    # Of 300 trials the share is known to 1.5%.
    assert 0.88 <= held / trials <= 0.985


def test_the_winner_of_equals_looks_better_than_it_is():
    random = np.random.default_rng(1)
    gaps = []
    for _ in range(200):
        noise = random.normal(size=(20, 28))
        seen, kept = noise[:, :14].mean(1), noise[:, 14:].mean(1)
        gaps.append(kept[seen.argmin()] - seen.min())
    # The expected least of 20 standard normals is -1.87; a mean of 14 is 14^½ times narrower.
    assert np.mean(gaps) == pytest.approx(1.87 / 14**0.5, rel=0.15)
