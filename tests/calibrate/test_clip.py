"""The exact search for the scale of least squared error, against brute force and dense grids."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm

import qlab
from qlab.calibrate import search_clip, search_range
from qlab.calibrate.schemes import levels_in_use, read_scheme
from qlab.core import from_params, get_format

FORMATS = "int1 int2 int3 int4 int5 ternary binary nf4 fp4_bnb fp4_e2m1 fp6_e2m3 log4".split()
# A comparison of errors that float64 sums of float32 data carry: s is rounded to float32, which
# near a minimum moves the error by parts in 1e-14, and the sums themselves by parts in 1e-15 of
# sum x². 1e-9 leaves room for sums over 4096 values.
RELATIVE = 1e-9


def levels_of(fmt):
    return levels_in_use(read_scheme(fmt)[0])


def errors(x, levels, scales):
    """Squared error of one row at each scale, by looking at every level."""
    x = np.asarray(x, np.float64)
    parts = []
    for s in np.atleast_1d(np.asarray(scales, np.float64)):
        nearest = np.abs(x[:, None] - s * levels[None]).min(axis=1)
        parts.append((nearest**2).sum())
    return np.array(parts)


def brute_force(x, levels):
    """The least squared error over all scales: all breakpoints, then each piece's own minimum."""
    x = np.asarray(x, np.float64)
    t = (levels[1:] + levels[:-1]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        s = (x[:, None] / t[None]).reshape(-1)
    s = np.unique(s[np.isfinite(s) & (s > 0)])
    if s.size == 0:
        s = np.array([1.0])
    inside = np.concatenate(([s[0] / 2], (s[1:] + s[:-1]) / 2, [s[-1] * 2]))
    best = errors(x, levels, s).min()
    for middle in inside:
        level = levels[np.abs(x[:, None] - middle * levels[None]).argmin(axis=1)]
        a, b = (x * level).sum(), (level**2).sum()
        if b > 0 and a > 0:
            best = min(best, errors(x, levels, [a / b])[0])
    return best


@given(
    x=hnp.arrays(
        np.float32,
        st.integers(1, 9),
        elements=st.one_of(
            st.integers(-9, 9).map(float), st.floats(-100, 100, width=32).map(lambda v: v)
        ),
    ),
    fmt=st.sampled_from(FORMATS),
)
@settings(max_examples=300, deadline=None)
def test_it_equals_brute_force_on_small_input(x, fmt):
    levels = levels_of(fmt)
    scale = float(search_clip(x[None], fmt)[0, 0])
    assert scale > 0
    # Rows whose largest value is below what a float32 scale resolves are scaled at the limit.
    found = errors(x, levels, [scale])[0]
    best = brute_force(x, levels)
    squares = float((x.astype(np.float64) ** 2).sum())
    if squares > 1e-60:
        # float32 rounding of the scale alone: at most half an ulp, 6e-8, of s · sqrt(B).
        slack = RELATIVE * squares + 2e-14 * squares
        assert found <= best + slack, (found, best, scale)


@pytest.mark.parametrize("fmt", [*FORMATS, "int8", "fp8_e4m3", "fp8_e5m2"])
def test_no_dense_grid_finds_a_better_scale(fmt):
    rng = np.random.default_rng(3)
    levels = levels_of(fmt)
    rows = [
        rng.standard_normal(200),
        rng.laplace(size=200),
        rng.standard_t(2, 200),
        rng.uniform(0, 1, 200),
        np.append(rng.standard_normal(199), 1000.0),
    ]
    w = np.stack(rows).astype(np.float32)
    scales = search_clip(w, fmt)[:, 0]
    top = np.abs(levels).max()
    for row, scale in zip(w, scales, strict=True):
        grid = np.geomspace(1e-3, 3, 1500) * np.abs(row).max() / top
        mine = errors(row, levels, [scale])[0]
        squares = (row.astype(np.float64) ** 2).sum()
        assert mine <= errors(row, levels, grid).min() + RELATIVE * squares


@pytest.mark.parametrize("fmt", ["int4", "nf4", "int2"])
def test_the_result_does_not_depend_on_the_number_of_threads(fmt):
    w = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in range(1, before + 1):
            numba.set_num_threads(threads)
            results += [search_clip(w, fmt), search_clip(w[::-1].copy(), fmt)[::-1]]
    finally:
        numba.set_num_threads(before)
    assert all(np.array_equal(results[0], r) for r in results)


def test_gaussian_rows_get_the_published_step():
    """Max 1960, table II: the uniform quantizers of least error for a unit Gaussian."""
    w = np.random.default_rng(1).standard_normal((64, 4096)).astype(np.float32)
    for fmt, published in (("int2", 1.2240), ("int3", 0.6508), ("int4", 0.3534)):
        levels = levels_of(fmt)

        def expected_error(s, levels=levels):
            edges = np.concatenate(([-np.inf], s * (levels[1:] + levels[:-1]) / 2, [np.inf]))
            parts = zip(levels, edges[:-1], edges[1:], strict=True)
            return sum(
                quad(lambda x, q=q: (x - s * q) ** 2 * norm.pdf(x), a, b)[0] for q, a, b in parts
            )

        optimum = minimize_scalar(expected_error, bounds=(0.2, 2), method="bounded").x
        assert optimum == pytest.approx(published, abs=2e-3)
        # The mean over 64 rows of 4096 values: its standard error is below 0.2 %.
        assert float(search_clip(w, fmt).mean()) == pytest.approx(optimum, rel=0.01)


def test_degenerate_rows():
    zeros = search_clip(np.zeros((2, 5), np.float32), "int4")
    assert np.array_equal(zeros, np.ones((2, 1), np.float32))
    for value in (1.0, -3.5, 1e-30, 3e38):
        w = np.full((1, 7), value, np.float32)
        scale = search_clip(w, "int4")
        q = from_params(w, scale, None, qlab.Scheme.parse("int4"))
        assert np.abs(q.dequantize() - w).max() <= 1e-6 * abs(value)
    denormal = np.full((1, 4), 1e-42, np.float32)
    assert search_clip(denormal, "int4")[0, 0] == np.float32(1.1754943508222875e-38)
    assert search_clip(np.zeros((0, 4), np.float32), "int4").shape == (0, 1)
    nothing = np.zeros((3, 0), np.float32)
    assert search_clip(nothing, "int4").shape == qlab.quantize(nothing, "int4").scale.shape
    one = search_clip(np.array([[2.0]], np.float32), "int8")
    assert 2.0 / one[0, 0] == round(2.0 / one[0, 0])
    # An outlier that costs more than all the rest is kept; one that does not is clipped.
    rest = np.random.default_rng(0).standard_normal(4095)
    for outlier, kept in ((1000.0, True), (8.0, False)):
        w = np.append(rest, outlier).astype(np.float32)[None]
        assert (search_clip(w, "int4")[0, 0] * 7 > 0.9 * outlier) == kept


@pytest.mark.parametrize(
    "scheme", ["int4-channel", "int3-g8", "int4-tensor", "int2-b2x4", "nf4-g4"]
)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_every_block_is_better_than_min_max(scheme, library):
    w = np.random.default_rng(5).standard_t(3, (6, 16)).astype(np.float32)
    x = torch.from_numpy(w) if library == "torch" else w
    parsed = qlab.Scheme.parse(scheme)
    scale = search_clip(x, scheme)
    plain = qlab.quantize(x, scheme)
    assert type(scale) is type(x) and scale.shape == plain.scale.shape
    q = from_params(x, scale, None, parsed)
    block = parsed.granularity.block_shape(w.shape)
    for i in range(0, 6, block[0]):
        for j in range(0, 16, block[1]):
            part = (slice(i, i + block[0]), slice(j, j + block[1]))
            mine = ((q.dequantize()[part] - x[part]) ** 2).sum()
            theirs = ((plain.dequantize()[part] - x[part]) ** 2).sum()
            assert float(mine) <= float(theirs) * (1 + 1e-5)
    assert np.array_equal(np.asarray(scale), search_clip(w, scheme))


def test_other_dtypes_and_views():
    w = np.random.default_rng(2).standard_normal((8, 12))
    half = w.astype(np.float16)
    assert np.array_equal(search_clip(half, "int4"), search_clip(half.astype(np.float32), "int4"))
    t = torch.from_numpy(w).bfloat16()
    assert torch.equal(search_clip(t, "int4"), search_clip(t.float(), "int4"))
    assert np.array_equal(search_clip(w.T, "int4"), search_clip(w.T.copy(), "int4"))
    assert search_clip(w, get_format("int4"), "g4").shape == (8, 3)


@given(
    x=hnp.arrays(np.float32, st.integers(1, 7), elements=st.floats(-10, 10, width=16)),
    fmt=st.sampled_from(["int2", "uint2", "int3", "uint3"]),
)
@settings(max_examples=100, deadline=None)
def test_search_range_is_the_best_of_all_zero_points(x, fmt):
    f = get_format(fmt)
    scale, zero = search_range(x[None], fmt)
    scale, zero = float(scale[0, 0]), int(zero[0, 0])
    assert f.qmin <= zero <= f.qmax and scale > 0
    codes = np.arange(f.qmin, f.qmax + 1)
    best = min(brute_force(x, (codes - z).astype(np.float64)) for z in codes)
    squares = float((x.astype(np.float64) ** 2).sum())
    assert errors(x, (codes - zero).astype(np.float64), [scale])[0] <= best + RELATIVE * squares


def test_search_range_beats_min_max_on_every_row():
    w = (np.random.default_rng(4).standard_normal((16, 64)) + 0.7).astype(np.float32)
    for fmt in ("int4", "uint4", "int8"):
        scheme = qlab.Scheme.parse(f"{fmt}-asym-channel" if fmt[0] == "i" else f"{fmt}-channel")
        scale, zero = search_range(w, fmt)
        mine = (from_params(w, scale, zero, scheme).dequantize() - w) ** 2
        theirs = (qlab.quantize(w, scheme).dequantize() - w) ** 2
        assert (mine.sum(axis=1) <= theirs.sum(axis=1) * (1 + 1e-5)).all()


def test_bad_input_names_the_thing():
    w = np.ones((2, 6), np.float32)
    with pytest.raises(qlab.QlabError, match="'g4' does not divide axis 1"):
        search_clip(w, "int4", "g4")
    with pytest.raises(qlab.QlabError, match="search_range"):
        search_clip(w, "int4-asym")
    with pytest.raises(qlab.QlabError, match="unknown granularity 'row'"):
        search_clip(w, "int4", "row")
    with pytest.raises(qlab.QlabError, match=r"unknown .* 'int44'"):
        search_clip(w, "int44")
    with pytest.raises(qlab.QlabError, match="16 bits"):
        search_clip(w, "bf16")
    with pytest.raises(qlab.QlabError, match="no zero point"):
        search_range(w, "nf4")
    w[1, 2] = np.nan
    with pytest.raises(qlab.QlabError, match=r"nan at position \(1, 2\)"):
        search_clip(w, "int4")


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    from qlab.kernels.cpu.jit import jit

    real = numba.njit

    def read_only(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(numba, "njit", read_only)

    @jit()
    def twice(x):
        return 2 * x

    assert twice(21) == 42
