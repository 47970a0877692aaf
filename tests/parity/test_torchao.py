"""MX and NVFP4 against torchao's tensors, and its integer quantizer: codes, scales, values."""

import pytest
import torch
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization.quant_primitives import (
    MappingType,
    choose_qparams_affine,
    quantize_affine,
)

import qlab
from qlab.core import pack, quantize
from qlab.core.floats import E8M0, FP8_E4M3

MX = {
    "mxfp8": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6": DTYPE_FP6_E2M3,
    "mxfp6_e3m2": DTYPE_FP6_E3M2,
    "mxfp4": torch.float4_e2m1fn_x2,
}


def inputs():
    """name -> float32 (rows, 256): ordinary and adversarial."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 256, generator=g)
    outlier = normal.clone()
    outlier[:, 5] = 1e4
    halves = torch.randint(-64, 65, (64, 256), generator=g) / 16
    powers = 2.0 ** torch.randint(-20, 20, (64, 256), generator=g).float()
    rows = torch.linspace(-3, 3, 64)[:, None].expand(64, 256).contiguous()
    holes = normal.clone()
    holes[10:20] = 0
    holes[30:40] = -0.0
    # Largest magnitudes just below and above a power of two, where the scale changes.
    edges = normal.clamp(-0.5, 0.5)
    edges[:, ::16] = 2 * (1 - 2.0**-24)
    edges[32:, ::16] = 2.0
    return {
        "normal": normal,
        "outlier": outlier,
        "halves": halves,
        "powers of two": powers,
        "constant rows": rows,
        "blocks of zeros": holes,
        "edges": edges,
        "wide": normal * 10.0 ** torch.linspace(-30, 30, 64)[:, None],
        "huge": normal * 7e37,
    }


def numbers(x):
    """Bits of a float32 tensor: so that -0 and 0 differ."""
    return x.contiguous().view(torch.int32)


@pytest.mark.oracle("format {scheme}", "torchao", "equal codes and scales")
@pytest.mark.parametrize("scheme", MX)
def test_mx(scheme):
    """Their scaling mode FLOOR, the standard's: 2^(floor(log2 amax) - emax), saturating."""
    for what, w in inputs().items():
        q = quantize(w, scheme)
        theirs = MXTensor.to_mx(w, MX[scheme], 32, ScaleCalculationMode.FLOOR)
        assert torch.equal(E8M0.encode(q.scale), theirs.scale.view(torch.uint8)), what
        codes = pack(q.codes, 4) if scheme == "mxfp4" else q.codes  # they don't pack six bits
        assert torch.equal(codes, theirs.qdata.view(torch.uint8)), what
        values = theirs.dequantize(torch.float32)
        assert torch.equal(numbers(q.dequantize()), numbers(values)), what


@pytest.mark.parametrize("scheme", MX)
def test_mx_of_bfloat16(scheme):
    for what, w in inputs().items():
        w = w.to(torch.bfloat16)
        q, theirs = quantize(w, scheme), MXTensor.to_mx(w, MX[scheme], 32)
        codes = pack(q.codes, 4) if scheme == "mxfp4" else q.codes
        assert torch.equal(codes, theirs.qdata.view(torch.uint8)), what
        assert torch.equal(q.dequantize(), theirs.dequantize(torch.bfloat16)), what


@pytest.mark.parametrize("scheme", MX)
def test_mx_of_next_to_nothing(scheme):
    """Blocks with a largest magnitude so small that their scale is 2^-127, the smallest.

    The scales agree. torchao then divides by 2^-126 and multiplies by 2^-127, so its values are
    half of what they should be (a float32 of 2^-127 is subnormal, which some backends flush);
    qlab's are right to half a step.
    """
    w = inputs()["normal"].clamp(-3.9, 3.9) * 2.0**-127
    q, theirs = quantize(w, scheme), MXTensor.to_mx(w, MX[scheme], 32)
    assert torch.equal(E8M0.encode(q.scale), theirs.scale.view(torch.uint8))
    assert (q.scale == 2.0**-127).all()
    step = q.scheme.format.step(3.9)
    error = (q.dequantize().double() - w.double()).abs() * 2.0**127
    assert error.max() <= step / 2
    their_error = (theirs.dequantize(torch.float32).double() - w.double()).abs() * 2.0**127
    assert their_error.max() > 1


