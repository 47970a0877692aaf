"""NF4, FP4 and double quantization against bitsandbytes on the CPU, byte for byte."""

from dataclasses import replace

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

import qlab
from qlab.core import pack, quantize
from qlab.core.codebooks import FP4_BNB, NF4
from qlab.core.double_quantization import BLOCK, DYNAMIC_MAP, double_quantize

NAMES = {"nf4": "nf4", "fp4": "fp4_bnb"}
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def inputs():
    """name -> float32 (rows, 4096): ordinary and adversarial."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(8, 4096, generator=g)
    outlier = normal.clone()
    outlier[::2, 7] = 1e4
    heavy = torch.distributions.StudentT(2.0).sample((8, 4096)) * 0.02
    rows = torch.linspace(-3, 3, 8)[:, None].expand(8, 4096).contiguous()
    signed_zero = torch.zeros(2, 4096)
    signed_zero[0, ::3] = -0.0
    tiny = normal * 1e-30
    huge = normal * 1e34  # the sum of all scales still fits float32
    zeros_between = normal.clone()
    zeros_between[1:3] = 0
    return {
        "normal": normal,
        "outlier": outlier,
        "heavy tails": heavy,
        "constant rows": rows,
        "zeros": signed_zero,
        "rows of zeros": zeros_between,
        "tiny": tiny,
        "huge": huge,
        "borders": on_the_borders(),
    }


def on_the_borders():
    """Values half way between two levels, and their neighbours, at scales from 1e-3 to 1e3."""
    values = []
    for fmt in (NF4, FP4_BNB):
        v = np.sort(np.array(fmt.values, np.float32))
        halves = (v[1:] + v[:-1]) / np.float32(2)
        for h in (
            halves,
            np.nextafter(halves, np.float32(2)),
            np.nextafter(halves, np.float32(-2)),
        ):
            values.append(h)
    values = np.resize(np.concatenate([*values, [1e-9, -1e-9, 0.0, -0.0]]), (8, 4096))
    values[:, ::32] = 1.0  # so that the scale of each block is the factor
    return torch.from_numpy((values * np.logspace(-3, 3, 8)[:, None]).astype(np.float32))


def test_the_tables_are_those_of_bitsandbytes():
    for name, fmt in (("nf4", NF4), ("fp4", FP4_BNB)):
        theirs = bnb.get_4bit_type(name, device="cpu")
        np.testing.assert_array_equal(np.array(fmt.values, np.float32), theirs.numpy())
    np.testing.assert_array_equal(
        np.array(DYNAMIC_MAP.values, np.float32), bnb.create_dynamic_map().numpy()
    )


def test_nf4_is_the_table_of_the_paper():
    """QLoRA, arXiv 2305.14314, appendix E: the 16 values as printed there."""
    printed = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453
        -0.28444138169288635
        -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725
        0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941
        0.7229568362236023 1.0"""
    assert NF4.levels() == [float(np.float32(v)) for v in printed.split()]


def marked():
    """Their names, with what the test shows of our format (for the coverage page)."""
    agreement = "equal codes, scales and values"
    for theirs, ours in NAMES.items():
        mark = pytest.mark.oracle(f"format {ours}", "bitsandbytes", agreement)
        yield pytest.param(theirs, marks=mark)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theirs", list(marked()))
def test_codes_scales_and_values(theirs, size):
    """bitsandbytes numbers blocks through the flattened tensor; so the tensor is given flat."""
    for what, w in inputs().items():
        flat = w.reshape(-1)
        q = quantize(flat, f"{NAMES[theirs]}-g{size}")
        packed, state = bnb.quantize_4bit(w, blocksize=size, quant_type=theirs)
        assert torch.equal(pack(q.codes, 4, high_first=True), packed.flatten()), what
        zero = state.absmax == 0  # theirs keeps 0, qlab's scale of nothing is 1: both give 0
        assert torch.equal(q.scale[~zero], state.absmax[~zero]), what
        assert (q.scale[zero] == 1).all()
        if size <= 512:  # beyond, theirs compiles a kernel for each shape: the same, but slow
            values = bnb.dequantize_4bit(packed, replace_shape(state, flat)).flatten()
            assert torch.equal(values, q.dequantize()), what


def replace_shape(state, flat):
    """Their CPU kernel misreads blocks that go over several rows, so dequantize in one row."""
    state.shape = flat.shape
    return state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("theirs", NAMES)
