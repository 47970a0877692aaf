"""The kernels against dequantizing and multiplying in float64.

A kernel rounds each product and each sum of floats once. Its error is then at most some units of
2^-24 of the sum of all magnitudes; 64 units leave room for rows of 600 weights.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.errors import QlabError
from qlab.gguf.blocks import block_type
from qlab.kernels import reference
from qlab.kernels.cpu.kinds import FLOAT, Kind
from qlab.kernels.cpu.linear import matmul, matvec
from qlab.kernels.cpu.pack import pack, pack_gguf
from tests.kernels.cpu.cases import CASES, GGUF, block_inputs, expected, matrix, quantized

ROUNDINGS = 64 * 2.0**-24


def inputs(columns, seed=0, tokens=3):
    rng = np.random.default_rng(100 + seed)
    x = rng.normal(size=(tokens, columns)).astype(np.float32)
    x[0, columns // 2] = 30  # an outlier: its block loses digits, no other does
    return x


def check(packed, weight, x, block):
    wanted, size = expected(weight, x, block)
    rows = np.stack([matvec(packed, row) for row in x])
    assert rows.dtype == np.float32 and rows.shape == wanted.shape
    assert (np.abs(rows - wanted) <= ROUNDINGS * size + 1e-37).all()
    many = matmul(packed, x)
    if packed.kind in FLOAT:
        assert (np.abs(many - wanted) <= ROUNDINGS * size + 1e-37).all()
    else:
        assert np.array_equal(many, rows, equal_nan=True)


# A kind takes seconds to compile where the cache is empty: those in wide use first.
COMMON = {"INT8_CHANNEL", "INT4_GROUP", "INT4_ZERO", "CODEBOOK4", "Q4_0", "Q4_K"}


def rare(kind):
    return () if kind in COMMON else pytest.mark.slow


@pytest.mark.parametrize(
    ("scheme", "how", "kind"), [pytest.param(*case, marks=rare(case[2])) for case in CASES]
)
def test_each_scheme_gives_the_product_of_its_weights(scheme, how, kind):
    q = quantized(scheme, 37, 320)
    packed = pack(q, how)
    assert packed.kind.name == kind
    check(packed, q, inputs(320), block_inputs(kind, how, 320))


@pytest.mark.parametrize("name", [pytest.param(n, marks=rare(k)) for n, k in GGUF.items()])
def test_each_gguf_type_gives_the_product_of_its_weights(name):
    found = block_type(name)
    blocks = matrix(21, 512).reshape(21, -1, found.block_size)
    with np.errstate(all="ignore"):  # of the row of zeros
        data = found.encode(blocks, None).reshape(21, -1)
    packed = pack_gguf(data, name, 512)
    assert packed.kind.name == GGUF[name]
    dense = found.decode(data.reshape(-1, found.block_bytes)).reshape(21, 512)
    check(packed, dense, inputs(512), block_inputs(GGUF[name], "blocks", 512))


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-asym-g32", "nf4-g32"])
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 50),
    groups=st.integers(1, 6),
    cut=st.integers(0, 31),
    seed=st.integers(0, 2**20),
)
def test_any_shape(scheme, rows, groups, cut, seed):
    columns = max(1, groups * 32 - cut)
    q = quantized(scheme, rows, columns, seed, pad=True)
    packed = pack(q)
    check(packed, q, inputs(columns, seed, 2), block_inputs(packed.kind.name, "blocks", columns))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 70), seed=st.integers(0, 2**20))
def test_any_shape_of_whole_rows_and_floats(rows, columns, seed):
    w, x = matrix(rows, columns, seed), inputs(columns, seed, 2)
    check(pack(w), w, x, None)
    q = qlab.quantize(w, "int8-channel")
    check(pack(q), q, x, 32)
    check(pack(q, "token"), q, x, columns)


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-asym-g32", "nf4-g32"])
@pytest.mark.parametrize("size", [1e-44, 1e-36, 1e-30, 1e30, 1e35])
def test_inputs_of_any_size(scheme, size):
    q = quantized(scheme, 18, 96)
    x = (np.random.default_rng(0).uniform(-1, 1, (1, 96)) * size).astype(np.float32)
    packed = pack(q)
    block = block_inputs(packed.kind.name, "blocks", 96)
    wanted, total = expected(q, x, block)
    got = matvec(packed, x[0])
    assert (np.abs(got - wanted[0]) <= ROUNDINGS * total[0] + 1e-37).all()


def test_what_int8_inputs_cost_is_bounded():
    """Half a step of each input: |y - Wx| <= Σ |w| · amax / 254, plus the roundings."""
    w, x = matrix(40, 256), inputs(256)
    q = qlab.quantize(w, "int4-g32")
    steps = np.abs(x).reshape(3, 8, 32).max(axis=2).repeat(32, axis=1) / 254
    bound = steps @ np.abs(reference.dense(q)).T
    error = np.abs(matmul(pack(q), x) - reference.multiply(q, x))
    assert (error <= bound * 1.001 + 1e-4).all() and error.max() > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_not_hidden(bad):
    x = np.ones(64, np.float32)
    x[40] = bad
    for packed in (pack(quantized("int4-g32", 20, 64)), pack(matrix(20, 64) + 1)):
        assert not np.isfinite(matvec(packed, x)).any()


def test_zeros_give_zeros():
    for scheme in ("int4-asym-g32", "int8-channel", "nf4-g32"):
        packed = pack(quantized(scheme, 20, 64))
        assert not matvec(packed, np.zeros(64)).any()
        assert not matvec(pack(qlab.quantize(np.zeros((20, 64), np.float32), scheme)),
                          np.ones(64)).any()  # fmt: skip


def test_the_number_of_threads_does_not_matter():
    import numba

    q = quantized("int4-g32", 1030, 512)  # large enough for more than one thread
    packed, x = pack(q), inputs(512, tokens=9)
    results, before = [], numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            results.append((matvec(packed, x[0]), matmul(packed, x)))
    finally:
        numba.set_num_threads(before)
    assert all(np.array_equal(results[0][i], r[i]) for r in results for i in (0, 1))
    wanted, size = expected(q, x, 32)
    assert (np.abs(results[0][1] - wanted) <= ROUNDINGS * size).all()


def test_more_tokens_than_fit_at_once():
    packed, x = pack(quantized("int4-g32", 20, 64)), inputs(64, tokens=515)
    assert np.array_equal(matmul(packed, x)[512], matvec(packed, x[512]))
    assert matmul(packed, x[:0]).shape == (0, 20)


def test_inputs_may_be_of_torch_and_of_16_bits():
    packed = pack(quantized("int4-g32", 20, 64))
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert np.array_equal(matvec(packed, x), matvec(packed, x.float().numpy()))
    assert np.array_equal(matvec(packed, x.half()), matvec(packed, x.half().numpy()))


def test_wrong_shapes_are_named():
    packed = pack(quantized("int4-g32", 20, 64))
    with pytest.raises(QlabError, match=r"vector of 64 inputs, got shape \(65,\)"):
        matvec(packed, np.zeros(65))
    with pytest.raises(QlabError, match=r"\(tokens, 64\) inputs"):
        matmul(packed, np.zeros(64))


def test_all_kinds_are_tested():
    named = {kind for _, _, kind in CASES} | set(GGUF.values())
    assert named == {k.name for k in Kind}
