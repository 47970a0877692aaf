"""Products on packed weights, under Triton's interpreter, against float64; on a GPU: ``-m gpu``."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.gguf.quantize import dequantize as gguf_dequantize
from qlab.gguf.quantize import quantize as gguf_quantize
from qlab.kernels import gpu

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Largest relative error of rounding to the dtype. On a GPU half an ulp; the interpreter cuts a
# float32 to bfloat16 instead of rounding, so a whole one.
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-24}
SCHEMES = (
    "int4-g128",
    "int4-asym-g64-sfp16",
    "int4-asym-g32",
    "int4-full-g16",
    "int4-channel",
    "int4-tensor",
    "int4-g256",
    "nf4-g64",
    "fp4_e2m1-g32",
    "mxfp4",
    "nvfp4",
)


def weights(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, inputs, generator=g)


def before_nan(a: torch.Tensor) -> torch.Tensor:
    """The same values, at the beginning of a longer piece of memory that is NaN from there on."""
    longer = torch.full((a.numel() + 4096,), torch.nan, dtype=a.dtype)
    longer[: a.numel()] = a.flatten()
    return longer[: a.numel()].view(a.shape)


def guarded(packed):
    """The packed weight with NaN behind its scales, and behind its zero points if they are floats.

    Such a read showed itself by luck only: the bytes behind a tensor are those of another.
    """
    floats = {
        name: before_nan(part)
        for name in ("scales", "zeros", "table")
        if (part := getattr(packed, name)) is not None and part.is_floating_point()
    }
    return replace(packed, **floats)


def check(packed, dense, x, *, rounded_weights: bool = False) -> None:
    """y against float64, within the rounding of the output, of the sums, and of the weights."""
    y = gpu.matmul(guarded(packed), before_nan(x))
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], dense.shape[0])
    exact = x.double() @ dense.double().T
    size = x.double().abs() @ dense.double().abs().T
    unit = UNIT[x.dtype]
    # A sum of K products in float32 errs by K units of the sum of magnitudes at the very most.
    bound = unit * exact.abs() + x.shape[-1] * 2.0**-24 * size + 1e-30
    if rounded_weights:
        bound = bound + unit * size
    if x.dtype == torch.float16:
        bound = bound + 2.0**-24  # its subnormal step
    assert bool(((y.double() - exact).abs() <= bound).all())
    if packed.counters is not None:
        assert not packed.counters.any()  # ready for the next call


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_four_bits_against_float64(scheme, batch):
    q = qlab.quantize(weights(21, 512), scheme)
    packed = gpu.pack(q)
    assert packed.kind in ("int4", "table4")
    table = packed.kind == "table4"
    for dtype in DTYPES if scheme in SCHEMES[:2] else DTYPES[:1]:
        x = weights(batch, 512, 1).to(dtype)
        check(packed, q.dequantize(), x, rounded_weights=table and batch > 1)


@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 5),
    group=st.sampled_from([16, 32, 64, 128]),
    batch=st.integers(1, 18),
    asym=st.booleans(),
    split=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_split(rows, groups, group, batch, asym, split, seed):
    """Odd shapes, tails of chunks, tiles beyond the end, more parts than there are inputs."""
    inputs = group * groups
    q = qlab.quantize(weights(rows, inputs, seed), f"int4{'-asym' * asym}-g{group}")
    packed, x = gpu.pack(q), weights(batch, inputs, seed + 1)
    config = {"BLOCK_N": 16, "SPLIT": split}
    config |= {"BLOCK_C": 4} if batch == 1 else {"BLOCK_M": 16}
    # Beyond every end lies what must not be read: a product with it is NaN, even by zero.
    y = gpu.matmul(guarded(packed), before_nan(x), config=config)
    exact = x.double() @ q.dequantize().double().T
    size = x.double().abs() @ q.dequantize().double().abs().T
    assert bool(((y.double() - exact).abs() <= (inputs + 8) * 2.0**-24 * size + 1e-30).all())
    assert torch.equal(y, gpu.matmul(packed, x, config=config)), "the same bits again"


@pytest.mark.parametrize("kind", ["zeros", "constant", "outlier", "tiny", "huge"])
@pytest.mark.parametrize("scheme", ["int4-g64", "int4-asym-g64", "nf4-g64"])
def test_hard_weights(kind, scheme):
    w = weights(5, 192)
    w = {
        "zeros": torch.zeros_like(w),
        "constant": torch.full_like(w, -0.37),
        "outlier": w.clone().index_put_((torch.tensor(2), torch.tensor(7)), torch.tensor(1e4)),
        "tiny": w * 1e-36,
        "huge": w * 1e30,
    }[kind]
    q = qlab.quantize(w, scheme)
    packed = gpu.pack(q)
    for batch in (1, 2):
        check(packed, q.dequantize(), weights(batch, 192, 3))


@pytest.mark.parametrize("word", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_eight_bits_against_float64_of_the_same_codes(word, granularity):
    """The inputs are quantized a token at a time: the product is that of both x̂."""
    q = qlab.quantize(weights(19, 200), f"{word}-{granularity}")
    packed = gpu.pack(q)
    assert packed.kind == {"int8": "int8", "fp8_e4m3": "fp8"}[word]
    for batch, dtype in ((1, torch.float32), (6, torch.float16), (2, torch.bfloat16)):
        x = weights(batch, 200, 4).to(dtype)
        y = gpu.matmul(packed, x)
        seen = qlab.quantize(x.float(), f"{word}-token").dequantize().double()
        exact, size = seen @ q.dequantize().double().T, seen.abs() @ q.dequantize().double().abs().T
        bound = UNIT[dtype] * exact.abs() + 2.0**-24 * (4 + (word != "int8") * 200) * size
        assert bool(((y.double() - exact).abs() <= bound + 2.0**-24).all())


def test_integer_sums_are_exact():
    """The largest codes that there are: 4,096 products of 127 * 127, beyond float32's integers."""
    q = qlab.quantize(torch.ones(3, 4096), "int8-channel")
    y = gpu.matmul(gpu.pack(q), torch.full((2, 4096), 127.0))
    scale = q.scale.double().reshape(-1) * 1.0
    assert torch.equal(y[0].double(), (scale * (127 * 127 * 4096)).float().double())


