"""Floating-point formats against ml_dtypes, NumPy and torch: every pattern, millions of floats.

Bit for bit wherever a number is a number. What is not:

- NaN: a format with one NaN, and fp8_e5m2 and bf16 in ml_dtypes, must give the same bits. NumPy's
  float16 keeps some bits of the payload and torch's types have NaNs of their own, so there only
  "is NaN" is compared.
- e8m0 of zero and of negative numbers: ml_dtypes says NaN, torch 2^-127 and |x|. qlab: 2^-127 for
  zero, NaN below it.
"""

import ml_dtypes
import numpy as np
import pytest
import torch

from qlab.core.formats import format_names, get_format
from qlab.errors import QlabError

PEERS = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
TORCH = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "e8m0": torch.float8_e8m0fnu,
}


def floats_for(fmt):
    """float32 numbers that are ugly for this format, and three million random bit patterns."""
    rng = np.random.default_rng(0)
    random = rng.integers(0, 2**32, 3_000_000, dtype=np.uint32).view(np.float32)
    levels = np.array(fmt.levels(), np.float64)
    halves = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    near = np.concatenate([levels.astype(np.float32), halves])
    # Beyond the largest level: the next that would be there, and the half before it.
    over = (fmt.max + fmt.step(fmt.max) * np.array([0.5, 1])).clip(max=3.4e38).astype(np.float32)
    near = np.concatenate([near, over, -over])
    denormals = rng.integers(0, 2**23, 100_000, dtype=np.uint32).view(np.float32)
    special = np.array([0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38])
    spread = (rng.standard_normal(500_000) * fmt.max / 6).astype(np.float32)
    return np.concatenate(
        [
            random,
            near,
            np.nextafter(near, np.float32(np.inf)),
            np.nextafter(near, np.float32(-np.inf)),
            denormals,
            -denormals,
            special.astype(np.float32),
            spread,
        ]
    )


def same_number(a, b):
    """Equal values and equal signs, NaN as NaN."""
    np.testing.assert_array_equal(a, b)
    known = ~np.isnan(a)
    np.testing.assert_array_equal(np.signbit(a)[known], np.signbit(b)[known])


@pytest.mark.parametrize("name", PEERS)
def test_every_pattern_decodes_as_in_ml_dtypes(name):
    fmt, peer = get_format(name), np.dtype(PEERS[name])
    codes = np.arange(2**fmt.bits).astype(f"u{peer.itemsize}")
    theirs = codes.view(peer).astype(np.float32)
    ours = fmt.decode(codes)
    assert ours.dtype == np.float32
    same_number(ours, theirs)
    same_number(fmt.decode(torch.from_numpy(codes)).numpy(), theirs)
    same_number(np.array([fmt.value(int(c)) for c in codes], np.float32), theirs)
    finite = np.unique(theirs[np.isfinite(theirs)])
    np.testing.assert_array_equal(np.array(fmt.levels(), np.float32), finite)
    info = ml_dtypes.finfo(peer)
    assert (fmt.max, fmt.bits) == (float(info.max), info.bits)
    if name != "e8m0":
        assert fmt.min == float(info.min)
        assert fmt.smallest == float(info.smallest_subnormal)
        assert fmt.smallest_normal == float(info.smallest_normal)


@pytest.mark.oracle("format {name}", "ml_dtypes", "equal codes of millions of floats")
@pytest.mark.parametrize("name", PEERS)
def test_conversion_of_millions_of_floats_equals_ml_dtypes(name):
    fmt, peer = get_format(name), np.dtype(PEERS[name])
    x = floats_for(fmt)
    with np.errstate(all="ignore"):
        theirs = x.astype(peer).view(f"u{peer.itemsize}")
    # ml_dtypes gives NaN beyond fp8_e4m3's range, and saturates where there is no NaN.
    rule = "nan" if fmt.specials == "nan" else None
    ours = fmt.encode(x, rule)
    assert ours.dtype == theirs.dtype
    compared = np.ones(len(x), bool)
    if name == "fp16":
        compared = ~np.isnan(x)
        assert np.isnan(fmt.decode(ours[~compared])).all()
    if name == "e8m0":
        compared = x != 0
        assert (ours[~compared] == 0).all()
    np.testing.assert_array_equal(ours[compared], theirs[compared])
    np.testing.assert_array_equal(fmt.encode(torch.from_numpy(x), rule).numpy(), ours)


