"""ONNX Runtime's QuantizeLinear and DequantizeLinear (opset 21), bit for bit.

The rule of both: divide in float32, round half to even, add the zero point, saturate to the whole
range of the type. qlab's asymmetric schemes use that range too; its symmetric ones give up the most
negative code, which is the one difference, and is tested as such. Float8: the value is rounded to
the nearest, half to even, and beyond the largest level it saturates, or becomes NaN (infinity for
e5m2) with ``saturate=0``: in qlab the ``overflow`` of the format. Float8 has no zero point.
"""

import functools
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto as T
from onnx import helper

import qlab
from qlab.core import from_params, get_format

TYPES = {"int8": T.INT8, "uint8": T.UINT8, "int4": T.INT4, "uint4": T.UINT4}
FLOATS = {"fp8_e4m3": T.FLOAT8E4M3FN, "fp8_e5m2": T.FLOAT8E5M2}


@functools.cache
def session(fmt, axis=None, block=None, zero=True, saturate=1):
    """x, scale (and zero point as int8) -> codes as int8 (float32 for float8), and x̂."""
    kind = (TYPES | FLOATS)[fmt]
    attributes = {}
    if axis is not None:
        attributes["axis"] = axis
    if block is not None:
        attributes["block_size"] = block
    quantize = attributes | ({"saturate": saturate} if fmt in FLOATS else {})
    names, nodes = ["x", "scale"], []
    inputs = [helper.make_tensor_value_info(n, T.FLOAT, None) for n in names]
    wide = T.FLOAT if fmt in FLOATS else (T.UINT8 if fmt.startswith("u") else T.INT8)
    if zero:
        inputs.append(helper.make_tensor_value_info("wide_zero", wide, None))
        nodes.append(helper.make_node("Cast", ["wide_zero"], ["zero"], to=kind))
        names.append("zero")
    else:
        quantize["output_dtype"] = kind
    nodes += [
        helper.make_node("QuantizeLinear", names, ["q"], **quantize),
        helper.make_node("Cast", ["q"], ["codes"], to=wide),
        helper.make_node("DequantizeLinear", ["q", *names[1:]], ["y"], **attributes),
    ]
    outputs = [
        helper.make_tensor_value_info("codes", wide, None),
        helper.make_tensor_value_info("y", T.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # As the specification says it, node by node: without this it may fuse a pair of them away.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run(fmt, x, scale, zero, **how):
    feed = {"x": x, "scale": scale}
    if zero is not None:
        feed["wide_zero"] = zero.astype(np.uint8 if fmt.startswith("u") else np.int8)
    return session(fmt, zero=zero is not None, **how).run(None, feed)


def compare(fmt, x, granularity, scale=None, zero=None):
    """qlab's codes and x̂ equal those of ONNX Runtime; scale and zero from min-max if not given."""
    word = f"{fmt}-{granularity}" if fmt.startswith("u") else f"{fmt}-asym-{granularity}"
    if scale is None:
        q = qlab.quantize(x, word)
        scale, zero = q.scale, q.zero_point
    else:
        q = from_params(x, scale, zero, qlab.Scheme.parse(word))
    if granularity == "tensor":
        codes, y = run(fmt, x, scale.reshape(()), zero.reshape(()))
    elif granularity.startswith("g"):
        codes, y = run(fmt, x, scale, zero, axis=x.ndim - 1, block=int(granularity[1:]))
    else:
        axis = int(granularity[7:] or 0)
        codes, y = run(fmt, x, scale.reshape(-1), zero.reshape(-1), axis=axis)
    assert np.array_equal(codes, q.codes)
    # Where code times scale overflows, ONNX Runtime has infinity and qlab the largest float32.
    largest = np.finfo(np.float32).max
    assert np.array_equal(np.clip(y, -largest, largest), q.dequantize())
    return codes


def rows():
    """Hard rows of 32: each a case of its own."""
    rng = np.random.default_rng(0)
    k = np.arange(-16, 16)
    return np.stack(
        [
            rng.standard_normal(32),
            np.zeros(32),
            np.full(32, 3.75),
            np.full(32, -1e-3),
            np.append(rng.standard_normal(31), 1e4),
            np.append(rng.standard_normal(31), -1e4),
            k + 0.5,
            k * 1.0,
            rng.standard_normal(32) * 1e-41,
            rng.standard_normal(32) * 1e37,
            rng.uniform(0, 1, 32),
            rng.uniform(-1, 0, 32),
            np.where(k % 2, -0.0, 0.0),
            np.append(np.zeros(31), 1e-45),
            np.append(np.full(31, 3e38), -3e38),
            rng.standard_t(1, 32),
        ]
    ).astype(np.float32)


@pytest.mark.oracle("method rtn", "onnxruntime", "equal codes")
@pytest.mark.oracle("format {fmt}", "onnxruntime", "equal codes")
@pytest.mark.parametrize("fmt", TYPES)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "channel1", "g32", "g16", "g4"])
def test_min_max_quantization_of_hard_rows(fmt, granularity):
    x = rows()
    if granularity == "tensor":
        for row in x:
            compare(fmt, row, "tensor")
    codes = compare(fmt, x, granularity)
    assert len(np.unique(codes)) > 2