@pytest.mark.parametrize("batch", [1, 3])
def test_q4_k_reads_the_bytes_of_a_file(batch):
    """Blocks as llama.cpp writes them (byte for byte: tests/parity/test_gguf_quantize.py)."""
    w = weights(18, 768).numpy()
    w[3] = 0
    w[4] = 1.5
    w[5, 100] = 300
    data = gguf_quantize(w, "Q4_K")
    dense = torch.from_numpy(gguf_dequantize(data, "Q4_K"))
    packed = gpu.pack_gguf(data)
    assert (packed.kind, packed.nbytes) == ("q4_k", data.nbytes)
    for dtype in DTYPES:
        check(packed, dense, weights(batch, 768, 5).to(dtype), rounded_weights=batch > 1)


def test_every_bit_of_q4_k_is_read():
    """Random bytes in every field: all 64 scales and minima, all codes."""
    g = np.random.default_rng(0)
    data = g.integers(0, 256, (6, 2, 144), dtype=np.uint8)
    data[:, :, :4] = np.asarray([0.01, 0.02], np.float16).view(np.uint8)
    data = data.reshape(6, 288)
    dense = torch.from_numpy(gguf_dequantize(data, "Q4_K"))
    eye = torch.eye(512)  # each weight by itself
    y = gpu.matmul(gpu.pack_gguf(data), eye[:20])
    torch.testing.assert_close(y, dense.T[:20], rtol=2e-7, atol=0)
    picked = torch.zeros(512)
    picked[37] = 1
    y = gpu.matmul(gpu.pack_gguf(data), picked)
    torch.testing.assert_close(y, dense[:, 37], rtol=2e-7, atol=0)


def test_leading_axes_and_no_vectors():
    q = qlab.quantize(weights(6, 64), "int4-g32")
    packed, x = gpu.pack(q), weights(6, 64, 2).reshape(2, 3, 64)
    y = gpu.matmul(packed, x)
    assert torch.equal(y.reshape(6, 6), gpu.matmul(packed, x.reshape(6, 64)))
    assert gpu.matmul(packed, x[:0]).shape == (0, 3, 6)
    one = gpu.matmul(packed, x[0, 0])
    assert one.shape == (6,)
    strided = torch.zeros(3, 128)
    strided[:, ::2] = x[0]
    assert torch.equal(gpu.matmul(packed, strided[:, ::2]), gpu.matmul(packed, x[0]))


def test_a_qtensor_is_packed_on_the_way():
    q = qlab.quantize(weights(6, 64), "int4-g32")
    x = weights(2, 64, 2)
    assert torch.equal(gpu.matmul(q, x), gpu.matmul(gpu.pack(q), x))


