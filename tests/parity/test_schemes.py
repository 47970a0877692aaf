"""Schemes against the types of torch, torchao, GGUF and ONNX: casts, scales, packed bytes."""

import gguf
import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from gguf import GGMLQuantizationType
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.kernels import pack_uint4
from torchao.prototype.mx_formats.mx_tensor import MXTensor

from qlab.core import Scheme, pack, quantize, unpack
from qlab.core.floats import E8M0, FP8_E4M3
from qlab.core.scales import decode_scale, encode_scale, store


def weights(rows=32, columns=256, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g)
    w[1] = 0
    w[2, 3] = 300.0
    w[3] = 1.5
    w[4] *= 1e-6
    w[5] *= 1e6
    return w


@pytest.mark.parametrize(
    ("word", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_wide_formats_are_casts(word, dtype):
    w = weights().clamp(-65000, 65000)
    q = quantize(w, word)
    assert torch.equal(q.dequantize(), w.to(dtype).float())
    plain = w.to(dtype).view(torch.int32 if dtype is torch.float32 else torch.int16).numpy()
    np.testing.assert_array_equal(q.packed.numpy().reshape(-1), plain.view(np.uint8).reshape(-1))
    # Beyond the range a cast gives infinity; quantize saturates.
    big = torch.tensor([1e6, -1e6])
    assert quantize(big, "fp16").dequantize().tolist() == [65504.0, -65504.0]


@pytest.mark.parametrize(
    ("word", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)]
)
@pytest.mark.parametrize("where", ["tensor", "channel"])
def test_scaled_fp8_is_torch_s_cast_of_the_scaled_weight(word, dtype, where):
    w = weights()
    q = quantize(w, f"{word}-{where}")
    top = torch.finfo(dtype).max
    amax = w.abs().max().reshape(1, 1) if where == "tensor" else w.abs().amax(1, keepdim=True)
    scale = torch.where(amax == 0, 1.0, amax / top)
    assert torch.equal(q.scale, scale)
    theirs = (w * (1 / scale)).clamp(-top, top).to(dtype)
    assert torch.equal(q.codes, theirs.view(torch.uint8))
    assert torch.equal(q.dequantize(), theirs.float() * scale)


def test_mxfp4_is_the_one_of_gguf_but_for_ties():
    """gguf-py takes the lower of two equally near levels, the standard the even one."""
    w = weights().numpy()
    q = quantize(w, "mxfp4")
    raw = gguf.quants.quantize(w, GGMLQuantizationType.MXFP4).reshape(-1, 17)
    some = (w.reshape(-1, 32) != 0).any(1)  # a block of zeros: its exponent is 0 in both, or any
    np.testing.assert_array_equal(E8M0.encode(q.scale).reshape(-1)[some], raw[some, 0])
    # A block: the scale, then 16 bytes; byte i holds code i (low nibble) and code i + 16.
    theirs = np.concatenate([raw[:, 1:] & 15, raw[:, 1:] >> 4], axis=1)
    ours = q.codes.reshape(-1, 32)
    y = np.abs(w.reshape(-1, 32).astype(np.float64) / q.scale.reshape(-1, 1))
    borders = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    tie = (y[..., None] == borders).any(-1)
    # Where they write 0 qlab may write -0, code 8: both stand for zero.
    same = (ours == theirs) | ((ours & 7 == 0) & (theirs & 7 == 0))
    assert same[some][~tie[some]].all()
    values = gguf.quants.dequantize(raw.reshape(-1), GGMLQuantizationType.MXFP4).reshape(w.shape)
    np.testing.assert_array_equal(
        values.reshape(-1, 32)[~tie], q.dequantize().reshape(-1, 32)[~tie]
    )


def test_e8m0_scales_round_up_as_torchao_s_rceil():
    w = weights()
    amax = w.reshape(-1, 32).abs().amax(1)
    theirs = MXTensor.to_mx(w, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.RCEIL).scale
    stored, nothing = store(amax / 6, Scheme.parse("mxfp4"))
    assert nothing is None
    assert torch.equal(E8M0.encode(stored), theirs.view(torch.uint8).flatten())
    # Never below the scale, less than twice it: nothing is clipped.
    some = amax > 0
    assert (stored[some] >= amax[some] / 6).all() and (stored[some] < 2 * amax[some] / 6).all()
    low = store(torch.tensor([2.0**-127, 2.0**-127 * 1.01, 1e-45, 3e38]), Scheme.parse("mxfp4"))[0]
    assert low.tolist() == [2.0**-127, 2.0**-126, 2.0**-127, 2.0**127]


@pytest.mark.parametrize(("word", "dtype"), [("sfp16", torch.float16), ("sbf16", torch.bfloat16)])
def test_sixteen_bit_scales_are_casts(word, dtype):
    for scheme in (f"int4-asym-g32-{word}", f"nf4-g64-{word}", f"fp4_e2m1-g16-{word}"):
        w = weights()
        q, exact = quantize(w, scheme), quantize(w, scheme.removesuffix(f"-{word}"))
        info = torch.finfo(dtype)
        least = 2.0**-24 if dtype is torch.float16 else info.tiny
        cast = exact.scale.clamp(least, info.max).to(dtype)
        assert torch.equal(q.scale.float(), cast.float())
        bits = encode_scale(q.scale, word)
        assert torch.equal(bits.view(dtype), cast)
        assert torch.equal(decode_scale(bits, word), q.scale)


def test_fp8_scales_are_torch_s_cast():
    w = weights()
    q = quantize(w, "int4-g16-sfp8_e4m3")
    amax = w.reshape(32, 16, 16).abs().amax(2)
    share = torch.where(amax == 0, 0.0, amax / 7) / q.tensor_scale
    theirs = share.clamp(2.0**-6, 448).to(torch.float8_e4m3fn)
    assert torch.equal(FP8_E4M3.encode(q.scale), theirs.view(torch.uint8))
    assert float(q.scale.max()) == 448.0


def test_both_nibble_orders_of_the_world():
    """Low nibble first: ONNX, torchao. High first: bitsandbytes (tests there), NumPy's packbits."""
    codes = np.random.default_rng(0).integers(0, 16, 64).astype(np.uint8)
    low = pack(codes, 4)
    np.testing.assert_array_equal(low, pack_uint4(torch.from_numpy(codes)).numpy())
    tensor = onnx.numpy_helper.from_array(codes.astype(ml_dtypes.uint4))
    np.testing.assert_array_equal(low, np.frombuffer(tensor.raw_data, np.uint8))
    high = pack(codes, 4, high_first=True)
    single = np.unpackbits(codes[:, None], axis=1)[:, 4:]
    np.testing.assert_array_equal(high, np.packbits(single.reshape(-1)))
    np.testing.assert_array_equal(high, (low >> 4) | (low << 4))
    for packed, first in ((low, False), (high, True)):
        np.testing.assert_array_equal(unpack(packed, 4, 64, high_first=first), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_words_are_the_low_first_stream(bits):
    """GPTQ's int32 words hold code i in bits i·b: the same bytes on a little-endian machine."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, 64).astype(np.uint8)
    per_word = 32 // bits
    words = np.zeros(64 // per_word, np.uint32)
    for i in range(per_word):
        words |= codes[i::per_word].astype(np.uint32) << (bits * i)
    np.testing.assert_array_equal(pack(codes, bits), words.astype("<u4").view(np.uint8))
