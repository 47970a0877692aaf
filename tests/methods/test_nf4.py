"""The method nf4: what it promises about codes, scales and bits, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import Scheme
from qlab.core.double_quantization import DYNAMIC_MAP
from qlab.core.double_tensor import DoubleTensor
from qlab.methods.nf4 import (
    Nf4Options,
    from_bitsandbytes,
    nf4,
    to_bitsandbytes,
)


def weight(seed=0, shape=(32, 512), size=0.05):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g) * size


def quantized(w, word="nf4-g64", **options):
    return nf4(w, None, Scheme.parse(word), Nf4Options(**options))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), word=st.sampled_from(["nf4-g64", "fp4_bnb-g32"]))
def test_doubling_keeps_the_codes_and_moves_scales_by_half_a_gap(seed, word):
    w = torch.from_numpy(np.random.default_rng(seed).standard_normal((4, 256)).astype(np.float32))
    once, twice = quantized(w, word, double=False), quantized(w, word)
    assert torch.equal(once.codes, twice.codes)
    # The widest gap of the table is between 0.93 and its neighbors, about 1/64 and a bit more.
    table = np.array(DYNAMIC_MAP.values)
    gap = float(np.diff(table).max())
    bound = float(twice.doubled.absmax.max()) * (gap / 2 + 2**-15) + 1e-6
    assert float((once.scale - twice.scale).abs().max()) <= bound
    assert torch.equal(twice.scale, twice.doubled.dequantize())


def test_the_count_of_the_paper():
    """QLoRA, section 3: 0.5 bits of scales a weight become 0.127."""
    w = weight(shape=(256, 4096))
    once, twice = quantized(w, double=False), quantized(w)
    assert once.bits_per_weight == 4.5
    assert twice.bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert round(twice.bits_per_weight - 4, 3) == 0.127
    assert isinstance(twice, DoubleTensor) and not isinstance(once, DoubleTensor)
    assert once.nbytes == w.numel() // 2 + 4 * w.numel() // 64


def test_what_doubling_costs():
    for seed in range(3):
        w = weight(seed)
        lost = qlab.sqnr(w, quantized(w, double=False)) - qlab.sqnr(w, quantized(w))
        assert -0.01 < lost < 0.1


def test_normal_weights_like_nf4_best_and_uniform_ones_int4():
    w = weight(1, (128, 1024))
    by_form = {f: qlab.sqnr(w, qlab.quantize(w, f"{f}-g64")) for f in ("nf4", "int4", "fp4_bnb")}
    assert by_form["nf4"] > by_form["int4"] > by_form["fp4_bnb"]
    flat = torch.rand(128, 1024, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert qlab.sqnr(flat, qlab.quantize(flat, "int4-g64")) > qlab.sqnr(flat, quantized(flat))


@pytest.mark.parametrize("word", ["nf4-g64", "fp4_bnb-g128"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back(word, double, dtype):
    w = weight(3).to(dtype)
    w[1] = 0
    w[2, 128:256] = 0
    q = quantized(w, word, double=double)
    back = from_bitsandbytes(to_bitsandbytes(q))
    assert type(back) is type(q) and back.scheme == q.scheme and back.dtype == q.dtype
    assert torch.equal(back.packed, q.packed) and back.nbytes == q.nbytes
    assert torch.equal(back.dequantize(), q.dequantize())
    assert (back.dequantize()[1] == 0).all()
    prefixed = {f"model.layers.0.weight.{k}".rstrip("."): v for k, v in to_bitsandbytes(q).items()}
    assert torch.equal(from_bitsandbytes(prefixed).dequantize(), q.dequantize())


def test_numpy_too():
    w = weight(4)
    a, b = quantized(w), quantized(w.numpy())
    assert np.array_equal(a.packed.numpy(), b.packed)
    # The mean of the scales is summed in another order: one step of a byte at most.
    np.testing.assert_allclose(a.scale.numpy(), b.scale, atol=0.02 * float(a.doubled.absmax.max()))
    with pytest.raises(qlab.QlabError, match="torch tensor"):
        to_bitsandbytes(b)


def test_what_is_refused():
    w = weight()
    for word, message in (
        ("int4-g64", "knows nf4 and fp4_bnb"),
        ("nf4-channel", "nf4-g64"),
        ("nf4-g64-sfp16", "float32 scales"),
        ("nf4-g48", "does not divide"),
    ):
        with pytest.raises(qlab.QlabError, match=message):
            quantized(w, word)
    bad = w.clone()
    bad[3, 4] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"\(3, 4\)"):
        quantized(bad)
    with pytest.raises(qlab.QlabError, match="no blocks of 16"):
        to_bitsandbytes(quantized(w, "nf4-g16"))
    with pytest.raises(qlab.QlabError, match="flattened"):
        to_bitsandbytes(quantized(weight(shape=(4, 100)), pad=True))
    with pytest.raises(qlab.QlabError, match="in blocks"):
        to_bitsandbytes(qlab.quantize(w, "int4-g64"))
    parts = to_bitsandbytes(quantized(w))
    for gone, message in (("absmax", "no absmax"), ("", "no packed")):
        with pytest.raises(qlab.QlabError, match=message):
            from_bitsandbytes({k: v for k, v in parts.items() if k != gone})
    with pytest.raises(qlab.QlabError, match="table of levels"):
        from_bitsandbytes(parts | {"quant_map": parts["quant_map"] * 0.5})
    with pytest.raises(qlab.QlabError, match="do not fit"):
        from_bitsandbytes(parts | {"absmax": parts["absmax"][:-1]})


def test_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.Linear(64, 128))
    small, report = qlab.quantize_model(model, "nf4", "nf4-g64")
    assert report.bits_per_weight == pytest.approx(4.127, abs=0.01)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    w = quantized(model[0].weight.detach()).dequantize()
    assert torch.allclose(small[0](x), x @ w.T + model[0].bias, atol=1e-5)
