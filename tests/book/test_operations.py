"""What the chapter on operations writes in the open, on input of our own."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.serve import monitor, router
from qlab.serve.metrics import LIMITS


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=50), st.floats(0, 1))
def test_the_chapters_sketch_is_the_packages(xs, q):
    alpha = 0.01
    gamma = (1 + alpha) / (1 - alpha)
    counts = Counter(math.ceil(math.log(x) / math.log(gamma)) for x in xs)
    rank, seen = math.floor(q * (len(xs) - 1)), 0
    for i in sorted(counts):
        seen += counts[i]
        if seen > rank:
            break
    sketch = monitor.Sketch(alpha)
    for x in xs:
        sketch.add(x)
    assert sketch.quantile(q) == 2 * gamma**i / (gamma + 1)


class OpenSwitch:
    """The chapter's."""

    def __init__(self, down, up, rest):
        self.down, self.up, self.rest = down, up, rest
        self.current, self.run, self.since = "small", 0, -math.inf

    def report(self, ok, now):
        towards = ok if self.current == "exact" else not ok
        self.run = self.run + 1 if towards else 0
        enough = self.up if self.current == "exact" else self.down
        rested = self.current == "small" or now - self.since >= self.rest
        if self.run >= enough and rested:
            self.current = "exact" if self.current == "small" else "small"
            self.run, self.since = 0, now
        return self.current


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.booleans(), max_size=120), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9)
)
def test_the_chapters_switch_is_the_packages(results, down, up, rest):
    mine, theirs = OpenSwitch(down, up, rest), router.Switch("small", "exact", down, up, rest)
    for now, ok in enumerate(results):
        assert mine.report(ok, now) == theirs.report(ok, "", now)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(51, 120), st.floats(0.05, 1))
def test_the_chapters_mixture_is_the_packages(seed, n, tau):
    d = np.random.default_rng(seed).normal(0.2, 1, n)
    test = router.SequentialTest(0.05, tau)
    for x in d:
        test.add(x)
    mean, v = d.mean(), d.var(ddof=1)
    ratio = math.sqrt(v / (v + n * tau**2)) * math.exp(
        n**2 * tau**2 * mean**2 / (2 * v * (v + n * tau**2))
    )
    assert math.exp(test.log_ratio) == pytest.approx(ratio, rel=1e-9)


def test_a_few_fixed_limits_can_be_far_off_where_the_sketch_cannot():
    """The limits of the server's histogram grow 2 to 2.5 times; a sketch's by two percent."""
    ratios = np.array(LIMITS[1:]) / LIMITS[:-1]
    assert ratios.min() > 1.9
    times = np.full(1000, 0.26)  # all just above a limit
    edges = np.array([0, *LIMITS])
    below = np.searchsorted(times, edges, side="right") / len(times)
    assert abs(np.interp(0.95, below, edges) / 0.26 - 1) > 0.5
    sketch = monitor.Sketch(0.01)
    for x in times:
        sketch.add(x)
    assert abs(sketch.quantile(0.95) / 0.26 - 1) <= 0.01


def test_as_if_normal_breaks_its_promise_and_ranks_keep_it():
    """Skewed readings, 60 old ones, 500 new: the chapter's experiment with another seed and law."""
    limit = next(
        h
        for h in np.arange(3, 15, 0.1)
        if 1 - math.exp(-500 / monitor.average_run_length(h)) < 0.10
    )
    rng, rang = np.random.default_rng(5), Counter()
    for _ in range(150):
        old, new = rng.exponential(1, 60), rng.exponential(1, 500)
        plain = monitor.Cusum(old.mean(), old.std(ddof=1), limit)
        ranks = monitor.fit_cusum(old, 500, 0.10)
        rang["plain"] += any([plain.add(x) for x in new])
        rang["ranks"] += any([ranks.add(x) for x in new])
    # 150 trials of chance 0.1 have a standard error of 0.025.
    assert rang["plain"] / 150 > 0.2 and rang["ranks"] / 150 < 0.1 + 3 * 0.025, rang