@pytest.mark.parametrize("fmt", TYPES)
def test_halves_go_to_even_and_the_rest_saturates(fmt):
    f = get_format(fmt)
    scale = np.full(1, 0.25, np.float32)  # divides exactly, so that halves stay halves
    x = np.concatenate(
        [
            (np.arange(-40, 40) + 0.5) * 0.25,
            np.nextafter((np.arange(-40, 40) + 0.5) * 0.25, np.inf, dtype=np.float32),
            [1e3, -1e3, 1e30, -1e30, 3.4e38, -3.4e38],
        ]
    ).astype(np.float32)
    for z in (f.qmin, 0, 1, 3, f.qmax):
        codes = compare(fmt, x, "tensor", scale, np.full(1, z, np.int32))
        expected = np.clip(np.round(x.astype(np.float64) / 0.25) + z, f.qmin, f.qmax)
        assert np.array_equal(codes, expected)
    assert compare(fmt, np.array([0.125, 0.375], np.float32), "tensor", scale, np.zeros(1, int))[
        1
    ] == min(2, f.qmax)


@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7),
        elements=st.floats(-3.4028234663852886e38, 3.4028234663852886e38, width=32),
    ),
    fmt=st.sampled_from(list(TYPES)),
    granularity=st.sampled_from(["tensor", "channel", "channel1"]),
)
@settings(max_examples=150, deadline=None)
def test_any_array(x, fmt, granularity):
    compare(fmt, x, granularity)


@given(
    scale=st.floats(2.0**-126, 2.0**126, width=32),
    z=st.integers(-128, 127),
    x=hnp.arrays(np.float32, 9, elements=st.floats(-(2.0**127), 2.0**127, width=32)),
)
@settings(max_examples=150, deadline=None)
def test_any_parameters(scale, z, x):
    compare("int8", x, "tensor", np.full(1, scale, np.float32), np.full(1, z, np.int32))


@pytest.mark.parametrize("fmt", TYPES)
def test_odd_shapes(fmt):
    rng = np.random.default_rng(1)
    for shape in ((1,), (3,), (1, 1), (5, 7), (2, 3, 5)):
        compare(fmt, rng.standard_normal(shape).astype(np.float32), "tensor")
    for shape in ((1, 1), (5, 7), (7, 1), (2, 3, 5)):
        compare(fmt, rng.standard_normal(shape).astype(np.float32), "channel")
    compare(fmt, rng.standard_normal((3, 2, 12)).astype(np.float32), "g4")
    compare(fmt, np.zeros((0, 4), np.float32), "channel")


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_the_restricted_range_differs_by_one_code_alone(fmt):
    f = get_format(fmt)
    x = np.linspace(-3, 3, 4001, dtype=np.float32)
    scale = np.full(1, 2 / f.qmax, np.float32)
    codes, _ = run(fmt, x, scale.reshape(()), None)
    q = from_params(x, scale, None, qlab.Scheme.parse(f"{fmt}-tensor"))
    assert codes.min() == f.qmin and q.codes.min() == -f.qmax
    assert np.array_equal(np.maximum(codes, -f.qmax), q.codes)


@pytest.mark.parametrize("fmt", FLOATS)
@pytest.mark.parametrize("saturate", [1, 0])
def test_float8(fmt, saturate):
    levels = np.array(get_format(fmt).levels(), np.float32)
    middle = (levels[1:] + levels[:-1]) / 2
    rng = np.random.default_rng(2)
    x = np.concatenate(
        [
            levels,
            middle,
            np.nextafter(middle, np.float32(np.inf)),
            np.nextafter(middle, np.float32(-np.inf)),
            rng.standard_normal(5000) * np.float32(100),
            np.exp2(rng.uniform(-24, 17, 5000)) * rng.choice([-1, 1], 5000),
            [0.0, -0.0, 1e-45, -1e-45, 1e-30, 449, 463.9, 464, 464.1, 479, 480, 57344, 61439.9],
            [61440, 61441, 65536, 1e30, -1e30, 3.4e38],
        ]
    ).astype(np.float32)
    overflow = "saturate" if saturate else ("nan" if fmt == "fp8_e4m3" else "inf")
    f = replace(get_format(fmt), overflow=overflow)
    for scale in np.array([1, 0.5, 0.3, 7.7], np.float32):
        values, y = run(fmt, x, np.array(scale), None, saturate=saturate)
        with np.errstate(over="ignore"):
            ratio = x / scale
            mine = f.decode(f.encode(ratio))
        agree = np.ones(len(x), bool)
        if not saturate:
            # Two places where this version of ONNX Runtime does not round to the nearest: just
            # above the last level it returns it again, or (e5m2) NaN before infinity begins.
            low, high, says = {
                "fp8_e4m3": (480, 496, 448),
                "fp8_e5m2": (61440, 65536, np.nan),
            }[fmt]
            agree = (np.abs(ratio) < low) | (np.abs(ratio) >= high)
            np.testing.assert_array_equal(np.abs(values[~agree]), np.full((~agree).sum(), says))
            assert not np.isfinite(mine[~agree]).any()
        assert agree.sum() > 10_000
        np.testing.assert_array_equal(mine[agree], values[agree])
        same_sign = np.signbit(mine) == np.signbit(values)
        assert same_sign[agree & ~np.isnan(mine)].all()
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal((mine * scale)[agree], y[agree])
