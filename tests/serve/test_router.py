"""Switch, canary, sequential test, and the router that joins them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.serve.health import Finding, Health
from qlab.serve.monitor import Cusum
from qlab.serve.router import Canary, Router, SequentialTest, Switch, peeking, share_of

# --- switch ------------------------------------------------------------------------------------

results = st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 20)), max_size=80)


@settings(max_examples=150, deadline=None)
@given(results, st.integers(1, 4), st.integers(1, 4), st.floats(0, 60))
def test_a_switch_changes_only_with_reason(found, down, up, rest):
    switch, now, before = Switch("small", "exact", down, up, rest), 0.0, []
    for ok, grave, wait in found:
        now += wait
        was, changes = switch.current, len(switch.log)
        name = switch.report(ok, "a reason", now, grave)
        before.append((ok, grave))
        if name == was:
            assert len(switch.log) == changes
            continue
        change = switch.log[-1]
        assert (change.to, change.when) == (name, now) and len(switch.log) == changes + 1
        if name == "exact":
            assert not ok and change.why == "a reason"
            assert grave or (len(before) >= down and not any(k for k, _ in before[-down:]))
        else:
            assert len(before) >= up and all(k for k, _ in before[-up:])
            assert now - switch.log[-2].when >= rest
    # The two sides take turns, so that between two changes to the fallback lies a whole rest.
    sides = [c.to for c in switch.log]
    assert sides == ["exact", "small"] * (len(sides) // 2) + ["exact"] * (len(sides) % 2)


def test_results_that_alternate_move_nothing():
    switch = Switch("a", "b", down=2, up=2)
    for i in range(100):
        switch.report(i % 2 == 0, "", i)
    assert switch.current == "a" and not switch.log
    switch.report(False, "", 100, grave=True)
    for i in range(101, 200):
        switch.report(i % 2 == 0, "", i)
    assert switch.current == "b" and len(switch.log) == 1


def test_bad_switches_are_named():
    for arguments in (("a", "a"), ("a", "b", 0), ("a", "b", 1, 0), ("a", "b", 1, 1, -1.0)):
        with pytest.raises(QlabError):
            Switch(*arguments)


# --- canary ------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_key_keeps_its_side_and_growing_moves_none_back(key, a, b):
    low, high = sorted((a, b))
    assert Canary(low).takes(key) == Canary(low).takes(key)
    assert Canary(high).takes(key) or not Canary(low).takes(key)
    assert Canary(1.0).takes(key) and not Canary(0.0).takes(key)


def test_shares_are_even_and_salts_split_anew():
    places = np.array([share_of(f"request {i}") for i in range(20_000)])
    counts = np.histogram(places, 20, (0, 1))[0]
    # Chi-squared with 19 degrees of freedom: above 43.8 with chance 0.001.
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8
    other = np.array([share_of(f"request {i}", "another") for i in range(20_000)])
    assert abs(np.corrcoef(places, other)[0, 1]) < 4 / math.sqrt(20_000)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(QlabError, match="share"):
            Canary(share)


# --- sequential test ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=30),
    st.floats(0.2, 2),
    st.floats(0.3, 4),
)
def test_the_ratio_is_that_of_the_mixture(xs, scale, variance):
    """∫ Π N(x | θ, v) N(θ | 0, τ²) dθ over Π N(x | 0, v), by numerical integration."""
    from scipy.integrate import quad
    from scipy.stats import norm

    test = SequentialTest(0.05, scale, variance)
    for x in xs:
        test.add(x)
    n, mean = len(xs), float(np.mean(xs))

    def ratio(theta):
        # Of the likelihoods only the mean counts.
        return math.exp(n * (theta * mean - theta**2 / 2) / variance) * norm.pdf(theta, 0, scale)

    width = math.sqrt(variance / n)
    peak = [mean - 3 * width, mean, mean + 3 * width]
    found, _ = quad(ratio, -12 * scale - 9, 12 * scale + 9, points=[*peak, 0], limit=400)
    assert test.mean == pytest.approx(mean, abs=1e-9)
    assert math.exp(test.log_ratio) == pytest.approx(found, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=60, max_size=100), st.floats(0.05, 2))
def test_interval_p_value_and_rejection_say_the_same(xs, scale):
    test, rejected = SequentialTest(0.05, scale), False
    for x in xs:
        rejected = test.add(x) or rejected
        low, high = test.interval
        if (
            test.count >= test.least
            and test.variance > 1e-9
            and abs(test.log_ratio - math.log(20)) > 1e-6
        ):
            assert (not low <= 0 <= high) == (test.log_ratio >= math.log(20))
    assert rejected == test.rejected
    if abs(test.p_value - 0.05) > 1e-9:
        assert rejected == (test.p_value <= 0.05)
    if np.var(xs) > 1e-6:
        assert test.variance == pytest.approx(np.var(xs, ddof=1), rel=1e-6)


def rejections(draw, trials, length, **settings):
    """How often the test ever rejects, and how often peeking does, on the same differences."""
    ours = naive = 0
    for seed in range(trials):
        x = draw(np.random.default_rng(seed), length)
        test = SequentialTest(0.05, **settings)
        ours += any(test.add(d) for d in x.tolist())
        naive += peeking(x) is not None
    return ours / trials, naive / trials


DRAWS = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "skewed": lambda rng, n: rng.exponential(1, n) - 1,
    "heavy": lambda rng, n: rng.standard_t(4, n),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_errors_of_the_first_kind_are_rarer_than_alpha_however_often_one_looks(kind):
    ours, naive = rejections(DRAWS[kind], 300, 600, scale=0.3)
    # Standard error at 0.05: 0.0126; of 6000 trials the rates were 0.027, 0.049 and 0.026.
    assert ours <= 0.05 + 2 * 0.0126, ours
    assert naive > 0.15, naive  # what looking each time does to an ordinary test


def test_a_difference_is_found():
    ours, _ = rejections(lambda rng, n: rng.normal(0.3, 1, n), 60, 600, scale=0.3)
    assert ours > 0.95


def test_bad_tests_are_named():
    for arguments in ((0.0, 1.0), (1.0, 1.0), (0.05, 0.0), (0.05, 1.0, -1.0)):
        with pytest.raises(QlabError):
            SequentialTest(*arguments)
    with pytest.raises(QlabError, match="broken"):
        SequentialTest(0.05, 1.0).add(math.nan)
    constant = SequentialTest(0.05, 1.0)
    assert not any(constant.add(0.0) for _ in range(100)) and constant.p_value == 1


# --- router ------------------------------------------------------------------------------------

GOOD = Health((Finding("finite", True, ""),))
BAD = Health((Finding("finite", False, "NaN"),))


def router(**settings):
    """Models whose answer is their number; ``state`` is what the checks and scores see."""
    state = {"health": GOOD, "score": 0.0, "fails": False, "asked": []}

    def model(name, token):
        def run(prompt):
            state["asked"].append(name)
            if name == "small" and state["fails"]:
                raise RuntimeError("out of memory")
            return [token, *prompt]

        return run

    models = {"small": model("small", 1), "exact": model("exact", 2), "new": model("new", 3)}
    settings = {"sample": 1.0, "score": lambda p, a: state["score"]} | settings
    settings.setdefault("chart", Cusum(0, 1, 3))
    switch = Switch("small", "exact", down=2, up=2, rest=5)
    return Router(models, switch, lambda: state["health"], **settings), state


def test_a_failed_check_brings_the_fallback_and_passed_ones_the_primary_back():
    r, state = router()
    assert r.answer("a", [9], 0).model == "small"
    state["health"] = BAD
    assert not r.check(1).ok
    assert r.answer("b", [9], 2).tokens == [2, 9]
    state["health"] = GOOD
    r.check(3), r.check(4)
    assert r.switch.current == "exact"  # the rest of 5 seconds is not over
    r.check(6)
    assert r.answer("c", [9], 7).model == "small"
    assert [(c.when, c.to) for c in r.switch.log] == [(1, "exact"), (6, "small")]
    assert "finite" in r.switch.log[0].why


def test_a_drift_rings_and_shadow_traffic_keeps_the_primary_away():
    r, state = router()
    state["score"] = 2.0
    answers = [r.answer(str(i), [9], i) for i in range(6)]
    # 1.5 a reading, over the limit of 3 at the third.
    assert [a.model for a in answers] == ["small"] * 3 + ["exact"] * 3
    assert all(a.reading == 2.0 for a in answers)
    assert state["asked"][-2:] == ["exact", "small"]  # nobody saw the second answer
    r.check(7)
    for i in range(3):
        r.answer("x", [9], 7 + i)  # rings once more: the row of passed checks begins anew
    r.check(20)
    assert r.switch.current == "exact"
    state["score"] = 0.0
    r.check(21)
    assert r.switch.current == "small"


def test_an_exception_costs_no_answer():
    r, state = router()
    state["fails"] = True
    answer = r.answer("a", [9], 0)
    assert answer.model == "exact" and answer.tokens == [2, 9]
    assert "out of memory" in r.switch.log[0].why
    r.models["exact"] = r.models["small"]
    with pytest.raises(RuntimeError):
        r.answer("b", [9], 1)


def test_an_answer_in_circles_counts_as_a_failure():
    r, _ = router()
    r.models["small"] = lambda prompt: [7] * 60
    r.answer("a", [9], 0)
    assert r.answer("b", [9], 1).model == "small" and r.switch.current == "exact"
    assert r.switch.log[0].why.startswith("repeats")


def test_a_canary_gets_its_share_while_the_primary_is_in_charge():
    r, state = router(canary=Canary(0.2), candidate="new", score=None, chart=None)
    names = [r.answer(f"request {i}", [9], i).model for i in range(2000)]
    assert set(names) == {"small", "new"}
    # 2000 requests of chance 0.2 have a standard deviation of 18.
    assert abs(names.count("new") - 400) < 72
    state["health"] = BAD
    r.check(3000)
    assert {r.answer(f"request {i}", [9], 3001).model for i in range(50)} == {"exact"}


def test_wrong_routers_are_named():
    with pytest.raises(QlabError, match="no model 'huge'"):
        router(canary=Canary(0.1), candidate="huge")
    with pytest.raises(QlabError, match="go together"):
        router(score=None)
