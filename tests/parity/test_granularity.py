"""Granularity against torchao, ONNX Runtime, torch and bitsandbytes: the same blocks and bits.

What each tool calls it:

    qlab        torchao block_size    ONNX                     others
    tensor      the shape             no axis                  torch.quantize_per_tensor
    channel     (1, in)               axis=0                   torch.quantize_per_channel,
                                                               bitsandbytes int8_vectorwise_quant
    channel1    (out, 1)              axis=1                   torch.quantize_per_channel
    token       (1, features)
    g32         (1, 32)               axis=1, block_size=32    bitsandbytes quantize_blockwise
    b16x1       (16, 1)               axis=0, block_size=16
    b16x32      (16, 32)
"""

import functools

import numpy as np
import pytest
import torch

import qlab
from qlab.core.granularity import expand, to_blocks

SHAPE = (64, 128)
WORDS = ["tensor", "channel", "channel1", "token", "g32", "g16", "b16x1", "b16x32", "b1x128"]


def inputs():
    """name -> float32 matrix: random and adversarial."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(SHAPE).astype(np.float32)
    outlier = normal.copy()
    outlier[5, 7] = 1e4
    column = normal.copy()
    column[:, 3] *= 100
    mixed = (normal * 10.0 ** rng.integers(-20, 20, (SHAPE[0], 1))).astype(np.float32)
    return {
        "normal": normal,
        "one outlier": outlier,
        "an outlier column": column,
        "constant rows": np.repeat(normal[:, :1], SHAPE[1], 1),
        "positive": np.abs(normal) + 1,
        "rows of all magnitudes": mixed,
        "huge": (normal * 8e37).astype(np.float32),
        "small": (normal * 1e-30).astype(np.float32),
    }


INPUTS = inputs()


def tied(w, q):
    """Elements within 1e-4 of a step of the middle between two codes.

    Tools that multiply by the rounded inverse of the scale may round those the other way: 128 steps
    times two float32 roundings are 3e-5 of a step.
    """
    block = q.scheme.granularity.block_shape(w.shape)
    w, scale = np.asarray(w), np.asarray(q.scale)
    steps = to_blocks(w, block)[0] / expand(scale, block)
    return (np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-4).reshape(w.shape)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_torchao_block_size(kind, word, symmetric, bits):
    """The parameters bit for bit, and the codes but for ties, for every block_size."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    w = torch.from_numpy(INPUTS[kind])
    q = qlab.quantize(w, f"int{bits}-{'' if symmetric else 'asym-'}{word}")
    block_size = q.scheme.granularity.block_shape(SHAPE)
    low, high = q.scheme.format.range(symmetric)
    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    tiny = torch.finfo(torch.float32).tiny
    scale, zero = choose_qparams_affine(w, mapping, block_size, torch.int8, low, high, eps=tiny)
    codes = quantize_affine(w, block_size, scale, zero, torch.int8, low, high)
    assert torch.isfinite(q.scale).all()
    if kind == "huge" and word == "tensor" and not symmetric:
        # The range does not fit float32, where torchao's scale becomes infinite.
        assert not torch.isfinite(scale).any()
    finite = torch.isfinite(scale).reshape(q.scale.shape)
    assert torch.equal(scale.reshape(q.scale.shape)[finite], q.scale[finite])
    assert kind == "huge" or finite.all()
    if not finite.all():
        return
    if not symmetric:
        assert torch.equal(zero.reshape(q.scale.shape).int(), q.zero_point)
    differ = (codes != q.codes).numpy()
    assert not (differ & ~tied(w, q)).any()
    theirs = dequantize_affine(codes, block_size, scale, zero, torch.int8, low, high)
    same = ~torch.from_numpy(differ)
    assert torch.equal(theirs[same], q.dequantize()[same])


def test_torchao_names_the_same_blocks():
    """Its granularity classes give the block shapes of qlab's words."""
    from torchao.quantization import granularity as theirs
    from torchao.quantization.utils import get_block_size

    pairs = {
        "tensor": theirs.PerTensor(),
        "channel": theirs.PerAxis(0),
        "token": theirs.PerToken(),
        "g32": theirs.PerGroup(32),
        "b16x32": theirs.PerBlock([16, 32]),
    }
    for word, granularity in pairs.items():
        ours = qlab.Scheme.parse(f"int8-{word}").granularity.block_shape(SHAPE)
        assert tuple(get_block_size(SHAPE, granularity)) == ours
    assert tuple(get_block_size(SHAPE, theirs.PerRow())) == (1, SHAPE[1])


