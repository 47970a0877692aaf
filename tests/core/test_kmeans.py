"""k-means: the dynamic program is the optimum, in any arithmetic that it meets."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import qlab
from qlab.core.kmeans import kmeans_1d, kmeans_rows, nearest
from qlab.core.lloyd import assign, lloyd
from qlab.core.segments import segments

finite = st.floats(-1e15, 1e15, allow_subnormal=True, width=64)
values = arrays(np.float64, st.integers(1, 9), elements=finite)


def by_trying_all(x, k, weights=None):
    """The least error over every way to cut the sorted values into k runs."""
    order = np.argsort(x, kind="stable")
    x = x[order]
    w = np.ones_like(x) if weights is None else np.asarray(weights, float)[order]
    n, best = len(x), np.inf
    for cuts in combinations(range(1, n), min(k, n) - 1):
        error = 0.0
        for a, b in zip((0, *cuts), (*cuts, n), strict=True):
            total = w[a:b].sum()
            mean = x[a] + (w[a:b] * (x[a:b] - x[a])).sum() / total if total > 0 else x[a]
            error += (w[a:b] * (x[a:b] - mean) ** 2).sum()
        best = min(best, error)
    return best


@settings(max_examples=150, deadline=None)
@given(values, st.integers(1, 5))
def test_it_is_the_best_of_all_partitions(x, k):
    found = kmeans_1d(x, k)
    # A mean of numbers near 1e15 is known to 0.1 at best: the floor is n · (eps · largest)².
    floor = len(x) * (4e-16 * np.abs(x).max()) ** 2
    assert found.inertia <= by_trying_all(x, k) * (1 + 1e-9) + floor
    assert found.lower_bound == found.inertia


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_weights_count(n, k, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(n), rng.integers(0, 4, n).astype(float)
    assume(w.any())
    assert kmeans_1d(x, k, w).inertia == pytest.approx(by_trying_all(x, k, w), abs=1e-12)
    # A weight of 3 is the value three times.
    repeated = np.repeat(x, w.astype(int))
    assert kmeans_1d(repeated, k).inertia == pytest.approx(kmeans_1d(x, k, w).inertia, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_codes_are_nearest_and_more_centroids_never_hurt(n, k, seed):
    x = np.random.default_rng(seed).standard_t(3, n)
    found = kmeans_1d(x, k)
    assert (np.diff(found.centroids) >= 0).all() and found.centroids.shape == (k,)
    distance = np.abs(x[:, None] - found.centroids)
    assert (np.abs(x - found.centroids[found.codes]) <= distance.min(1) * (1 + 1e-12)).all()
    assert kmeans_1d(x, k + 1).inertia <= found.inertia * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(-5, 5), st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_it_moves_and_grows_with_the_values(n, shift, factor, seed):
    x = np.random.default_rng(seed).standard_normal(n)
    plain, moved = kmeans_1d(x, 4), kmeans_1d(x * factor + shift, 4)
    # The shifted values are rounded to float64: their spread is known to eps · |shift|.
    assert moved.inertia == pytest.approx(plain.inertia * factor**2, rel=1e-6, abs=1e-22)


HARD = {
    "zeros": np.zeros(50),
    "constant": np.full(50, 0.1),
    "one": np.array([3.0]),
    "two values": np.array([1.0, 2.0] * 20),
    "denormal": np.arange(40) * 1e-45,
    "huge": np.linspace(-3e38, 3e38, 77),
    "one outlier": np.append(np.random.default_rng(0).standard_normal(99), 1e9),
    "two scales": np.concatenate([np.linspace(0, 1e-6, 40), 1 + np.linspace(0, 1e-6, 40)]),
    "far from zero": 1e6 + np.random.default_rng(1).standard_normal(80),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_input(name):
    x = HARD[name]
    for k in (1, 2, 3, 8, 16):
        found = kmeans_1d(x, k)
        assert np.isfinite(found.centroids).all() and found.inertia >= 0
        # The textbook recurrence on the same values, with errors summed directly.
        truth = textbook(np.sort(x), k)
        floor = len(x) * (4e-16 * np.abs(x).max()) ** 2
        assert found.inertia <= truth * (1 + 1e-9) + floor, k
        if k >= len(np.unique(x)):
            assert found.inertia <= floor


def textbook(x, k):
    """O(k n²), the error of each run summed about its own mean."""
    n = len(x)
    error = np.zeros((n, n))
    for i in range(n):
        for j in range(i, n):
            run = x[i : j + 1]
            error[i, j] = ((run - (x[i] + (run - x[i]).mean())) ** 2).sum()
    least = error[0].copy()
    for _ in range(k - 1):
        least = np.array(
            [min([error[0, i]] + [least[m - 1] + error[m, i] for m in range(1, i + 1)])
             for i in range(n)]
        )  # fmt: skip
    return least[-1]


def test_prefix_sums_would_have_failed():
    """Why there are tables: beside an outlier of 1e9 the usual formula loses everything."""
    x = np.sort(HARD["one outlier"])
    s1, s2 = np.cumsum(x), np.cumsum(x * x)
    tables = segments(x[None], np.ones((1, 100)))
    zero = np.zeros(1, dtype=int)
    shifted = np.append(x[:99], 0) + 1e9  # the same run, far from zero
    t1, t2 = np.cumsum(shifted), np.cumsum(shifted * shifted)
    far = t2[98] - t1[98] ** 2 / 99
    truth = ((x[:99] - x[:99].mean()) ** 2).sum()
    assert tables.cost(zero, zero, zero + 98)[0] == pytest.approx(truth, rel=1e-12)
    assert abs(far / truth - 1) > 0.1
    assert s2[98] - s1[98] ** 2 / 99 == pytest.approx(truth, rel=1e-9)  # before it, all is well


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_error_of_every_run(n, seed):
    rng = np.random.default_rng(seed)
    x, w = np.sort(rng.standard_normal((2, n))), rng.uniform(0.1, 2, (2, n))
    tables = segments(x, w)
    for row in range(2):
        for i in range(n):
            for j in range(i, n):
                run, mass = x[row, i : j + 1], w[row, i : j + 1]
                truth = (mass * (run - np.average(run, weights=mass)) ** 2).sum()
                at = (np.array([v]) for v in (row, i, j))
                assert tables.cost(*at)[0] == pytest.approx(truth, rel=1e-9, abs=1e-14)


@settings(max_examples=15, deadline=None)
@given(st.integers(300, 3000), st.integers(2, 16), st.integers(0, 2**32 - 1))
def test_bins_say_how_far_off_they_can_be(n, k, seed):
    x = np.random.default_rng(seed).standard_t(4, n)
    exact, binned = kmeans_1d(x, k), kmeans_1d(x, k, bins=256)
    assert exact.inertia * (1 - 1e-9) <= binned.inertia
    assert binned.lower_bound <= exact.inertia * (1 + 1e-9)


def test_many_bins_lose_next_to_nothing():
    x = np.random.default_rng(0).standard_normal(40_000)
    exact, binned = kmeans_1d(x, 16), kmeans_1d(x, 16, bins=8192)
    assert binned.inertia <= exact.inertia * (1 + 1e-5)
    assert binned.lower_bound >= exact.inertia * 0.98


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 17), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_compiled_twin_agrees(n, k, weighted, seed):
    from qlab.kernels.cpu.kmeans import kmeans_rows as compiled

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, n))
    x[1], x[2, 0], x[3] = 0.25, 1e12, np.round(x[3])
    x.sort(axis=1)
    w = rng.uniform(0, 2, x.shape) if weighted else np.ones_like(x)
    _, slow = kmeans_rows(x, k, w)
    centroids, fast = compiled(x, k, w)
    # Sums in another order: equal to rounding, about 1e-16 of the numbers that are added.
    assert fast == pytest.approx(slow, rel=1e-9, abs=1e-20)
    assert (np.diff(centroids, axis=1) >= 0).all()


def test_torch_and_numpy_agree():
    import torch

    x = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    a, b = kmeans_1d(x, 8), kmeans_1d(torch.from_numpy(x), 8)
    assert (a.centroids == b.centroids).all() and (a.codes == b.codes).all()


@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        ([], 2, {}, "x is empty"),
        ([1.0], 0, {}, "k = 0"),
        ([1.0, np.nan], 2, {}, "nan at position"),
        ([1.0, np.inf], 2, {}, "inf at position"),
        ([1e200], 1, {}, "beyond 1e150"),
        ([1.0, 2.0], 2, {"weights": np.array([1.0])}, "1 weights for 2 values"),
        ([1.0, 2.0], 2, {"weights": np.array([0.0, 0.0])}, "not all zero"),
        ([1.0, 2.0], 2, {"weights": np.array([1.0, -1.0])}, "not negative"),
        (list(range(50)), 8, {"bins": 9}, "9 bins are too few"),
    ],
)
def test_bad_input_is_named(x, k, options, message):
    with pytest.raises(qlab.QlabError, match=message):
        kmeans_1d(np.array(x, dtype=np.float64), k, **options)


# Max 1960 (Quantizing for minimum distortion), table I: mean squared error of the best N levels
# for a Gaussian of variance 1. Given to four digits.
MAX_1960 = {2: 0.3634, 4: 0.1175, 8: 0.03454, 16: 0.009497, 32: 0.002499}


@pytest.mark.parametrize("levels", MAX_1960)
def test_the_gaussian_of_max(levels):
    from scipy.stats import norm

    n = 20_000
    x = norm.ppf((np.arange(n) + 0.5) / n)
    # The quantiles miss what lies beyond the last, and the spread inside each: 1e-4 of the
    # variance, which is 1 percent of the smallest entry at most; the table rounds to 1 in 2500.
    assert kmeans_1d(x, levels).inertia / n == pytest.approx(MAX_1960[levels], rel=0.01)


def test_max_levels():
    """Max 1960, table I, N = 4: levels ±0.4528 and ±1.510."""
    from scipy.stats import norm

    x = norm.ppf((np.arange(50_000) + 0.5) / 50_000)
    # The mean of an outer cell converges slowest, about 1e-3 at this number of quantiles.
    assert kmeans_1d(x, 4).centroids == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=2e-3)


# --- Lloyd's algorithm --------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_lloyd_ends_where_nothing_moves(n, d, k, seed):
    x = np.random.default_rng(seed).standard_normal((n, d))
    found = lloyd(x, k, seed=seed, iterations=300)
    codes, far = assign(x, found.centroids)
    assert far.sum() == pytest.approx(found.inertia, abs=1e-9)
    for j in range(k):
        if (codes == j).any():
            assert found.centroids[j] == pytest.approx(x[codes == j].mean(0), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 80), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_lloyd_is_never_better_than_the_optimum(n, k, seed):
    x = np.random.default_rng(seed).standard_t(3, n)
    assert lloyd(x, k, seed=seed).inertia >= kmeans_1d(x, k).inertia * (1 - 1e-9)


def test_more_iterations_never_hurt():
    x = np.random.default_rng(0).standard_normal((500, 2))
    errors = [lloyd(x, 16, iterations=i).inertia for i in range(8)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(errors))
    assert errors[-1] < errors[0]


def test_lloyd_can_stay_in_a_local_minimum():
    x = np.array([0.0, 1.0, 10.0, 11.0, 20.0, 21.0])
    stuck = lloyd(x, 3, init=np.array([0.0, 1.0, 15.0]))
    assert stuck.inertia > 50 * kmeans_1d(x, 3).inertia


def test_an_empty_cluster_is_used_again():
    x = np.random.default_rng(0).standard_normal((200, 2))
    found = lloyd(x, 4, init=np.array([[0.0, 0], [50, 50], [60, 60], [70, 70]]))
    assert len(np.unique(found.codes)) == 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_assign_finds_the_nearest(n, d, k, seed):
    rng = np.random.default_rng(seed)
    x, c = rng.standard_normal((n, d)) + 100, rng.standard_normal((k, d)) + 100
    codes, far = assign(x, c)
    every = ((x[:, None] - c) ** 2).sum(-1)
    assert far == pytest.approx(every.min(1), rel=1e-9, abs=1e-12)
    assert far == pytest.approx(every[np.arange(n), codes], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        (np.zeros((0, 2)), 2, {}, "at least one"),
        (np.zeros((2, 2, 2)), 2, {}, "points"),
        (np.zeros((3, 2)), 0, {}, "k = 0"),
        (np.zeros((3, 2)), 2, {"init": "best"}, "init 'best'"),
        (np.zeros((3, 2)), 2, {"init": np.zeros((3, 2))}, "3 centroids"),
        (np.zeros((3, 2)), 2, {"weights": np.ones(2)}, "3 finite numbers"),
        (np.array([[0.0, np.nan]]), 1, {}, "nan at position"),
    ],
)
def test_lloyd_names_bad_input(x, k, options, message):
    with pytest.raises(qlab.QlabError, match=message):
        lloyd(x, k, **options)


def test_a_tie_goes_to_the_lower_centroid():
    assert nearest(np.array([-1.0, 0.5, 0.51, 2.0]), np.array([0.0, 1.0])).tolist() == [0, 0, 1, 1]