@pytest.mark.oracle("format nvfp4", "torchao", "equal codes and scales")
def test_nvfp4():
    for what, w in inputs().items():
        q = quantize(w, "nvfp4")
        scale = per_tensor_amax_to_scale(w.abs().max())
        assert torch.equal(q.tensor_scale[0], scale), what
        theirs = NVFP4Tensor.to_nvfp4(w, per_tensor_scale=scale)
        stored = FP8_E4M3.encode(q.scale)
        assert torch.equal(stored, theirs.scale.view(torch.uint8)), what
        assert torch.equal(pack(q.codes, 4), theirs.qdata), what
        assert torch.equal(numbers(q.dequantize()), numbers(theirs.dequantize(torch.float32))), what


def test_nvfp4_of_bfloat16():
    for what, w in inputs().items():
        w = w.to(torch.bfloat16)
        q = quantize(w, "nvfp4")
        theirs = NVFP4Tensor.to_nvfp4(w, per_tensor_scale=per_tensor_amax_to_scale(w.abs().max()))
        assert torch.equal(pack(q.codes, 4), theirs.qdata), what
        assert torch.equal(q.dequantize(), theirs.dequantize(torch.bfloat16)), what


def test_nvfp4_of_nothing():
    """All zeros: their scale of the tensor would be 0 and the rest NaN; qlab's is 1."""
    q = quantize(torch.zeros(4, 32), "nvfp4")
    assert q.tensor_scale.tolist() == [1.0] and (q.dequantize() == 0).all()
    theirs = NVFP4Tensor.to_nvfp4(torch.zeros(4, 32), per_tensor_scale=torch.tensor(1.0))
    assert torch.equal(FP8_E4M3.encode(q.scale), theirs.scale.view(torch.uint8))
    assert torch.equal(pack(q.codes, 4), theirs.qdata)


@pytest.mark.parametrize(("bits", "scheme"), [(4, "int4-full-g32"), (8, "int8-full-g32")])
def test_full_range_symmetric_scales_are_theirs(bits, scheme):
    """torchao: amax / ((qmax - qmin) / 2), such as amax / 7.5.

    theirs multiplies by 1 / scale where qlab divides; the codes differ by one where x / scale lies
    on a tie, and nowhere else.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for what, w in inputs().items():
        q = quantize(w, scheme)
        scale, zero = choose_qparams_affine(
            w, MappingType.SYMMETRIC, (1, 32), torch.int8, low, high, eps=0.0
        )
        some = w.reshape(64, 8, 32).abs().amax(-1) > 0  # theirs: 0 for a block of zeros
        assert torch.equal(q.scale[some], scale[some]), what
        assert (zero == 0).all()
        theirs = quantize_affine(w, (1, 32), scale, zero, torch.int8, low, high)
        whole = q.scale.repeat_interleave(32, dim=1)
        differ = (theirs != q.codes) & some.repeat_interleave(32, dim=1)
        distance = ((w / whole).abs() % 1 - 0.5).abs()
        assert (distance[differ] < 2.0**-14).all(), what
        assert ((theirs.int() - q.codes.int())[differ].abs() == 1).all(), what


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_parameters_are_theirs(bits):
    """scale and zero point; a range of zeros apart, where theirs takes eps for the scale."""
    w = inputs()["normal"] + 0.3
    q = quantize(w, f"uint{bits}-g32")
    scale, zero = choose_qparams_affine(
        w, MappingType.ASYMMETRIC, (1, 32), torch.uint8, 0, 2**bits - 1, eps=1e-12
    )
    assert torch.equal(q.scale, scale)
    assert torch.equal(q.zero_point, zero.to(torch.int32))
    theirs = quantize_affine(w, (1, 32), scale, zero, torch.uint8, 0, 2**bits - 1)
    differ = theirs != q.codes
    y = (w / q.scale.repeat_interleave(32, dim=1)).abs()
    assert ((y[differ] % 1 - 0.5).abs() < 2.0**-14).all()
    assert qlab.sqnr(w, q) > 15