@pytest.mark.parametrize("scheme", ["int3-g32", "int4-b4x4", "kmeans4-channel", "int8-g32"])
def test_without_a_kernel_one_warning_and_the_right_product(scheme):
    q = qlab.quantize(weights(8, 64), scheme)
    with pytest.warns(UserWarning, match="no GPU kernel for") as caught:
        packed = gpu.pack(q)
    assert len(caught) == 1 and packed.kind == "dense"
    x = weights(2, 64, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = gpu.matmul(packed, x)
    torch.testing.assert_close(y, x @ q.dequantize().T)


def test_other_types_of_gguf_are_decoded():
    data = gguf_quantize(weights(4, 256).numpy(), "Q6_K")
    with pytest.warns(UserWarning, match="no GPU kernel for Q6_K"):
        packed = gpu.pack_gguf(data, "Q6_K")
    x = weights(2, 256, 1)
    dense = torch.from_numpy(gguf_dequantize(data, "Q6_K"))
    torch.testing.assert_close(gpu.matmul(packed, x), x @ dense.T)


def test_bad_input():
    packed = gpu.pack(qlab.quantize(weights(6, 64), "int4-g32"))
    with pytest.raises(qlab.QlabError, match=r"takes 64 inputs, and x has shape \(2, 32\)"):
        gpu.matmul(packed, torch.zeros(2, 32))
    with pytest.raises(qlab.QlabError, match=r"not torch\.int64"):
        gpu.matmul(packed, torch.zeros(64, dtype=torch.int64))
    with pytest.raises(qlab.QlabError, match="has 1"):
        gpu.pack(torch.zeros(4))
    with pytest.raises(qlab.QlabError, match="cannot pack a ndarray"):
        gpu.pack(np.zeros((2, 2), np.float32))
    with pytest.raises(qlab.QlabError, match="torch tensor"):
        gpu.pack(qlab.quantize(np.ones((2, 32), np.float32), "int4-g32"))
    with pytest.raises(qlab.QlabError, match="no whole blocks of Q4_K"):
        gpu.pack_gguf(np.zeros((2, 143), np.uint8))
    with pytest.raises(qlab.QlabError, match="uint8"):
        gpu.pack_gguf(np.zeros((2, 144), np.int8))


@pytest.mark.parametrize("scheme", ["int4-g128-sfp16", "int4-asym-g64", "nf4-g64", "int8-channel"])
def test_the_bytes_of_a_product_are_those_of_the_qtensor(scheme):
    """Which is what the predicted speed rests on. A zero point takes a byte here, not four bits."""
    q = qlab.quantize(weights(16, 256), scheme)
    packed = gpu.pack(q)
    zeros = 0 if packed.zeros is None else packed.zeros.numel()
    assert packed.nbytes == q.nbytes + zeros - -(-zeros // 2)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 8, 16, 33, 64, 256])
@pytest.mark.parametrize("shape", [(4096, 4096), (1000, 2944)])
def test_on_a_gpu(batch, shape):
    rows, inputs = shape
    w, x = weights(rows, inputs).cuda(), weights(batch, inputs, 1).cuda()
    for scheme in ("int4-g128-sfp16", "int4-asym-g64-sfp16", "nf4-g64"):
        q = qlab.quantize(w, scheme)
        for dtype in DTYPES:
            check(gpu.pack(q), q.dequantize(), x.to(dtype), rounded_weights=scheme[:2] == "nf")
    for word in ("int8", "fp8_e4m3"):
        q = qlab.quantize(w, f"{word}-channel")
        seen = qlab.quantize(x, f"{word}-token").dequantize()
        exact = seen.double() @ q.dequantize().double().T
        y = gpu.matmul(gpu.pack(q), x).double()
        # Hopper keeps 14 bits of the sums of 128 products of fp8.
        torch.testing.assert_close(y, exact, rtol=1e-3, atol=float(exact.abs().max()) * 1e-3)


@pytest.mark.gpu
def test_q4_k_on_a_gpu():
    data = gguf_quantize(weights(1024, 4096).numpy(), "Q4_K")
    dense = torch.from_numpy(gguf_dequantize(data, "Q4_K")).cuda()
    packed = gpu.pack_gguf(torch.from_numpy(data).cuda())
    for batch in (1, 8, 64):
        x = weights(batch, 4096, 1).cuda().half()
        check(packed, dense, x, rounded_weights=batch > 1)
