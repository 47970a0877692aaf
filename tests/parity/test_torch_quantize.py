"""torch's quantize_per_tensor and _per_channel, fake_quantize_*: when qlab's codes equal theirs.

    qlab                round(x / scale) + zero_point
    fake_quantize_*     round(x · (1 / scale)) + zero_point
    quantize_per_*      round(x · (1 / scale) + zero_point)

all in float32, then clipped. Hence qlab's codes equal

- those of fake_quantize: always where the scale is a power of two, ties included; with any other
  scale unless x / scale is within float32's rounding of a tie;
- those of quantize_per_*: unless x / scale is within float32's rounding of a tie (the sum is
  rounded too); on a tie itself where the zero point is even and the scale a power of two. With an
  odd zero point half to even goes the other way on each tie, since theirs looks for the even
  *code*, qlab for the even number of steps (as the equation says).

Where they differ it is by one code. A plain implementation of each order of operations equals torch
on everything. All of this is tested here, on random and adversarial input.
"""

import warnings

import numpy as np
import pytest
import torch

from qlab.core import Scheme, from_params, quantize
from qlab.core.rounding import round_half_even

DTYPES = {"int8-asym": torch.qint8, "uint8": torch.quint8}
LIMITS = {"int8-asym": (-128, 127), "uint8": (0, 255)}


def inputs():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(32, 64, generator=g)
    outlier = normal.clone()
    outlier[3, 5] = 1000.0
    ties = torch.arange(-1024, 1024).reshape(32, 64) / 8
    denormal = normal * 1e-40
    rows = torch.linspace(-5, 5, 32)[:, None].expand(32, 64).contiguous()
    return {
        "normal": normal,
        "shifted": normal + 2,
        "outlier": outlier,
        "ties": ties,
        "zeros": torch.zeros(32, 64),
        "constant rows": rows,
        "denormal": denormal,
        "large": normal * 1e6,
        "one element": torch.tensor([[0.7]]),
        "empty": torch.zeros(0, 64),
    }


