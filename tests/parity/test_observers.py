"""torch.ao's observers and ONNX Runtime's calibrators, given the same batches."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto as T
from onnx import helper
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    HistogramCollector,
    create_calibrator,
)
from torch.ao.quantization import observer as ao

import qlab
from qlab.calibrate import Entropy, Histogram, MinMax, MovingAverage, MseOptimal, Percentile
from qlab.calibrate.entropy import divergences, entropy_threshold
from qlab.core import from_params

# qlab's scheme, and what torch calls it. torch's symmetric scale is amax / 127.5: `full`.
SCHEMES = {
    "uint8-tensor": {"dtype": torch.quint8, "qscheme": torch.per_tensor_affine},
    "int8-asym-tensor": {"dtype": torch.qint8, "qscheme": torch.per_tensor_affine},
    "int8-full-tensor": {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric},
    "int8-tensor": {
        "dtype": torch.qint8,
        "qscheme": torch.per_tensor_symmetric,
        "quant_min": -127,
        "quant_max": 127,
    },
    "int4-asym-tensor": {
        "dtype": torch.qint8,
        "qscheme": torch.per_tensor_affine,
        "quant_min": -8,
        "quant_max": 7,
    },
}
# Below this torch lifts a scale to it; qlab only below the smallest normal float32.
EPS = torch.finfo(torch.float32).eps


def both(theirs, mine, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao says that it moves to torchao
        theirs = theirs()
    for batch in batches:
        theirs(torch.from_numpy(batch))
        mine.observe(torch.from_numpy(batch))
    return theirs, mine


def same(theirs, mine, word):
    """Same range, scale and zero point, bit for bit."""
    low, high = mine.range(word)
    assert np.array_equal(low.flatten(), theirs.min_val.flatten())
    assert np.array_equal(high.flatten(), theirs.max_val.flatten())
    scale, zero = mine.params(word)
    their_scale, their_zero = theirs.calculate_qparams()
    # Where the data is nothing or nearly nothing, each lifts the scale in its own way.
    usual = their_scale.flatten() > EPS
    assert torch.equal(scale.flatten()[usual], their_scale.flatten()[usual])
    assert (scale.flatten()[~usual] <= EPS).logical_or(scale.flatten()[~usual] == 1).all()
    if zero is not None:
        assert torch.equal(
            zero.flatten()[usual].to(torch.int64), their_zero.flatten()[usual].to(torch.int64)
        )
    else:
        assert (their_zero == 0).all()
    return usual


def hard_batches():
    rng = np.random.default_rng(0)
    return [
        [rng.standard_normal((3, 8)), rng.standard_normal((1, 8)) * 3, np.zeros((2, 8))],
        [np.zeros((2, 8)), np.zeros((1, 8))],
        [np.full((2, 8), 3.5)],
        [np.full((2, 8), -3.5), np.full((2, 8), -1.0)],
        [np.append(rng.standard_normal(7), 1e4)[None], rng.standard_normal((1, 8))],
        [rng.uniform(2, 3, (4, 8))],
        [rng.uniform(-3, -2, (4, 8)), np.zeros((0, 8))],
        [rng.standard_normal((2, 8)) * 1e30],
        [rng.standard_normal((2, 8)) * 1e-41],
        [np.array([[1.0] * 8])],
    ]


@pytest.mark.parametrize("word", SCHEMES)
@pytest.mark.parametrize("case", range(10))
def test_min_max_and_moving_average(word, case):
    batches = [b.astype(np.float32) for b in hard_batches()[case]]
    how = SCHEMES[word]
    same(*both(lambda: ao.MinMaxObserver(**how), MinMax(), batches), word)
    same(*both(lambda: ao.MovingAverageMinMaxObserver(**how), MovingAverage(), batches), word)
    fast = {"averaging_constant": 0.3}
    same(
        *both(lambda: ao.MovingAverageMinMaxObserver(**fast, **how), MovingAverage(0.3), batches),
        word,
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "word, qscheme",
    [
        ("int8-asym", torch.per_channel_affine),
        ("int8-full", torch.per_channel_symmetric),
        ("uint8", torch.per_channel_affine),
    ],
)
def test_per_channel(word, qscheme, axis):
    rng = np.random.default_rng(1)
    dtype = torch.quint8 if word == "uint8" else torch.qint8
    how = {"ch_axis": axis, "dtype": dtype, "qscheme": qscheme}
    batches = [(rng.standard_normal((6, 6)) * 10.0 ** np.arange(6)).astype(np.float32)] * 2
    batches.append(rng.standard_normal((6, 6)).astype(np.float32))
    usual = same(*both(lambda: ao.PerChannelMinMaxObserver(**how), MinMax(axis), batches), word)
    assert usual.all() and usual.numel() == 6
    averaged = both(
        lambda: ao.MovingAveragePerChannelMinMaxObserver(**how), MovingAverage(axis=axis), batches
    )
    same(*averaged, word)


@given(
    batches=st.lists(
        hnp.arrays(
            np.float32, st.integers(1, 9), elements=st.floats(-(2.0**60), 2.0**60, width=32)
        ),
        min_size=1,
        max_size=5,
    ),
    word=st.sampled_from(list(SCHEMES)),
)
@settings(max_examples=100, deadline=None)
def test_any_batches(batches, word):
    how = SCHEMES[word]
    same(*both(lambda: ao.MinMaxObserver(**how), MinMax(), batches), word)
    same(*both(lambda: ao.MovingAverageMinMaxObserver(**how), MovingAverage(), batches), word)


@pytest.mark.parametrize("tail", [3, 30])
def test_the_mse_observer_is_at_least_as_good_as_torchs_histogram_observer(tail):
    """HistogramObserver minimizes an approximate squared error over its own histogram."""
    rng = np.random.default_rng(tail)
    batches = [rng.standard_t(tail, (64, 32)).astype(np.float32) for _ in range(6)]
    how = SCHEMES["uint8-tensor"]
    theirs, mine = both(lambda: ao.HistogramObserver(**how), MseOptimal(), batches)
    x, scheme = torch.from_numpy(np.concatenate(batches)), qlab.Scheme.parse("uint8-tensor")
    errors = []
    for scale, zero in (mine.params("uint8-tensor"), theirs.calculate_qparams()):
        one = (1, 1)
        q = from_params(x, scale.reshape(one), zero.to(torch.int32).reshape(one), scheme)
        errors.append(qlab.mse(x, q))
    # Ours searches a histogram here, too; 1 % is more than its resolution.
    assert errors[0] <= 1.01 * errors[1]


# ONNX Runtime


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch}


def calibrated(folder, method, batches, **options):
    """The range that ONNX Runtime finds for the input of a MatMul."""
    size = batches[0].shape[1]
    weight = helper.make_tensor("w", T.FLOAT, (size, 1), np.zeros(size, np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("y", T.FLOAT, ["n", 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(model, path)
    calibrator = create_calibrator(
        path,
        ["MatMul"],
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=method,
        extra_options=options,
    )
    # Two calls, so that the second meets a range or a histogram that is there already.
    half = -(-len(batches) // 2)
    calibrator.collect_data(Reader(batches[:half]))
    if batches[half:]:
        calibrator.collect_data(Reader(batches[half:]))
    low, high = calibrator.compute_data()["x"].range_value
    return float(np.ravel(low)[0]), float(np.ravel(high)[0]), calibrator


def streams():
    rng = np.random.default_rng(2)
    return {
        "normal": [rng.standard_normal((50, 40)) for _ in range(6)],
        "growing": [rng.standard_normal((50, 40)) * (1 + i) for i in range(6)],
        "shifted": [rng.laplace(size=(50, 40)) + 2 for _ in range(6)],
        "positive": [np.abs(rng.standard_normal((50, 40))) for _ in range(6)],
        "outlier": [np.append(rng.standard_normal(1999), 500.0).reshape(50, 40)] * 2,
        "constant": [np.full((5, 4), 1.5)],
    }


@pytest.mark.parametrize("name", streams())
def test_onnxruntimes_min_max(tmp_path, name):
    batches = [b.astype(np.float32) for b in streams()[name]]
    observer = MinMax()
    for batch in batches:
        observer.observe(batch)
    low, high = (float(v.item()) for v in observer.range("int8"))
    assert calibrated(tmp_path, CalibrationMethod.MinMax, batches)[:2] == (low, high)
    amax = max(-low, high)
    assert calibrated(tmp_path, CalibrationMethod.MinMax, batches, symmetric=True)[:2] == (
        -amax,
        amax,
    )


@pytest.mark.parametrize("name", [n for n in streams() if n != "constant"])
# No whole rank: at one, the rounding of its sum of shares decides between two neighbours.
@pytest.mark.parametrize("p", [98.7654, 99.9123, 99.999])
@pytest.mark.parametrize("symmetric", [True, False])
def test_onnxruntimes_percentile_within_a_bin_of_each(tmp_path, name, p, symmetric):
    batches = [b.astype(np.float32) for b in streams()[name]]
    low, high, calibrator = calibrated(
        tmp_path, CalibrationMethod.Percentile, batches, percentile=p, symmetric=symmetric
    )
    edges = calibrator.collector.histogram_dict["x"][1]
    observer = Percentile(p)
    for batch in batches:
        observer.observe(batch)
    # ONNX Runtime returns the left edge of the bin in which the percentile lies; ours is somewhere
    # in its own, finer bin.
    slack = 1.001 * float(edges[1] - edges[0]) + observer.histogram.width
    mine = [v.item() for v in observer.range("int8", symmetric)]
    # It cuts both to what was seen, the symmetric pair too, which then is symmetric no more.
    mine = max(mine[0], observer.histogram.minimum), min(mine[1], observer.histogram.maximum)
    assert abs(mine[0] - low) <= slack and abs(mine[1] - high) <= slack
    assert slack < 0.01 * observer.histogram.amax


def entropy_of_onnxruntime(x, bins, levels=128):
    collector = HistogramCollector("entropy", False, bins, levels, 99.99, "same")
    collector.collect({"x": [x]})
    low, high = collector.compute_collection_result()["x"][:2]
    return float(low), float(high), collector.histogram_dict["x"]


def its_choices(counts, levels):
    """The same divergence with the choices of ONNX Runtime, for each half-width i in bins.

    It cuts the histogram of x, not of |x|; bins beyond the last whole multiple of the levels belong
    to the last level but are not filled from it; the share of a bin is cut to an integer; and empty
    bins of P and Q are filled with 0.0001, taken from the others.
    """

    def smooth(v):
        empty, full = (v == 0).sum(), (v != 0).sum()
        return np.where(v == 0, 1e-4, v - 1e-4 * empty / full)

    zero, out = len(counts) // 2, []
    for i in range(levels // 2, zero + 1):
        start, end = zero - i, min(zero + i + 1, len(counts))
        inside = counts[start:end]
        p = inside.astype(np.float64)
        p[0] += counts[:start].sum()
        p[-1] += counts[end:].sum()
        each = len(inside) // levels
        whole = inside[: each * levels].reshape(levels, each).sum(axis=1)
        whole[-1] += inside[each * levels :].sum()
        filled = (p[: each * levels] > 0).reshape(levels, each)
        share = whole // np.maximum(filled.sum(axis=1), 1) * (filled.sum(axis=1) > 0)
        q = np.zeros(len(inside))
        q[: each * levels] = np.repeat(share, each)
        p, q = smooth(p), smooth(q)
        p, q = p / p.sum(), q / q.sum()
        out.append((p * np.log(p / q)).sum())
    return np.array(out)


SHAPES = {
    "normal": lambda rng: rng.standard_normal(60_000),
    "laplace": lambda rng: rng.laplace(size=60_000),
    "t4": lambda rng: rng.standard_t(4, 60_000),
    "uniform": lambda rng: rng.uniform(-1, 1, 60_000),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_onnxruntimes_entropy_and_what_differs(shape):
    x = SHAPES[shape](np.random.default_rng(3)).astype(np.float32)
    bins, levels = 768, 128
    low, high, (counts, edges, *_) = entropy_of_onnxruntime(x, bins)
    # With its choices the divergence has its minimum at its threshold ...
    theirs = its_choices(counts, levels)
    i = levels // 2 + int(np.argmin(theirs))
    zero = bins // 2
    assert low == max(float(edges[zero - i]), float(x.min()))
    assert high == min(float(edges[min(zero + i + 1, bins)]), float(x.max()))
    # ... and without them at ours, on the same histogram of |x|, which has 64 levels a side.
    width = float(edges[1] - edges[0])
    folded = counts[zero:] + counts[:zero][::-1]
    mine = divergences(folded, levels // 2)
    ours = entropy_threshold(folded, width, levels // 2)
    assert ours == pytest.approx(width * (levels // 2 + np.argmin(mine)))
    # The same idea, so the same region: measured ratios lie between 0.7 and 1.2.
    assert 0.5 < ours / max(high, -low) < 1.5
    observer = Entropy()
    observer.observe(x)
    assert 0.5 < observer.range("int8")[1].item() / max(high, -low) < 1.6


def test_onnxruntimes_entropy_with_its_default_bins_does_not_clip(tmp_path):
    """128 bins and 128 levels leave one candidate, the whole range (up to a bin on one side)."""
    x = np.random.default_rng(4).standard_t(4, (50, 40)).astype(np.float32)
    low, high, calibrator = calibrated(tmp_path, CalibrationMethod.Entropy, [x])
    assert calibrator.collector.num_bins == calibrator.collector.num_quantized_bins == 128
    amax = float(np.abs(x).max())
    assert max(-low, high) > (1 - 2 / 64) * amax
    observer = Entropy()
    observer.observe(x)
    assert observer.range("int8")[1].item() < 0.8 * amax


def test_the_histogram_grows_by_merging_where_onnxruntimes_adds_bins():
    rng = np.random.default_rng(5)
    collector = HistogramCollector("entropy", False, 128, 128, 99.99, "same")
    mine = Histogram(128)
    for scale in (0.01, 1.0, 100.0):
        x = (rng.standard_normal(500) * scale).astype(np.float32)
        collector.collect({"x": [x]})
        mine.add(x)
    theirs = collector.histogram_dict["x"][0]
    assert theirs.sum() == mine.counts.sum() == 1500
    assert len(theirs) > 100_000 and mine.bins == 128
