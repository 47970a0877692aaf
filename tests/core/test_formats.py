"""Laws that hold for every format: nearest level, round trip, step, range, storage."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.core import pack, unpack
from qlab.core.codebooks import NF4, CodebookFormat, logarithmic
from qlab.core.formats import (
    CodebookFormat as Exported,
)
from qlab.core.formats import (
    FloatFormat,
    IntFormat,
    format_names,
    get_format,
)
from qlab.errors import QlabError

NAMES = format_names()
LISTED = [n for n in NAMES if n not in ("fp32", "tf32")]  # tf32 is listed, too long for each test
SMALL = [n for n in LISTED if get_format(n).bits <= 8]


def test_the_formats_that_there_are():
    ints = [f"{u}int{b}" for u in ("", "u") for b in range(1, 9)]
    floats = "fp32 tf32 bf16 fp16 fp8_e4m3 fp8_e5m2 fp6_e2m3 fp6_e3m2 fp4_e2m1 e8m0".split()
    tables = ["nf4", "fp4_bnb", *(f"log{b}" for b in range(2, 9))]
    assert NAMES == sorted([*ints, "ternary", "binary", *floats, *tables])
    assert all(get_format(n).name == n == str(get_format(n)) for n in NAMES)
    assert isinstance(get_format("int4"), IntFormat)
    assert isinstance(get_format("fp16"), FloatFormat)
    assert isinstance(get_format("nf4"), Exported)


@pytest.mark.parametrize("name", LISTED)
def test_levels_are_ascending_finite_and_decode_to_themselves(name):
    fmt = get_format(name)
    levels = fmt.levels()
    assert levels == sorted(set(levels)) and all(map(math.isfinite, levels))
    assert (fmt.min, fmt.max) == (levels[0], levels[-1])
    assert fmt.ideal_bits == pytest.approx(math.log2(len(levels)))
    assert fmt.ideal_bits <= fmt.bits
    assert fmt.signed == (levels[0] < 0)
    x = np.array(levels, np.float32)
    np.testing.assert_array_equal(x.astype(np.float64), levels)  # float32 holds every level
    np.testing.assert_array_equal(fmt.decode(fmt.encode(x)), x)


def test_numbers_that_one_should_know():
    table = {name: get_format(name) for name in NAMES}
    assert {n: f.bits for n, f in table.items() if n.startswith(("fp", "bf", "tf", "e8"))} == {
        "fp32": 32, "tf32": 19, "bf16": 16, "fp16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8,
        "fp6_e2m3": 6, "fp6_e3m2": 6, "fp4_e2m1": 4, "fp4_bnb": 4, "e8m0": 8,
    }  # fmt: skip
    assert [table[n].max for n in ("fp16", "fp8_e4m3", "fp8_e5m2")] == [65504, 448, 57344]
    assert [table[n].max for n in ("fp6_e2m3", "fp6_e3m2", "fp4_e2m1")] == [7.5, 28, 6]
    assert table["fp32"].max == float(np.finfo(np.float32).max)
    assert table["fp4_e2m1"].levels()[7:] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert (table["e8m0"].min, table["e8m0"].max) == (2.0**-127, 2.0**127)
    assert table["ternary"].bits == 2
    assert table["ternary"].ideal_bits == pytest.approx(1.585, abs=1e-3)
    assert table["binary"].levels() == [-1, 1] and table["binary"].bits == 1
    assert table["log4"].levels()[8:] == [2.0**-k for k in range(6, -1, -1)]
    assert table["log5"].levels()[-2] == pytest.approx(2**-0.5)
    assert table["fp16"].smallest == 2.0**-24 and table["fp16"].smallest_normal == 2.0**-14
    with pytest.raises(QlabError, match="too many levels"):
        table["fp32"].levels()


@pytest.mark.parametrize("name", SMALL)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_encode_takes_the_nearest_level(name, data):
    """In float64: no level is nearer than the one taken, but for values on the border itself."""
    fmt = get_format(name)
    levels = np.array(fmt.levels())
    reach = 1.2 * max(fmt.max, -fmt.min) if name != "e8m0" else 1e6
    low = 2.0**-120 if name == "e8m0" else -reach
    x = data.draw(st.lists(st.floats(low, reach), min_size=1, max_size=30))
    x = np.array(x, np.float32)
    rule = ("saturate",) if isinstance(fmt, FloatFormat) else ()
    taken = fmt.decode(fmt.encode(x, *rule)).astype(np.float64)
    distance = np.abs(x[:, None].astype(np.float64) - levels)
    # Codebooks compare with midpoints that are rounded to float32: an error of 2^-25 of the value.
    slack = 2.0**-24 * np.abs(x) if isinstance(fmt, CodebookFormat) else 0.0
    assert (np.abs(x - taken) <= distance.min(axis=1) + slack).all()
    same = fmt.decode(fmt.encode(torch.from_numpy(x), *rule)).numpy()
    np.testing.assert_array_equal(same, taken.astype(np.float32))


@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("e8m0", "binary")])
def test_halves_go_to_the_even_code(name):
    """Integers and floats. Codebooks have no parity: the lower of the two."""
    fmt = get_format(name)
    levels = np.array(fmt.levels())
    halves = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    codes = fmt.encode(halves)
    if isinstance(fmt, CodebookFormat):
        exact = halves.astype(np.float64) * 2 == levels[1:] + levels[:-1]
        np.testing.assert_array_equal(fmt.decode(codes)[exact], levels[:-1][exact])
        assert exact.any()
    else:
        assert (codes.astype(int) % 2 == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_step_is_the_gap_around_a_value(name):
    fmt = get_format(name)
    if name == "fp32":
        for v in (1.0, 1e-40, 3e38, -7.25, 0.0):
            up = float(np.nextafter(np.float32(abs(v)), np.float32(np.inf))) - abs(np.float32(v))
            assert fmt.step(v) == float(up)
        return
    levels = fmt.levels()
    some = range(len(levels) - 1) if len(levels) < 600 else range(0, len(levels) - 1, 997)
    for i in some:
        low, high = levels[i], levels[i + 1]
        assert fmt.step((low + high) / 2) == high - low
        if low >= 0:
            assert fmt.step(low) == high - low
        if high < 0:  # zero itself looks up
            assert fmt.step(high) == high - low
    assert fmt.step(levels[-1]) == levels[-1] - levels[-2]
    assert fmt.step(levels[0]) == levels[1] - levels[0]
    beyond = levels[-1] * 2 if levels[-1] > 0 else 1.0
    assert fmt.step(beyond) == math.inf


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_stored_in_their_bits_and_come_back(name):
    fmt = get_format(name)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 40)) * min(fmt.max, 1e3)).astype(np.float32)
    x = np.abs(x) if name == "e8m0" else x
    for library in (lambda v: v, torch.from_numpy):
        codes = fmt.encode(library(x))
        stored = fmt.to_stored(codes)
        wide = np.asarray(stored).astype(np.int64)
        assert wide.min() >= 0 and wide.max() < 2**fmt.bits
        back = fmt.from_stored(unpack(pack(stored, fmt.bits), fmt.bits, 40))
        assert back.dtype == codes.dtype
        np.testing.assert_array_equal(np.asarray(back), np.asarray(codes))


def test_encode_and_decode_keep_shape_and_take_empty_arrays():
    for name in NAMES:
        fmt = get_format(name)
        for shape in ((), (0,), (2, 0, 3), (2, 3, 4)):
            x = np.ones(shape, np.float32)
            assert fmt.encode(x).shape == shape
            assert fmt.decode(fmt.encode(x)).shape == shape
            assert tuple(fmt.encode(torch.ones(shape)).shape) == shape


def test_nf4_splits_the_normal_distribution_evenly():
    """Its construction asks for equal shares between quantiles; measured: 6.25% each, roughly."""
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    # Divided by the quantile at 0.9677083, as the table is.
    codes = NF4.encode(x / np.float32(1.8481))
    shares = np.bincount(codes, minlength=16) / len(x)
    # The two outer codes take all that lies beyond; zero stands between two unequal halves.
    assert (shares[1:-1] > 0.045).all() and (shares[1:-1] < 0.08).all()
    entropy = -(shares * np.log2(shares)).sum()
    assert entropy > 3.95
    uniform = get_format("int4").encode(x * np.float32(7 / 4.5))
    other = np.bincount(uniform.astype(int) + 8, minlength=16) / len(x)
    other = other[other > 0]
    assert -(other * np.log2(other)).sum() < entropy - 0.5


@pytest.mark.parametrize("bits", range(2, 9))
def test_logarithmic_levels_have_a_constant_ratio(bits):
    fmt = logarithmic(bits)
    positive = np.array([v for v in fmt.levels() if v > 0])
    assert len(positive) == 2 ** (bits - 1) - 1
    assert positive[-1] == 1
    if bits > 2:
        ratio = 2.0 ** (1 / 2 ** max(bits - 4, 0))
        np.testing.assert_allclose(positive[1:] / positive[:-1], ratio, rtol=1e-6)
    # Relative error of any value in range: at most half a ratio's gap.
    x = np.geomspace(positive[0], 1, 5000).astype(np.float32)
    error = np.abs(fmt.decode(fmt.encode(x)) - x) / x
    if bits > 2:
        assert error.max() <= (ratio - 1) / (ratio + 1) * (1 + 1e-5)
    with pytest.raises(QlabError, match="2 to 8 bits"):
        logarithmic(9)


def test_bad_names_and_tables_are_refused():
    for word, near in (("fp8_e4m4", "fp8_e4m3"), ("nf5", "nf4"), ("int9", "int8"), ("log9", "log")):
        with pytest.raises(QlabError, match=f"unknown format '{word}'.*{near}"):
            get_format(word)
    with pytest.raises(QlabError, match="3 values: 2 bits need 4"):
        CodebookFormat("mine", 2, (0.0, 1.0, 2.0))
    mine = CodebookFormat("mine", 2, (3.0, -1.0, 0.5, 0.0))  # a table in any order
    x = np.array([2.9, -5, 0.4, 0.1], np.float32)
    assert mine.encode(x).tolist() == [0, 1, 2, 3]
    assert mine.decode(mine.encode(x)).tolist() == [3, -1, 0.5, 0]