def torch_codes(w, scale, zero_point, word, axis=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates these functions: they are the oracle
        if axis is None:
            q = torch.quantize_per_tensor(w, float(scale), int(zero_point), DTYPES[word])
        else:
            q = torch.quantize_per_channel(w, scale, zero_point, axis, DTYPES[word])
        return q.int_repr(), q.dequantize()


def fake(w, scale, zero_point, low, high):
    """The order of operations of fake_quantize_*, in the open."""
    return torch.clamp(round_half_even(w * (1 / scale)) + zero_point.float(), low, high)


def real(w, scale, zero_point, low, high):
    """The order of operations of quantize_per_*, in the open."""
    return torch.clamp(round_half_even(w * (1 / scale) + zero_point.float()), low, high)


def near_a_tie(w, scale, shift=0.0):
    """x / scale within eight float32 units in the last place of a half (of the shifted number)."""
    y = (w.double() / scale.double()).abs()
    return (y % 1 - 0.5).abs() <= 8 * 2.0**-24 * (y + abs(shift)).clamp(min=1)


def check(w, q, theirs, values, scale, zero, word):
    low, high = LIMITS[word]
    plain = real(w, scale, zero, low, high)
    assert torch.equal(plain.int(), theirs.int())
    differ = q.codes.int() != theirs.int()
    assert near_a_tie(w, scale.expand_as(w), 256)[differ].all()
    assert ((q.codes.int() - theirs.int())[differ].abs() == 1).all()
    assert torch.equal(q.dequantize()[~differ], values[~differ])
    return int(differ.sum())


@pytest.mark.parametrize("word", DTYPES)
def test_per_tensor(word):
    for what, w in inputs().items():
        q = quantize(w, f"{word}-tensor")
        if w.numel() == 0:
            continue
        scale, zero = q.scale.reshape(1, 1), q.zero_point.reshape(1, 1)
        theirs, values = torch_codes(w, scale, zero, word)
        count = check(w, q, theirs, values, scale, zero, word)
        assert count <= 0.01 * w.numel() or what == "ties", what


@pytest.mark.oracle("method rtn", "torch", "equal codes but at ties of the inverse scale")
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("word", DTYPES)
def test_per_channel(word, axis):
    for what, w in inputs().items():
        if w.numel() == 0:
            continue
        q = quantize(w, f"{word}-channel{axis or ''}")
        theirs, values = torch_codes(w, q.scale.flatten(), q.zero_point.flatten(), word, axis)
        count = check(w, q, theirs, values, q.scale, q.zero_point, word)
        assert count <= 0.01 * w.numel() or what in ("ties", "constant rows"), what


@pytest.mark.parametrize("exponent", [-10, -3, 0, 2])
@pytest.mark.parametrize("word", DTYPES)
def test_with_a_power_of_two_they_are_equal(word, exponent):
    scheme = Scheme.parse(f"{word}-tensor")
    low, high = LIMITS[word]
    for what, w in inputs().items():
        if w.numel() == 0:
            continue
        for zero_point in (low, low + 3, 0, high):
            scale = torch.tensor([[2.0**exponent]])
            zero = torch.tensor([[zero_point]], dtype=torch.int32)
            # Where a code would not fit their int32, theirs wraps around: not a number to compare.
            fits = (w / scale).abs() < 2.0**30
            ours = from_params(w, scale, zero, scheme)
            theirs, values = torch_codes(w, scale, zero, word)
            tie = ((w / scale) % 1 == 0.5) & fits
            if zero_point % 2:
                odd = real(w, scale, zero, low, high).int()
                assert torch.equal(odd[tie], theirs[tie].int()), what
            else:
                assert torch.equal(ours.codes[tie], theirs[tie]), what
            fits &= ~near_a_tie(w, scale.expand_as(w), 256)
            assert torch.equal(ours.codes[fits], theirs[fits]), what
            assert torch.equal(ours.dequantize()[fits], values[fits]), what
            plain = torch.fake_quantize_per_tensor_affine(
                w, float(scale), zero_point, *LIMITS[word]
            )
            fits = (w / scale).abs() < 2.0**30
            assert torch.equal(ours.dequantize()[fits], plain[fits]), what


@pytest.mark.oracle("format int{bits}", "torch", "equal values but at ties")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_fake_quantize(bits, axis):
    for what, w in inputs().items():
        if w.numel() == 0:
            continue
        where = "tensor" if axis is None else f"channel{axis or ''}"
        for word in (f"int{bits}-asym", f"uint{bits}"):
            q = quantize(w, f"{word}-{where}")
            fmt = q.scheme.format
            if axis is None:
                theirs = torch.fake_quantize_per_tensor_affine(
                    w, float(q.scale), int(q.zero_point), fmt.qmin, fmt.qmax
                )
            else:
                theirs = torch.fake_quantize_per_channel_affine(
                    w, q.scale.flatten(), q.zero_point.flatten(), axis, fmt.qmin, fmt.qmax
                )
            plain = fake(w, q.scale, q.zero_point, fmt.qmin, fmt.qmax)
            assert torch.equal((plain - q.zero_point) * q.scale, theirs), what
            differ = q.dequantize() != theirs
            assert near_a_tie(w, q.scale.expand_as(w))[differ].all(), what


@pytest.mark.parametrize("axis", [None, 0])
def test_symmetric_fake_quantize(axis):
    """No zero point, the restricted range."""
    for what, w in inputs().items():
        if w.numel() == 0:
            continue
        q = quantize(w, "int8-tensor" if axis is None else "int8-channel")
        zeros = torch.zeros(q.scale.numel(), dtype=torch.int32)
        if axis is None:
            theirs = torch.fake_quantize_per_tensor_affine(w, float(q.scale), 0, -127, 127)
        else:
            scale = q.scale.flatten()
            theirs = torch.fake_quantize_per_channel_affine(w, scale, zeros, 0, -127, 127)
        differ = q.dequantize() != theirs
        assert near_a_tie(w, q.scale.expand_as(w))[differ].all(), what


def test_a_tie_on_which_they_part():
    """x / scale = 0.5 exactly, x · (1 / scale) a little more: half to even is not reached."""
    found = 0
    for scale in np.random.default_rng(0).random(2000).astype(np.float32):
        x = scale * np.float32(2.5)
        if x / scale != 2.5 or x * (np.float32(1) / scale) <= 2.5:
            continue
        found += 1
        w, s = torch.tensor([[float(x)]]), torch.tensor([[float(scale)]])
        zero = torch.zeros(1, 1, dtype=torch.int32)
        ours = from_params(w, s, zero, Scheme.parse("int8-asym-tensor"))
        theirs, _ = torch_codes(w, s, zero, "int8-asym")
        assert (int(ours.codes), int(theirs)) == (2, 3)
    assert found > 10
