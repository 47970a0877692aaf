"""Observers: streams in bounded memory, the range each chooses, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab.calibrate import (
    Dynamic,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    MseOptimal,
    Percentile,
    get_observer,
    observer_names,
    search_clip,
    search_range,
)
from qlab.calibrate.entropy import divergences, entropy_threshold
from qlab.core import from_params, get_format

STATIC = [name for name in observer_names() if name != "dynamic"]
values = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32))


def heavy(seed=0, shape=(8, 16, 32)):
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def squared_error(x, scale, zero, word):
    q = from_params(x, scale, zero, qlab.Scheme.parse(word))
    return float(((q.dequantize().astype(np.float64) - x) ** 2).sum())


# The histogram


@given(x=values, cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_a_histogram_does_not_depend_on_how_the_stream_was_cut(x, cuts, seed):
    whole, parts = Histogram(64), Histogram(64)
    whole.add(x)
    shuffled = np.random.default_rng(seed).permutation(x)
    for part in np.split(shuffled, sorted(cuts)):
        parts.add(part)
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.reach == parts.reach
    assert (whole.minimum, whole.maximum) == (parts.minimum, parts.maximum)
    # Sums of float64 in another order: parts in 1e-14 of the largest value.
    np.testing.assert_allclose(whole.sums, parts.sums, atol=1e-12 * max(whole.amax, 1e-300))


@given(x=values)
@settings(max_examples=150, deadline=None)
def test_a_histogram_counts_every_value_in_its_bin(x):
    h = Histogram(64)
    for value in x:
        h.add(np.array([value]))
    amax = float(np.abs(x).max())
    assert h.count == h.counts.sum() == x.size and h.amax == amax
    if amax == 0:
        assert h.reach == 0
        return
    assert amax < h.reach <= 2 * amax
    assert h.width <= 4 * amax / h.bins
    assert np.array_equal(np.histogram(x.astype(np.float64), h.edges)[0], h.counts)
    n, total = h.below(h.edges)
    for edge, counted, summed in zip(h.edges, n, total, strict=True):
        assert counted == (x < edge).sum()
        assert summed == pytest.approx(x[x < edge].astype(np.float64).sum(), abs=1e-9 * amax)
    assert np.array_equal(h.folded(), h.counts[32:] + h.counts[:32][::-1])


def test_a_histogram_takes_extreme_values_and_does_not_grow():
    h = Histogram(256)
    before = h.nbytes
    for value in (0.0, 1e-45, 1e-38, 1.0, -65504.0, 3.4e38):
        h.add(np.full(3, value, np.float32))
    assert h.nbytes == before and h.count == 18 == h.counts.sum()
    assert h.reach == 2.0**128
    h.add(torch.tensor([], dtype=torch.float32))
    assert h.count == 18
    with pytest.raises(qlab.QlabError, match="multiple of 4"):
        Histogram(10)


# All static observers


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("word", ["int8-tensor", "int8-asym-tensor", "int4-tensor", "uint4-tensor"])
def test_params_are_what_from_params_takes(name, library, word):
    x = heavy() + 0.3
    data = torch.from_numpy(x) if library == "torch" else x
    observer = get_observer(name)
    for batch in data:
        observer.observe(batch[None])
    scale, zero = observer.params(word)
    scheme = qlab.Scheme.parse(word)
    assert type(scale) is type(data) and tuple(scale.shape) == (1, 1, 1)
    assert (zero is None) == scheme.symmetric
    q = from_params(data, scale, zero, scheme)
    low, high = (v.item() for v in observer.range(word))
    assert low <= high and low >= -np.abs(x).max() and high <= np.abs(x).max() * 1.0001
    # Inside of the range the error is at most half a step (and float32's rounding of x / scale).
    inside = (x >= low) & (x <= high)
    assert inside.mean() > 0.9
    gap = np.abs(np.asarray(q.dequantize()) - x)[inside]
    assert gap.max() <= scale.item() * (0.5 + 0.5 * (not scheme.symmetric) + 1e-4)


@pytest.mark.parametrize("name", [n for n in STATIC if n != "moving-average"])
@pytest.mark.parametrize("word", ["int8", "int8-asym", "int4"])
def test_the_range_does_not_depend_on_the_batches(name, word):
    x = heavy(1)
    one, many = get_observer(name), get_observer(name)
    one.observe(x)
    for batch in x[::-1]:
        many.observe(batch)
    # The sums in the histogram of `mse` differ in float64's last digits, the rest not at all.
    for a, b in zip(one.range(word), many.range(word), strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-6)


@pytest.mark.parametrize("name", STATIC)
def test_what_an_observer_refuses(name):
    observer = get_observer(name)
    with pytest.raises(qlab.QlabError, match=rf"'{name}' has seen no data: call observe"):
        observer.params("int8-tensor")
    observer.observe(np.zeros((0, 3), np.float32))
    with pytest.raises(qlab.QlabError, match="no data"):
        observer.range()
    bad = np.ones((2, 3), np.float32)
    bad[1, 2] = np.nan
    with pytest.raises(qlab.QlabError, match=rf"'{name}'.*nan at position \(1, 2\)"):
        observer.observe(bad)
    with pytest.raises(qlab.QlabError, match="inf at position"):
        observer.observe(np.array([1, np.inf], np.float32))
    with pytest.raises(qlab.QlabError, match="dtype int64"):
        observer.observe(np.arange(3))
    observer.observe(np.ones(3, np.float32))
    with pytest.raises(qlab.QlabError, match=r"'token'.*'dynamic'"):
        observer.params("int8-token")
    with pytest.raises(qlab.QlabError, match=r"'channel'.*MinMax\(axis=0\)"):
        observer.params("int8-channel")
    with pytest.raises(qlab.QlabError, match="no zero point"):
        observer.params("nf4-tensor", symmetric=False)
    with pytest.raises(qlab.QlabError, match="expected a scheme"):
        observer.params(8)
    assert observer.params("int8")[1] is None
    assert observer.params("int8", symmetric=False)[1] is not None
    assert observer.params(get_format("uint8"))[1] is not None


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-42, 3e38])
def test_constant_data(name, value):
    x = np.full((2, 5), value, np.float32)
    observer = get_observer(name)
    observer.observe(x)
    for word in ("int8-tensor", "int8-asym-tensor"):
        scale, zero = observer.params(word)
        assert np.isfinite(scale).all() and (scale > 0).all()
        back = from_params(x, scale, zero, qlab.Scheme.parse(word)).dequantize()
        # One value of one sign: it is an end of the range, or less than the smallest scale.
        assert np.abs(back - x).max() <= max(1e-5 * abs(value), 1e-37)


def test_the_registry():
    assert observer_names() == [
        "minmax",
        "moving-average",
        "percentile",
        "mse",
        "entropy",
        "dynamic",
    ]
    assert get_observer("percentile", p=99).p == 99
    assert isinstance(get_observer("mse"), MseOptimal)
    with pytest.raises(qlab.QlabError, match=r"'minmx'.*minmax"):
        get_observer("minmx")
    with pytest.raises(qlab.QlabError, match=r"takes .*bins.*, got q"):
        get_observer("percentile", q=1)
    for bad in (lambda: Percentile(0), lambda: Percentile(101), lambda: MovingAverage(0)):
        with pytest.raises(qlab.QlabError):
            bad()


# Each by itself


def test_min_max_with_an_axis_keeps_channels_apart():
    x = heavy(2, (4, 6, 5)) * np.arange(1, 6, dtype=np.float32)
    observer = MinMax(axis=-1)
    observer.observe(x[:2])
    observer.observe(x[2:])
    low, high = observer.range("int8")
    assert low.shape == (1, 1, 5)
    assert np.array_equal(low[0, 0], x.min(axis=(0, 1)))
    assert np.array_equal(high[0, 0], x.max(axis=(0, 1)))
    scale, _ = observer.params("int8-channel2")
    assert np.array_equal(scale, qlab.quantize(x, "int8-channel2").scale)
    with pytest.raises(qlab.QlabError, match="channels, the batch"):
        observer.observe(x[..., :3])
    with pytest.raises(qlab.QlabError, match="granularity 'tensor'"):
        observer.params("int8-tensor")
    with pytest.raises(qlab.QlabError, match="axis 3"):
        MinMax(axis=3).observe(x)


def test_moving_average_forgets_a_lone_outlier():
    batches = [heavy(i, (64,)) for i in range(200)]
    batches[100] = batches[100] * 50
    plain, averaged = MinMax(), MovingAverage()
    for batch in batches:
        plain.observe(batch)
        averaged.observe(batch)
    assert averaged.range()[1].item() < 0.25 * plain.range()[1].item()
    usual = np.mean([b.max() for b in batches])
    assert 0.5 * usual < averaged.range()[1].item() < 2 * usual


@given(x=values, p=st.sampled_from([50.0, 90.0, 99.0, 99.9, 100.0]))
@settings(max_examples=150, deadline=None)
def test_a_percentile_is_right_within_one_bin(x, p):
    observer = Percentile(p, bins=256)
    for part in np.array_split(x, 3):
        observer.observe(part)
    # One bin, and float32's rounding of the result.
    slack = observer.histogram.width * 1.0001 + 1e-6 * float(np.abs(x).max())
    exact = x.astype(np.float64)
    low, high = (v.item() for v in observer.range("int8"))
    assert low == -high
    assert abs(high - np.quantile(np.abs(exact), p / 100, method="inverted_cdf")) <= slack
    low, high = (v.item() for v in observer.range("int8-asym"))
    cut = (100 - p) / 200
    assert abs(high - np.quantile(exact, 1 - cut, method="inverted_cdf")) <= slack
    assert abs(-low - np.quantile(-exact, 1 - cut, method="inverted_cdf")) <= slack
    assert x.min() <= low and high <= x.max()


def test_percentile_100_is_min_max_and_smaller_ones_are_narrower():
    x = heavy(3)
    widths = []
    for p in (90, 99, 99.9, 99.99, 100):
        observer = Percentile(p)
        observer.observe(x)
        widths.append(observer.range("int8")[1].item())
    assert widths == sorted(widths) and len(set(widths)) > 2
    assert widths[-1] == np.abs(x).max()


@pytest.mark.parametrize("word", ["int8-tensor", "int4-tensor", "nf4-tensor", "fp8_e4m3-tensor"])
def test_mse_is_exact_while_it_keeps_the_data(word):
    x = heavy(4, (40, 50))
    observer = MseOptimal()
    for batch in np.array_split(x, 7):
        observer.observe(batch)
    assert observer.exact
    # The scale goes through a range and back: one rounding of float32 each way.
    assert observer.params(word)[0].item() == pytest.approx(search_clip(x, word).item(), rel=3e-7)


@pytest.mark.parametrize("word", ["int8-tensor", "int4-tensor", "int2-tensor", "nf4-tensor"])
@pytest.mark.parametrize("tail", [2, 4, 30])
def test_mse_from_a_histogram_is_nearly_as_good_as_exact(word, tail):
    x = np.random.default_rng(5).standard_t(tail, (64, 100)).astype(np.float32)
    observer = MseOptimal(keep=100)
    for batch in x:
        observer.observe(batch)
    assert not observer.exact
    found = squared_error(x, *observer.params(word), word)
    best = squared_error(x, search_clip(x, word), None, word)
    # What the histogram cannot see: values in a bin that a threshold cuts, where the two codes
    # differ by at most 2 · scale · width in their squared error.
    scale = float(observer.params(word)[0].item())
    assert found <= best + len(x) * 100 * 0.05 * 2 * scale * observer.histogram.width + 1e-6 * best
    assert found <= 1.01 * best


@pytest.mark.parametrize("fmt", ["int4", "uint4", "int2", "int8"])
@pytest.mark.parametrize("shift", [0.0, 0.8, -3.0])
def test_asymmetric_mse_is_nearly_as_good_as_the_search_over_all_zero_points(fmt, shift):
    x = heavy(6, (40, 50)) + np.float32(shift)
    word = f"{fmt}-tensor" if fmt == "uint4" else f"{fmt}-asym-tensor"
    observer = MseOptimal()
    observer.observe(x)
    found = squared_error(x, *observer.params(word), word)
    best = squared_error(x, *search_range(x, word), word)
    plain = MinMax()
    plain.observe(x)
    assert found <= 1.02 * best
    assert found <= squared_error(x, *plain.params(word), word)


@pytest.mark.parametrize("word", ["int8-tensor", "int4-tensor", "int3-tensor"])
def test_no_other_observer_has_a_smaller_squared_error_than_mse(word):
    x = heavy(7, (50, 80))
    errors = {}
    for name in STATIC:
        observer = get_observer(name)
        observer.observe(x)
        errors[name] = squared_error(x, *observer.params(word), word)
    assert min(errors, key=errors.get) == "mse"
    assert errors["mse"] < errors["minmax"]


def slides(counts, levels):
    """KL divergences, bin by bin, as the slides of Migacz (2017) write the loop."""
    out = []
    for i in range(levels, len(counts) + 1):
        reference = np.array(counts[:i], float)
        reference[-1] += sum(counts[i:])
        candidate = np.zeros(i)
        for level in range(levels):
            bins = [b for b in range(i) if b * levels // i == level]
            filled = [b for b in bins if reference[b] > 0]
            for b in filled:
                candidate[b] = sum(counts[c] for c in bins) / len(filled)
        if candidate.sum() == 0:
            out.append(np.inf)
            continue
        p, q = reference / reference.sum(), candidate / candidate.sum()
        with np.errstate(divide="ignore"):
            out.append(sum(p[b] * np.log(p[b] / q[b]) for b in range(i) if p[b] > 0))
    return np.array(out)


@given(
    counts=st.lists(st.integers(0, 50), min_size=4, max_size=24).filter(any),
    levels=st.integers(2, 4),
)
@settings(max_examples=150, deadline=None)
def test_entropy_computes_the_divergence_of_the_slides(counts, levels):
    # Sums of at most 24 terms of order one.
    np.testing.assert_allclose(divergences(counts, levels), slides(counts, levels), atol=1e-12)


def test_entropy_clips_a_tail_but_not_a_plateau():
    rng = np.random.default_rng(8)
    tail = np.append(rng.standard_normal(100_000), np.full(5, 60.0)).astype(np.float32)
    flat = rng.uniform(-1, 1, 100_000).astype(np.float32)
    for x, low, high in ((tail, 2.5, 15.0), (flat, 0.95, 1.0)):
        observer = Entropy()
        observer.observe(x)
        assert low < observer.range("int8")[1].item() <= high
    skewed = Entropy()
    skewed.observe(np.abs(tail))
    assert skewed.range("int8-asym")[0].item() >= 0
    assert entropy_threshold(np.array([3, 0, 1]), 0.5, 4) == 1.5


def test_dynamic_has_no_state():
    x = heavy(9, (3, 4, 8))
    observer = Dynamic()
    observer.observe(x)
    with pytest.raises(qlab.QlabError, match="params_of"):
        observer.params("int8-token")
    for word in ("int8-token", "int8-asym-token", "int4-g4"):
        scale, zero = observer.params_of(x, word)
        plain = qlab.quantize(x, word)
        assert np.array_equal(scale, plain.scale)
        assert (zero is None) or np.array_equal(zero, plain.zero_point)
    assert observer.params_of(torch.from_numpy(x))[0].shape == (3, 4, 1)
    with pytest.raises(qlab.QlabError, match="does not divide"):
        observer.params_of(x, "int4-g3")


def test_observers_need_neither_torch_nor_numba():
    import subprocess
    import sys

    code = (
        "import sys; import numpy as np; from qlab.calibrate import get_observer; "
        "o = get_observer('entropy'); o.observe(np.ones(4)); o.params('int8-tensor'); "
        "print([m for m in ('torch', 'numba') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
