"""What the chapter on the mathematics claims of other tools, and of the storyteller."""

import ctypes
import math

import numpy as np
import pytest
import torch

import qlab
from qlab.core import noise
from qlab.nn import linear_layers

CODES = torch.arange(32) % 16
SCALE, ZERO = 2.0**-5, 6
EXPECTED = (CODES.float() - ZERO) * SCALE


@pytest.fixture(scope="module")
def story():
    return qlab.story.load()


# --- the translation table: each line, against the tool that it names -----------------------------


def nibbles(codes):
    """llama.cpp's order within a block of 32: the first 16 codes in the low nibbles."""
    return (codes[:16] | codes[16:] << 4).numpy().astype(np.uint8)


def test_q4_0_is_q_minus_8_times_d():
    import gguf

    for d in (SCALE, -SCALE):  # a negative d mirrors the codes
        block = np.concatenate([np.array([d], np.float16).view(np.uint8), nibbles(CODES)])
        values = gguf.quants.dequantize(block[None], gguf.GGMLQuantizationType.Q4_0)[0]
        np.testing.assert_array_equal(values, (CODES.numpy() - 8) * d)


def test_q4_1_is_q_times_d_plus_m():
    import gguf

    head = np.array([SCALE, -ZERO * SCALE], np.float16).view(np.uint8)
    block = np.concatenate([head, nibbles(CODES)])
    values = gguf.quants.dequantize(block[None], gguf.GGMLQuantizationType.Q4_1)[0]
    np.testing.assert_array_equal(values, EXPECTED.numpy())


def test_q4_k_is_q_times_d_minus_m():
    """A super-block of 256: d and dmin, then 6-bit scales and mins; here all are 1 and ZERO."""
    import gguf

    sc, m = 1, ZERO
    # Packing of the eight 6-bit pairs: the first four scales, four mins, then the low nibbles of
    # the last four pairs; values below 16 leave the upper two bits empty.
    scales = np.array([sc] * 4 + [m] * 4 + [sc | m << 4] * 4, np.uint8)
    head = np.array([SCALE, SCALE], np.float16).view(np.uint8)
    codes = np.arange(256) % 16
    pairs = codes.reshape(4, 2, 32)
    qs = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).reshape(-1)
    block = np.concatenate([head, scales, qs])
    values = gguf.quants.dequantize(block[None], gguf.GGMLQuantizationType.Q4_K)[0]
    np.testing.assert_array_equal(values, codes * SCALE - m * SCALE)


def test_tinygemm_is_q_minus_8_times_s_plus_m():
    from torchao.quantization.quant_primitives import _dequantize_affine_tinygemm

    m = (8 - ZERO) * SCALE
    values = _dequantize_affine_tinygemm(
        CODES.int()[None],
        (1, 32),
        torch.tensor([SCALE]),
        torch.tensor([m]),
        torch.int32,
        0,
        15,
        output_dtype=torch.float32,
    )
    assert torch.equal(values[0], EXPECTED)


def test_torchao_s_affine_is_ours():
    from torchao.quantization.quant_primitives import dequantize_affine

    values = dequantize_affine(
        CODES.to(torch.uint8)[None],
        (1, 32),
        torch.tensor([SCALE]),
        torch.tensor([ZERO]),
        torch.uint8,
        0,
        15,
    )
    assert torch.equal(values[0], EXPECTED)


def test_bitsandbytes_is_absmax_times_a_table_and_absmax_over_127():
    import bitsandbytes.functional as bnb

    table = (torch.arange(256).float() - ZERO) * SCALE / 2
    values = bnb.dequantize_blockwise(
        CODES.to(torch.uint8), absmax=torch.tensor([2.0]), code=table, blocksize=64
    )
    assert torch.equal(values, EXPECTED)
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).half()
    codes, absmax, _ = bnb.int8_vectorwise_quant(w)
    back = codes.float() * absmax[:, None] / 127
    assert (back - w.float()).abs().max() <= absmax.max() / 127 * 0.51


def test_openvino_s_formula_is_ours():
    """Its FakeQuantize as specified; the tool itself is not a requirement of the tests."""
    low, high = (0 - ZERO) * SCALE, (15 - ZERO) * SCALE
    values = low + CODES.float() * (high - low) / 15
    torch.testing.assert_close(values, EXPECTED, rtol=0, atol=1e-7)


# --- rounding in production -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("scale", [0.5, 0.1, 1 / 3, 0.07])
@pytest.mark.parametrize("zero", [0, 3, -5, 4])
def test_how_torch_rounds(scale, zero):
    """round(x · (1 / s) + z) in one fused operation, on x86; halves decided by the code's parity.

    Another engine may round before it adds: then each difference from ours is within a hair of a
    half, which is what the chapter claims of any machine.
    """
    s = np.float32(scale)
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(50_000, generator=g), (torch.arange(400) - 200) * float(s) / 2])
    theirs = torch.quantize_per_tensor(x, float(s), zero, torch.qint8).int_repr().float()
    y = x / torch.tensor(s)
    ours = torch.clip(torch.round(y) + zero, -128, 127)
    differ = theirs != ours
    assert (theirs - ours).abs().max() <= 1
    assert not differ.any() or (y - torch.floor(y) - 0.5).abs()[differ].max() < 1e-4
    if torch.backends.quantized.engine in ("x86", "fbgemm"):
        fused = (x.double() * float(np.float32(1) / s) + zero).float()
        assert torch.equal(theirs, torch.clip(torch.round(fused), -128, 127))
        assert zero % 2 == 0 or differ[50_000:].any()