@functools.cache
def onnx_session(axis, block_size, shape, with_zero):
    import onnxruntime
    from onnx import TensorProto, helper

    how = {} if axis is None else {"axis": axis}
    if block_size:
        how["block_size"] = block_size
    names = ["x", "scale", "zero"] if with_zero else ["x", "scale"]
    kind = {} if with_zero else {"output_dtype": TensorProto.INT8}
    nodes = [
        helper.make_node("QuantizeLinear", names, ["codes"], **how, **kind),
        helper.make_node("DequantizeLinear", ["codes", *names[1:]], ["back"], **how),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("zero", TensorProto.INT8, shape),
    ]
    outputs = [
        helper.make_tensor_value_info("codes", TensorProto.INT8, SHAPE),
        helper.make_tensor_value_info("back", TensorProto.FLOAT, SHAPE),
    ]
    graph = helper.make_graph(nodes, "q", inputs[: len(names)], outputs)
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(
    ("word", "axis", "block_size"),
    [
        ("tensor", None, None),
        ("channel", 0, None),
        ("channel1", 1, None),
        ("g32", 1, 32),
        ("g16", 1, 16),
        ("b16x1", 0, 16),
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_onnx_runtime_axis_and_block_size(kind, word, axis, block_size, symmetric):
    """QuantizeLinear divides and rounds half to even: the same codes and values, bit for bit."""
    w = INPUTS[kind]
    q = qlab.quantize(w, f"int8-{'' if symmetric else 'asym-'}{word}")
    shape = q.scale.shape if block_size else () if axis is None else (w.shape[axis],)
    feed = {"x": w, "scale": q.scale.reshape(shape)}
    if not symmetric:
        feed["zero"] = q.zero_point.astype(np.int8).reshape(shape)
    session = onnx_session(axis, block_size, shape, not symmetric)
    codes, back = session.run(None, feed)
    np.testing.assert_array_equal(codes, q.codes)
    np.testing.assert_array_equal(back, q.dequantize())


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.filterwarnings("ignore:.*quantize_per_channel.*:UserWarning")
def test_torch_per_channel(kind, axis):
    w = INPUTS[kind]
    q = qlab.quantize(torch.from_numpy(w), "int8-channel" + ("1" if axis else ""))
    zeros = torch.zeros(SHAPE[axis], dtype=torch.int64)
    theirs = torch.quantize_per_channel(
        torch.from_numpy(w), q.scale.flatten().double(), zeros, axis, torch.qint8
    )
    differ = (theirs.int_repr() != q.codes).numpy()
    assert not (differ & ~tied(w, q)).any()


@pytest.mark.parametrize("kind", [k for k in INPUTS if k != "small"])
def test_bitsandbytes_blockwise(kind):
    """Blocks of 64 in memory order are groups of 64; its absmax over 127 is the scale.

    ("small" is left out: its CPU code treats an absmax below 1e-8 or so as zero.)
    """
    import bitsandbytes.functional as bnb

    w = torch.from_numpy(INPUTS[kind])
    q = qlab.quantize(w, "int8-g64")
    code = torch.arange(-127, 128) / 127
    code = torch.cat([code, code[-1:]])  # 256 entries, the last one twice
    packed, state = bnb.quantize_blockwise(w.flatten(), code=code, blocksize=64)
    assert torch.equal(state.absmax / 127, q.scale.flatten())
    theirs = (packed.to(torch.int16) - 127).clamp(max=127).reshape(SHAPE)
    # Its search compares with the middle of two entries in float32 of the unit range.
    differ = (theirs != q.codes).numpy()
    steps = w.numpy() / np.repeat(q.scale.numpy(), 64, 1)
    near = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 2e-3
    assert not (differ & ~near).any()


def test_bitsandbytes_int8_rows():
    """LLM.int8()'s weights: a scale a row."""
    import bitsandbytes.functional as bnb

    w = torch.from_numpy(INPUTS["normal"]).half()
    codes, absmax, _ = bnb.int8_vectorwise_quant(w)
    q = qlab.quantize(w, "int8-channel")
    assert torch.equal(absmax / 127, q.scale.flatten())
    differ = (codes != q.codes).numpy()
    assert not (differ & ~tied(w.float(), q)).any()
