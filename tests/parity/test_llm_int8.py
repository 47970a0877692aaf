"""LLM.int8() against bitsandbytes on the CPU: codes bit for bit, and the result of the layer."""

import logging
import warnings

import pytest
import torch

import qlab
from qlab.methods.llm_int8 import decompose, llm_int8
from qlab.mixed import Int8MixedLinear

logging.disable(logging.WARNING)
import bitsandbytes as bnb  # noqa: E402
import bitsandbytes.functional as F  # noqa: E402

logging.disable(logging.NOTSET)

CHANNEL = qlab.Scheme.parse("int8-channel")


def matrices():
    """name -> float16 (rows, columns): ordinary and adversarial."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(48, 96, generator=g)
    outlier = normal.clone()
    outlier[:, 7] *= 40
    outlier[11, 60] = -300
    threshold = normal.clone()
    threshold[3, 5], threshold[4, 6], threshold[5, 7] = 6.0, -6.0, 5.996  # at it, and just below
    zeros = normal.clone()
    zeros[[2, 9]] = 0
    ties = torch.arange(-127, 127).repeat(2, 1).half() / 2  # halves, with 63.5 · 2 = 127
    every = torch.full((5, 16), 9.0)
    return {
        name: x.half()
        for name, x in {
            "normal": normal,
            "outliers": outlier,
            "at the threshold": threshold,
            "rows of zeros": zeros,
            "all zeros": torch.zeros(4, 32),
            "constant rows": torch.linspace(-3, 3, 8)[:, None].expand(8, 40).contiguous(),
            "ties": ties,
            "denormals": normal * 1e-7,
            "huge": normal * 1e4,
            "all outliers": every,
            "one token": outlier[11:12],
            "odd": normal[:3, :37].contiguous(),
        }.items()
    }


@pytest.mark.oracle("method llm_int8", "bitsandbytes", "equal codes")
@pytest.mark.parametrize("name", matrices())
def test_weight_codes(name):
    w = matrices()[name]
    codes, absmax, _ = F.int8_vectorwise_quant(w.clone())
    ours = llm_int8(w, None, CHANNEL)
    assert torch.equal(ours.codes, codes)
    zero = absmax == 0  # theirs keeps 0, ours is 1: both restore 0
    assert torch.equal(ours.scale.flatten()[~zero], absmax[~zero] / 127)
    assert (ours.scale.flatten()[zero] == 1).all()
    # Theirs multiplies by 1/127 as rounded to float32, ours divides: the last bits differ.
    theirs = F.int8_vectorwise_dequant(codes, absmax)
    torch.testing.assert_close(ours.dequantize().float(), theirs.half().float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0, 6.0, 50.0])
@pytest.mark.parametrize("name", matrices())
def test_the_decomposition(name, threshold):
    x = matrices()[name]
    codes, absmax, outliers = F.int8_vectorwise_quant(x.clone(), threshold=threshold)
    ours = decompose(x, threshold)
    assert torch.equal(ours.outliers, torch.empty(0) if outliers is None else outliers) or (
        threshold == 0 and len(ours.outliers) == 0
    )
    if x.shape[0] == 1 and threshold:
        # One token: theirs leaves the columns as they are, since the outliers in them are 0.
        assert (codes[:, ours.outliers] == 0).all()
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.absmax, absmax)


def their_layer(w, bias, threshold):
    linear = bnb.nn.Linear8bitLt(
        w.shape[1], w.shape[0], bias is not None, has_fp16_weights=False, threshold=threshold
    )
    weight = bnb.nn.Int8Params(w.clone(), requires_grad=False, has_fp16_weights=False)
    linear.weight = weight.to("cpu")
    if linear.weight.data.dtype != torch.int8:
        linear.weight = weight._quantize("cpu")
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    return linear.eval()


def their_constant():
    """What int8_mm_dequant multiplies sums by, besides both absmax."""
    sums, one = torch.tensor([[1 << 20]], dtype=torch.int32), torch.ones(1)
    dequant = torch.ops.bitsandbytes.int8_mm_dequant.default  # the public function has no dtype
    return float(dequant(sums, one, one, dtype=torch.float32)) / 2**20


def test_the_constant_of_the_cpu_is_not_quite_one_over_127_squared():
    """It is 6.200124e-05 in bitsandbytes 0.50.2, and 1/127² is 6.200012e-05."""
    assert abs(their_constant() * 127**2 - 1) < 2e-5


@pytest.mark.oracle("method llm_int8", "bitsandbytes", "the same output of the layer, to rounding")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("threshold", [0.0, 2.0, 6.0])
@pytest.mark.parametrize("name", [n for n in matrices() if n != "huge"])
def test_the_layer(name, threshold, dtype):
    """float32 inputs hold float16 values: bitsandbytes casts to that before it takes codes."""
    x = matrices()[name]
    g = torch.Generator().manual_seed(1)
    w = (torch.randn(24, x.shape[1], generator=g) * 0.1).half()
    bias = torch.randn(24, generator=g).half()
    made = Int8MixedLinear(llm_int8(w, None, CHANNEL), bias.to(dtype), threshold)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = their_layer(w, bias.to(dtype), threshold)(x.to(dtype))
        ours = made(x.to(dtype))
    assert ours.dtype == theirs.dtype == dtype
    # With their constant in place of 1/127².
    parts = decompose(x, threshold)
    sums = parts.codes.double() @ made.qweight.codes.double().T
    int8 = sums * (parts.absmax.double()[:, None] / 127) * made.scale.double().T
    expected = ours.double() + int8 * (their_constant() * 127**2 - 1)
    # The codes are equal, so only floating-point rounding is left: of the scales, of the sums of
    # the outlier columns, and in float16 of those columns' weights and of each partial result.
    relative = 1e-6 if dtype == torch.float32 else 4 * 2.0**-11
    size = float(theirs.double().abs().max())
    assert float((expected - theirs.double()).abs().max()) <= relative * size


def test_huge_inputs():
    x = matrices()["huge"]
    w = torch.ones(4, x.shape[1]).half()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = their_layer(w, None, 6.0)(x.float())
        ours = Int8MixedLinear(llm_int8(w, None, CHANNEL), None, 6.0)(x.float())
    # All columns are outliers, whose products neither side takes from int8.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=float(theirs.abs().max()) * 1e-6)
