"""What the chapter on ONNX Runtime says, on graphs of our own."""

import contextlib
import io
import types

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto as T
from onnx import helper

import qlab
from qlab.viz.toolbox_bytes import onnx_bits

seeds = st.integers(0, 2**31)


def product(w, name="model.layers.0.mlp.up_proj"):
    """A graph that multiplies x (n, in_features) by w (out_features, in_features)ᵀ."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name=name)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [None, w.shape[1]])],
        [helper.make_tensor_value_info("y", T.FLOAT, [None, w.shape[0]])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(w.T), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def four_bits(w, **how):
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    quantizer = nbits.MatMulNBitsQuantizer(
        product(w), **{"bits": 4, "block_size": 32, "is_symmetric": True, **how}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        quantizer.process()
    return quantizer.model.model


def read(graph):
    """The chapter's."""
    held = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    node = next(n for n in graph.node if n.op_type == "MatMulNBits")
    packed, scale = (held[name] for name in node.input[1:3])
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).astype(int) - 8
    return codes, scale.reshape(len(packed), -1)


def check(w):
    codes, d = read(four_bits(w).graph)
    blocks = w.reshape(len(w), -1, 32)
    at = np.abs(blocks).argmax(-1)[..., None]
    peak = np.take_along_axis(blocks, at, -1)[..., 0]
    # Two values of one magnitude and other signs: either may be the largest.
    assert np.array_equal(np.abs(d), np.abs(peak / np.float32(-8)))
    full = np.abs(d) > 1e-30
    steps = np.divide(blocks, d[..., None], where=full[..., None], out=np.zeros_like(blocks))
    edge = np.abs(np.abs(steps) % 1 - 0.5) < 2.0**-12
    mine = np.clip(np.round(steps), -8, 7)
    same = mine == codes.reshape(mine.shape)
    assert (same | edge)[full].all()
    assert (np.abs(mine - codes.reshape(mine.shape))[full] <= 1).all()


@settings(max_examples=12, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 64), elements=st.floats(-100, 100, width=32)).filter(
        lambda w: np.abs(w).max() > 1e-3
    )
)
def test_matmul_nbits_is_the_equation(w):
    check(w)


@pytest.mark.parametrize("what", ["normal", "outlier", "constant", "huge", "rows of zeros"])
def test_matmul_nbits_on_hard_weights(what):
    w = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    if what == "outlier":
        w[2, 70] = 1e5
    if what == "constant":
        w[:] = np.linspace(-2, 2, 8, dtype=np.float32)[:, None]
    if what == "huge":
        w *= np.float32(1e30)
    if what == "rows of zeros":
        w[3:5] = 0
    check(w)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_bits_of_a_file(block):
    w = np.random.default_rng(0).standard_normal((96, 128)).astype(np.float32)
    config = types.SimpleNamespace(
        hidden_size=128,
        intermediate_size=32,  # 3 · 128 · 32 weights in all: as many as w has
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=128,
        num_key_value_heads=1,
        vocab_size=1000,
    )
    assert onnx_bits(product(w), config)["feed-forward"] == 32
    found = onnx_bits(four_bits(w, block_size=block), config)
    assert found["feed-forward"] == pytest.approx(4 + 32 / block)
    assert found["attention"] == 0


def problem(seed):
    g = np.random.default_rng(seed)
    w = g.standard_normal((48, 8)).astype(np.float32)
    x = g.standard_normal((200, 6)) @ g.standard_normal((6, 48)) + 0.1 * g.standard_normal(
        (200, 48)
    )
    return w, x


def rounded(w, hessian, row=True, group=16):
    """The chapter's loop."""
    w, q = w.astype(np.float64), np.zeros_like(w, np.float64)
    hessian = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    u = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for i in range(len(w)):
        if i % group == 0:
            low = np.minimum(w[i : i + group].min(0), 0)
            high = np.maximum(w[i : i + group].max(0), 0)
            s = (high - low) / 15
            z = np.round(-low / s)
        q[i] = s * (np.clip(np.round(w[i] / s) + z, 0, 15) - z)
        error = (w[i] - q[i]) / u[i, i]
        w[i + 1 :] -= np.outer(u[i, i + 1 :] if row else u[i + 1 :, i], error)
    return q


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_onnxruntimes_gptq_does_not_use_the_data(seed):
    """When this fails, ONNX Runtime was mended, and the section has to be rewritten."""
    from onnxruntime.quantization.neural_compressor import weight_only as inside

    w, x = problem(seed)
    with_data = inside.gptq(w.copy(), x.T @ x, group_size=16)
    assert np.array_equal(with_data, inside.gptq(w.copy(), np.eye(48), group_size=16))
    column = rounded(w, x.T @ x, row=False)
    assert np.allclose(column, rounded(w, np.eye(48), row=False))
    assert np.mean(np.isclose(column, with_data, atol=1e-5)) > 0.98  # float32 there: ties


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_the_loop_with_the_row_loses_less(seed):
    w, x = problem(seed)

    def lost(q):
        return np.linalg.norm(x @ (q - w))

    assert lost(rounded(w, x.T @ x)) < lost(rounded(w, x.T @ x, row=False))


def test_dynamic_default_quantizes_a_shared_table_once():
    """Embedding and head on one table: bytes are counted for the embedding alone."""
    table = np.zeros((1000, 128), np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Transpose", ["table"], ["t"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"], name="lm_head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", T.INT64, [None])],
        [helper.make_tensor_value_info("y", T.FLOAT, None)],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    config = types.SimpleNamespace(
        hidden_size=128,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=128,
        num_key_value_heads=1,
        vocab_size=1000,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = onnx_bits(model, config)
    assert found["embedding"] == 32 and found["head"] == 0


def test_the_weights_of_qlab_match_the_dynamic_quantizer(tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    w = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    w[2] = 0
    w[3, 5] = 300
    onnx.save(product(w), tmp_path / "a.onnx")
    quantize_dynamic(
        tmp_path / "a.onnx", tmp_path / "b.onnx", weight_type=QuantType.QInt8, per_channel=True
    )
    graph = onnx.load(tmp_path / "b.onnx").graph
    held = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    q = qlab.quantize(torch.from_numpy(w), "int8-channel")
    assert np.array_equal(held["w_quantized"].T, q.codes.numpy())
