"""Latency sketches, readings of answers, and the control chart."""

import importlib.util
import itertools
import json
import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.serve import monitor
from qlab.serve.monitor import Cusum, Latency, Sketch, Timing, average_run_length, fit_cusum

ROOT = Path(__file__).resolve().parents[2]


def filled(numbers, error=0.01):
    sketch = Sketch(error)
    for x in numbers:
        sketch.add(float(x))
    return sketch


positive = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(positive, st.floats(0, 1), st.sampled_from([0.001, 0.01, 0.1]))
def test_a_quantile_is_within_the_stated_error(numbers, q, error):
    true = np.sort(numbers)[math.floor(q * (len(numbers) - 1))]
    # 1e-9 beside it: a number at the very edge of a bucket may be counted in the next one.
    assert abs(filled(numbers, error).quantile(q) - true) <= true * (error + 1e-9)


@settings(max_examples=60, deadline=None)
@given(positive, positive)
def test_merged_sketches_are_the_sketch_of_all(a, b):
    merged, whole = filled(a), filled([*a, *b])
    merged.merge(filled(b))
    assert merged.counts == whole.counts and merged.count == whole.count
    for q in (0, 0.5, 0.99, 1):
        assert merged.quantile(q) == whole.quantile(q)


def script():
    spec = importlib.util.spec_from_file_location(
        "record_monitoring", ROOT / "tools" / "record_monitoring.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.oracle("server latencies", "ddsketch (recorded)", "quantiles of all streams equal")
def test_quantiles_are_those_of_ddsketch():
    """Run tools/record_monitoring.py where this fails for want of a stream."""
    made = script()
    record = json.loads((resources.files("qlab") / "records" / "monitoring.json").read_text())
    streams = made.streams()
    assert list(record["streams"]) == list(streams)
    for name, stream in streams.items():
        for error, found in record["streams"][name].items():
            sketch = filled(stream, float(error))
            ours = [sketch.quantile(q) for q in record["quantiles"]]
            # Both take the same bucket and the same number for it; the last digits may differ.
            np.testing.assert_allclose(ours, found, rtol=1e-9, err_msg=f"{name}, {error}")


def test_a_sketch_is_small_and_rejects_what_is_no_time():
    rng = np.random.default_rng(0)
    sketch = filled(rng.lognormal(-3, 1, 20_000))
    assert len(sketch.counts) < 500  # the range of the numbers decides, not their count
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(QlabError, match="finite"):
            sketch.add(bad)
    with pytest.raises(QlabError, match="empty"):
        Sketch().quantile(0.5)
    with pytest.raises(QlabError, match="quantile"):
        sketch.quantile(1.5)
    with pytest.raises(QlabError, match="merge"):
        sketch.merge(Sketch(0.02))
    for bad in (0.0, 1.0, -0.1):
        with pytest.raises(QlabError, match="error"):
            Sketch(bad)
    assert filled([0.0, 0.0, 5.0]).quantile(0.5) == 0.0


def test_a_stream_is_timed(monkeypatch):
    clock = itertools.chain([10.0, 10.5, 10.6, 10.7], itertools.repeat(99.0))
    monkeypatch.setattr(monitor, "perf_counter", lambda: next(clock))
    pieces, timing = monitor.timed(iter("abc"))
    assert pieces == ["a", "b", "c"]
    assert timing.first == pytest.approx(0.5) and timing.each == pytest.approx(0.1)
    assert monitor.timed([]) == ([], None)
    latency = Latency()
    latency.add(timing)
    latency.add(Timing(1.5, None, 1))
    found = latency.quantiles((0, 1))
    assert found["first"] == pytest.approx([0.5, 1.5], rel=0.01)
    assert found["each"] == pytest.approx([0.1, 0.1], rel=0.01)


# --- readings ----------------------------------------------------------------------------------


class Fixed:
    """Logits that depend on the token alone."""

    def __init__(self, seed, spread=1.0, vocabulary=11):
        self.table = np.random.default_rng(seed).normal(0, spread, (vocabulary, vocabulary))

    def logits(self, ids):
        return self.table[np.asarray(ids)].astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 10), min_size=2, max_size=30))