@pytest.mark.parametrize("name", TORCH)
def test_conversion_equals_torch_under_its_overflow_rule(name):
    """torch 2.13: e4m3fn saturates, infinity too; e5m2 gives infinity: qlab's defaults."""
    fmt, dtype = get_format(name), TORCH[name]
    x = floats_for(fmt)
    t = torch.from_numpy(x)
    theirs = t.to(dtype).view(torch.uint8 if fmt.bits == 8 else torch.int16).numpy()
    theirs = theirs.view(f"u{theirs.dtype.itemsize}")
    ours = fmt.encode(x)
    compared = ~np.isnan(x)
    if name == "e8m0":
        compared &= ~np.signbit(x)  # torch drops the sign
        assert (ours[np.signbit(x) & (x < 0)] == 255).all()
    np.testing.assert_array_equal(ours[compared], theirs[compared])
    assert np.isnan(fmt.decode(ours[np.isnan(x)])).all()


def test_the_overflow_rules_of_fp8_e4m3_part_at_464():
    """448 and 480 are the neighbours; 464 is halfway and goes to 448, whose last bit is 0."""
    fmt = get_format("fp8_e4m3")
    x = np.array([448, 464, np.nextafter(np.float32(464), np.float32(465)), np.inf], np.float32)
    assert fmt.decode(fmt.encode(x, "saturate")).tolist() == [448, 448, 448, 448]
    assert np.isnan(fmt.decode(fmt.encode(x, "nan"))).tolist() == [False, False, True, True]
    with pytest.raises(QlabError, match=r"fp8_e4m3 has no inf: choose overflow='saturate'"):
        fmt.encode(x, "inf")
    with pytest.raises(QlabError, match=r"fp4_e2m1 has no nan"):
        get_format("fp4_e2m1").encode(x, "nan")
    with pytest.raises(QlabError, match=r"unknown overflow rule 'wrap'"):
        fmt.encode(x, "wrap")
    for name in ("fp8_e5m2", "fp16"):
        ieee = get_format(name)
        big = np.array([1e9, -1e9], np.float32)
        assert ieee.decode(ieee.encode(big)).tolist() == [np.inf, -np.inf]
        saturated = ieee.decode(ieee.encode(big, "saturate")).tolist()
        assert saturated == [ieee.max, -ieee.max]
        assert np.isnan(ieee.decode(ieee.encode(big, "nan"))).all()


def test_tf32_and_fp32_are_the_first_bits_of_a_float32():
    """No library has tf32: its rule is that of bf16, ten bits of fraction instead of seven."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 500_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4028234e38], np.float32)])
    known = ~np.isnan(x)
    fp32 = get_format("fp32")
    np.testing.assert_array_equal(fp32.encode(x)[known], x.view(np.uint32)[known])
    same_number(fp32.decode(fp32.encode(x)), x)
    tf32 = get_format("tf32")
    bits = x.view(np.uint32).astype(np.int64)
    halves = 0xFFF + (bits >> 13 & 1)  # half to even on the integer that the bits are
    np.testing.assert_array_equal(tf32.encode(x)[known], (bits + halves >> 13)[known])
    every = np.arange(1 << 19, dtype=np.uint32)
    same_number(tf32.decode(every), (every << 13).view(np.float32))
    for fmt in (fp32, tf32):
        ours = fmt.decode(fmt.encode(torch.from_numpy(x))).numpy()
        same_number(ours, fmt.decode(fmt.encode(x)))


def test_no_float_format_is_left_without_a_peer():
    named = {n for n in format_names() if n.startswith(("fp", "bf", "tf", "e8"))} - {"fp4_bnb"}
    assert named == {*PEERS, "tf32", "fp32"}
