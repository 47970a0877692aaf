"""scikit-learn's KMeans: our optimum is never worse, our Lloyd goes the same way."""

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus

from qlab.core.kmeans import kmeans_1d
from qlab.core.lloyd import lloyd

pytestmark = pytest.mark.filterwarnings("ignore:Number of distinct clusters")


def samples():
    rng = np.random.default_rng(0)
    yield "gaussian", rng.standard_normal(400)
    yield "heavy tails", rng.standard_t(2, 400)
    yield "laplacian", rng.laplace(size=400)
    yield "two humps", np.concatenate([rng.normal(-5, 1, 200), rng.normal(5, 0.1, 200)])
    yield "integers", rng.integers(-5, 6, 300).astype(float)
    yield "one outlier", np.append(rng.standard_normal(300), 1e6)
    yield "two scales", np.concatenate([rng.normal(0, 1e-3, 200), rng.normal(1, 1, 200)])
    yield "far from zero", 1e4 + rng.standard_normal(300)
    yield "constant", np.full(50, 3.0)
    yield "one", np.array([1.5])
    yield "equidistant", np.arange(100.0)
    yield "powers", 2.0 ** np.arange(40)


SAMPLES = dict(samples())


@pytest.mark.oracle("method kmeans", "scikit-learn", "an error that is never larger")
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_dynamic_program_is_never_worse(name, k):
    x = SAMPLES[name]
    if k > len(np.unique(x)):
        assert kmeans_1d(x, k).inertia <= 1e-20 * len(x)
        return
    theirs = KMeans(k, n_init=10, tol=0, random_state=0).fit(x[:, None])
    # Their inertia from their centroids in our arithmetic: what they print is rounded.
    centers = theirs.cluster_centers_[:, 0]
    reached = ((x - centers[theirs.labels_]) ** 2).sum()
    floor = len(x) * (4e-16 * np.abs(x).max()) ** 2
    assert kmeans_1d(x, k).inertia <= reached * (1 + 1e-9) + floor


def test_somewhere_it_is_better():
    """Ten starts of Lloyd's algorithm are not enough for 16 levels of 2,000 Gaussian values."""
    x = np.random.default_rng(1).standard_normal(2000)
    theirs = KMeans(16, n_init=10, init="random", random_state=0).fit(x[:, None]).inertia_
    assert kmeans_1d(x, 16).inertia < theirs * 0.999


@pytest.mark.parametrize("seed", range(4))
def test_with_weights_it_is_never_worse(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(200), rng.uniform(0, 3, 200)
    theirs = KMeans(6, n_init=10, random_state=0).fit(x[:, None], sample_weight=w).inertia_
    assert kmeans_1d(x, 6, w).inertia <= theirs * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_lloyd_from_the_same_start_ends_at_the_same_place(seed, dim):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((500, dim))
    start, _ = kmeans_plusplus(x, 12, random_state=seed)
    theirs = KMeans(12, init=start, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(x)
    ours = lloyd(x, 12, init=start, iterations=300)
    # Both run until no label changes; sums in another order differ in the last bits.
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    order = np.argsort(theirs.cluster_centers_[:, 0]) if dim == 1 else np.arange(12)
    assert ours.centroids == pytest.approx(theirs.cluster_centers_[order], abs=1e-9)


def test_our_starts_are_as_good_as_theirs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 2))
    ours = np.mean([lloyd(x, 16, seed=s).inertia for s in range(10)])
    theirs = np.mean(
        [KMeans(16, n_init=1, tol=0, random_state=s).fit(x).inertia_ for s in range(10)]
    )
    # Means of 10 runs whose own spread is about 2 percent.
    assert ours <= theirs * 1.03