def test_a_reading_is_what_the_definitions_say(seed, ids):
    p, q = Fixed(seed), Fixed(seed + 1)
    prompt, answer = ids[:1], ids[1:]
    found = monitor.shadow(p, q, prompt, answer)
    P, Q = softmax(p.table), softmax(q.table)
    at = list(itertools.pairwise(ids))
    assert found.surprise == pytest.approx(-np.mean([np.log(P[a, b]) for a, b in at]), abs=1e-5)
    own = -np.mean([np.log(Q[a, b]) for a, b in at])
    assert found.gap == pytest.approx(found.surprise - own, abs=1e-5)
    kl = np.mean([(P[a] * np.log(P[a] / Q[a])).sum() for a, _ in at])
    assert found.kl == pytest.approx(kl, abs=1e-5) and found.kl >= 0
    same = np.mean([P[a].argmax() == Q[a].argmax() for a, _ in at])
    assert found.agreement == pytest.approx(same)
    itself = monitor.shadow(p, p, prompt, answer)
    assert (itself.gap, itself.kl, itself.agreement) == (0, 0, 1)


def test_the_mean_gap_of_drawn_tokens_is_the_divergence():
    """Of tokens drawn from the served model, surprise less its own estimates KL(served‖ref)."""
    p, q = Fixed(0), Fixed(1)
    P, Q = softmax(p.table), softmax(q.table)
    rng, at, gaps, kls = np.random.default_rng(2), 0, [], []
    for _ in range(400):
        prompt, answer = [at], []
        for _ in range(20):
            kls.append((Q[at] * np.log(Q[at] / P[at])).sum())
            at = int(rng.choice(11, p=Q[at]))
            answer.append(at)
        gaps.append(monitor.shadow(p, q, prompt, answer).gap)
    # 8000 tokens whose gaps have an sd of about 1.2: three standard errors are 0.04.
    assert np.mean(gaps) == pytest.approx(np.mean(kls), abs=0.05)


def test_what_is_not_finite_reads_so_and_empties_are_errors():
    broken = Fixed(0)
    broken.table[3] = np.nan
    assert math.isnan(monitor.shadow(Fixed(1), broken, [1], [2, 3, 4]).kl)
    for prompt, answer in (([], [1]), ([1], [])):
        with pytest.raises(QlabError, match="empty"):
            monitor.shadow(broken, broken, prompt, answer)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_repetition_is_a_share(ids, n):
    rate = monitor.repetition_rate(ids, n)
    seen, again = set(), 0
    for i in range(len(ids) - n + 1):
        again += tuple(ids[i : i + n]) in seen
        seen.add(tuple(ids[i : i + n]))
    total = max(len(ids) - n + 1, 0)
    assert rate == pytest.approx(again / total if total else 0) and 0 <= rate < 1


# --- the chart ---------------------------------------------------------------------------------


def test_run_lengths_are_the_published_ones():
    """Montgomery, Introduction to statistical quality control, table 9.3: two-sided, slack 1/2.

    The table's rate of alarms is that of both sides together."""
    table = {  # shift: (limit 4, limit 5)
        0.0: (168, 465),
        0.25: (74.2, 139),
        0.5: (26.6, 38.0),
        0.75: (13.3, 17.0),
        1.0: (8.38, 10.4),
        1.5: (4.75, 5.75),
        2.0: (3.34, 4.01),
        3.0: (2.19, 2.57),
    }
    for shift, published in table.items():
        for limit, there in zip((4, 5), published, strict=True):
            up, down = (average_run_length(limit, 0.5, s) for s in (shift, -shift))
            # Three digits are printed.
            assert 1 / (1 / up + 1 / down) == pytest.approx(there, rel=5e-3), (shift, limit)


def first_alarm(readings, chart):
    return next((i + 1 for i, x in enumerate(readings) if chart.add(x)), None)


def test_run_lengths_are_those_of_simulated_streams():
    rng = np.random.default_rng(0)
    for limit, shift in ((2.0, 0.0), (3.0, 1.0), (4.0, 0.5)):
        runs = []
        for _ in range(400):
            chart = Cusum(0, 1, limit)
            runs.append(next(i for i in itertools.count(1) if chart.add(rng.normal(shift))))
        # A run length is nearly exponential: the error of a mean of 400 is a twentieth of it.
        assert np.mean(runs) == pytest.approx(average_run_length(limit, 0.5, shift), rel=0.17)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-5, 5), max_size=60),
    st.floats(-2, 2),
    st.floats(0.1, 3),
    st.floats(0.1, 1.0),
    st.integers(1, 4),
)
def test_a_chart_rings_where_some_stretch_lies_too_high(xs, mean, sd, slack, window):
    """The sum is the largest over all stretches that end now: Page's other definition."""
    limit = 2.0
    chart = Cusum(mean, sd, limit, slack, window)
    rang = first_alarm(xs, chart)
    means = [sum(xs[i : i + window]) / window for i in range(0, len(xs) - window + 1, window)]
    scores = [(m - mean) / (sd / math.sqrt(window)) - slack for m in means]
    expected = None
    for n in range(1, len(scores) + 1):
        highest = max(sum(scores[i:n]) for i in range(n))
        if abs(highest - limit) < 1e-9:
            return  # on the very edge, rounding decides
        if highest > limit:
            expected = n * window
            break
    assert rang == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=5, max_size=40), st.floats(0.1, 4), st.floats(0.1, 4))