@pytest.mark.parametrize("zero", [0, 3, -5])
def test_fake_quantize_rounds_before_it_adds(zero):
    s = 0.1
    x = (torch.arange(400) - 200) * s / 2
    fake = torch.fake_quantize_per_tensor_affine(x, s, zero, -128, 127)
    inverse = torch.tensor(1.0) / torch.tensor(s)
    codes = torch.clip(torch.round(x * inverse) + zero, -128, 127)
    torch.testing.assert_close(fake, (codes - zero) * s, rtol=1e-6, atol=1e-6)


def test_llama_cpp_divides_by_minus_eight():
    """The value with the largest magnitude gets the code 0, which stands for -8, either sign."""
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    for sign in (1, -1):
        x = np.linspace(-1, 1, 32, dtype=np.float32)
        x[5] = 4.0 * sign
        out = np.zeros(18, np.uint8)
        quantize(
            ctypes.c_int(2),
            x.ctypes.data_as(ctypes.c_void_p),
            out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0),
            ctypes.c_int64(1),
            ctypes.c_int64(32),
            None,
        )
        d = float(out[:2].view(np.float16)[0])
        assert d == -0.5 * sign
        assert out[2 + 5] & 15 == 0


# --- the storyteller ------------------------------------------------------------------------------


def test_weights_are_gaussian_enough_for_theory_to_choose_their_range(story):
    """At 4 bits, the theory's range costs less than 10% of error over the best one, in the median.

    Single matrices may cost more: those with outliers that the best range reaches for.
    """
    costs = []
    for _, layer in linear_layers(story.model):
        w = layer.weight.detach().numpy().ravel()
        rms = float(np.sqrt((w.astype(np.float64) ** 2).mean()))

        def error(clip, w=w):
            s = clip / 7
            return float(((w - np.clip(np.round(w / s), -7, 7) * s) ** 2).mean())

        best = min(error(c * rms) for c in np.linspace(1.6, 4.5, 30))
        costs.append(error(noise.optimal_clip("gaussian", 4) * rms) / best)
    assert np.median(costs) < 1.1


def test_the_rule_of_two_sigma():
    """The noise model is within 1% up to a step of 2σ, and beyond 3σ it is off by a tenth."""
    for step in np.linspace(0.2, 2.0, 19):
        exact = noise.level_error("gaussian", np.arange(-90, 91) * step)
        assert exact / noise.rounding_noise(step) == pytest.approx(1, abs=0.01)
    exact = noise.level_error("gaussian", np.arange(-90, 91) * 3.0)
    assert exact / noise.rounding_noise(3.0) < 0.9


def test_what_the_model_leaves_out_is_the_series_of_the_chapter():
    """D = s² / 12 + s² / π² Σ (-1)^k / k² e^(-2π²k²σ²/s²), on a ruler without ends.

    The Fourier series of the squared sawtooth, each term times the characteristic function of the
    Gaussian (Widrow et al. 1996). Tolerance: the closed form differs from it by rounding only.
    """
    for step in (0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
        terms = [
            (-1) ** k / k**2 * math.exp(-2 * math.pi**2 * k**2 / step**2) for k in range(1, 40)
        ]
        series = step**2 / 12 + step**2 / math.pi**2 * sum(terms)
        exact = noise.level_error("gaussian", np.arange(-90, 91) * step)
        assert exact == pytest.approx(series, rel=1e-9)
        # The first term alone, as the chapter states it: the next is its fourth power.
        first = 1 - 12 / math.pi**2 * math.exp(-2 * math.pi**2 / step**2)
        assert exact / (step**2 / 12) == pytest.approx(first, abs=0.02 if step < 4 else 0.2)


def test_clipping_rescues_three_bits(story):
    """The effect that the chapter reports, in any storyteller: one scale a matrix, 3 bits."""
    import copy

    def perplexity(rule):
        model = copy.deepcopy(story.model)
        with torch.no_grad():
            for _, layer in linear_layers(model):
                w = layer.weight
                clip = rule(w)
                s = clip / 3
                w.copy_(torch.clip(torch.round(w / s), -3, 3) * s)
        return qlab.perplexity(model, story.tokenizer, story.validation()[:4])

    largest = perplexity(lambda w: w.abs().max())
    reach = noise.optimal_clip("gaussian", 3)
    theory = perplexity(lambda w: reach * w.square().mean().sqrt())
    assert theory < largest / 1.5