def test_half_precision_weights(theirs, dtype):
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    q = quantize(w, f"{NAMES[theirs]}-g64")
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type=theirs)
    assert torch.equal(pack(q.codes, 4, high_first=True).flatten(), packed.flatten())
    assert torch.equal(bnb.dequantize_4bit(packed, state), q.dequantize())


def test_a_last_block_that_is_short():
    """theirs divides by absmax there where it multiplies by its inverse elsewhere; qlab multiplies.

    The two differ in the last bit, which matters on a border alone: none is met here.
    """
    w = torch.randn(1, 1000, generator=torch.Generator().manual_seed(2))
    q = quantize(w, "nf4-g64", pad=True)
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4")
    ours = pack(q.codes, 4, high_first=True).flatten()
    assert torch.equal(ours[:500], packed.flatten())
    assert torch.equal(q.scale.flatten(), state.absmax)


@pytest.mark.parametrize("size", SIZES)
def test_double_quantization(size):
    """codes, absmax, offset and what they decode to; as many blocks as there are, odd ones too."""
    for what, w in inputs().items():
        for part in (w, w[:3], w[:1]):
            packed, single = bnb.quantize_4bit(part, blocksize=size, quant_type="nf4")
            again, state = bnb.quantize_4bit(
                part, blocksize=size, quant_type="nf4", compress_statistics=True
            )
            assert torch.equal(packed, again)
            ours = double_quantize(single.absmax)
            assert torch.equal(ours.offset, state.offset), what
            assert torch.equal(ours.absmax, state.state2.absmax), what
            assert torch.equal(ours.codes, state.absmax), what
            theirs = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
            assert torch.equal(ours.dequantize(), theirs), what
            assert ours.nbytes == sum(
                t.numel() * t.element_size()
                for t in (state.absmax, state.state2.absmax, state.offset)
            )


def test_the_whole_of_qlora_in_one():
    """NF4 in blocks of 64, scales doubly quantized: the weights that QLoRA computes with."""
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(3)) * 0.02
    packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    q = quantize(w, "nf4-g64")
    doubled = double_quantize(q.scale)
    ours = replace(q, scale=doubled.dequantize())
    assert torch.equal(ours.dequantize(), bnb.dequantize_4bit(packed, state))
    # A scale of 32 bits costs half a bit a weight; doubled, 8/64 + 32/(64·256) and the offset.
    assert 8 * doubled.nbytes / w.numel() == pytest.approx(0.127, abs=0.002)
    # The decibels that it costs are few: the scales are off by less than a percent or two.
    assert qlab.sqnr(w, q) - qlab.sqnr(w, ours) < 0.1


def test_their_kernel_rounds_to_a_grid_first():
    """Exactly nearest entries are within 1e-4 of the border away from theirs, and never further."""
    x = torch.rand(64 * BLOCK, generator=torch.Generator().manual_seed(4))
    ours, exact = double_quantize(x), double_quantize(x, exact=True)
    differ = ours.codes != exact.codes
    assert 0 < differ.float().mean() < 0.01
    assert ((ours.codes.int() - exact.codes.int()).abs() <= 1).all()
    table = torch.tensor(DYNAMIC_MAP.values)
    rest = (x - ours.offset).reshape(-1, BLOCK) / ours.absmax[:, None]
    # float32 of the inverse: two units in the last place may move a value over a border.
    best = (rest.reshape(-1, 1).double() - table.double()).abs().min(dim=1).values
    chosen = (rest.reshape(-1).double() - table[exact.codes.long()].double()).abs()
    assert (chosen - best).max() < 1e-6
    worse = (rest.reshape(-1).double() - table[ours.codes.long()].double()).abs() - best
    assert 1e-6 < worse.max() < 1e-4


def test_no_scales_or_bad_ones_are_refused():
    with pytest.raises(qlab.QlabError, match="empty"):
        double_quantize(torch.zeros(0))
    with pytest.raises(qlab.QlabError, match="NaN"):
        double_quantize(np.array([1.0, np.nan], np.float32))
    x = np.random.default_rng(0).random((3, 100)).astype(np.float32)
    a, b = double_quantize(x), double_quantize(torch.from_numpy(x))
    # The mean is summed in another order: offset to one unit in the last place, codes to one.
    np.testing.assert_allclose(a.dequantize(), b.dequantize().numpy(), rtol=0, atol=0.01)
    assert a.dequantize().shape == (3, 100)