def test_a_higher_limit_never_rings_earlier(xs, a, b):
    low, high = (first_alarm(xs, Cusum(0, 1, limit)) or math.inf for limit in sorted((a, b)))
    assert low <= high


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_rings_at_once(bad):
    chart = Cusum(0, 1, 5, window=10)
    assert not chart.add(0.0) and chart.add(bad) and chart.alarms == 1
    assert chart.value == 0 and not chart.add(0.0)


DRAW = {
    "normal": lambda rng, size: rng.normal(3, 2, size),
    "exponential": lambda rng, size: rng.exponential(0.01, size),
    "log-normal": lambda rng, size: rng.lognormal(-4, 0.7, size),
}


@pytest.mark.parametrize("window", [1, 10])
@pytest.mark.parametrize("kind", DRAW)
def test_the_chance_of_a_false_alarm_is_as_stated(kind, window):
    """New readings from the same law, charts fitted to 100 of them: both are drawn anew."""
    rng, horizon, stated, trials = np.random.default_rng(1), 300, 0.1, 300
    rang = 0
    for _ in range(trials):
        chart = fit_cusum(DRAW[kind](rng, 100), horizon, stated, window=window)
        rang += first_alarm(DRAW[kind](rng, horizon), chart) is not None
    # 300 trials of chance 0.1 have a standard error of 0.017, and the limit's own simulation 0.007.
    assert abs(rang / trials - stated) <= 3 * 0.019, rang / trials


def test_one_outlier_rings_no_chart_of_ranks_and_equal_readings_are_no_trouble():
    old = np.random.default_rng(0).normal(size=200)
    chart = fit_cusum(old)
    assert not chart.add(1e300) and not any(chart.add(x) for x in old[:100])
    ties = fit_cusum([0.0] * 90 + [0.1] * 10)
    assert not any(ties.add(0.0) for _ in range(1000))
    assert first_alarm([0.1] * 50, ties) <= 20


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 5), st.floats(-3, 3))
def test_a_chart_of_ranks_does_not_see_a_change_of_units(seed, factor, shift):
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=40), rng.normal(0.5, 1, 60)
    plain = monitor.RankCusum(old, 3.0)
    other = monitor.RankCusum(np.exp(factor * old + shift), 3.0)
    assert [plain.add(x) for x in new] == [other.add(np.exp(factor * x + shift)) for x in new]


@pytest.mark.parametrize("kind", DRAW)
def test_a_real_shift_is_found(kind):
    rng = np.random.default_rng(2)
    before = DRAW[kind](rng, 300)
    delays = []
    for _ in range(20):
        chart = fit_cusum(before, 500, 0.05)
        delays.append(first_alarm(DRAW[kind](rng, 200) + 2 * before.std(), chart) or math.inf)
    # After n readings the sum is about n (2 - 0.5).
    assert np.median(delays) <= 1 + 1.5 * chart.limit / 1.5


def test_bad_settings_are_named():
    good = np.random.default_rng(0).normal(size=50)
    for call, match in (
        (lambda: Cusum(0, 0, 5), "sd"),
        (lambda: Cusum(0, 1, -1), "limit"),
        (lambda: Cusum(math.nan, 1, 1), "mean"),
        (lambda: Cusum(0, 1, 5, slack=-1), "slack"),
        (lambda: Cusum(0, 1, 5, window=0), "window"),
        (lambda: fit_cusum(good[:10]), "20"),
        (lambda: fit_cusum([*good, math.nan]), "finite"),
        (lambda: fit_cusum(good, alarms=1.0), "chance"),
        (lambda: fit_cusum(good, horizon=3, window=5), "window"),
        (lambda: average_run_length(0), "limit"),
        (lambda: monitor.repetition_rate([1], 0), "n-grams"),
    ):
        with pytest.raises(QlabError, match=match):
            call()
