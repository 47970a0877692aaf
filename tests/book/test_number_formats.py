"""The functions that the chapter on number formats writes in the open, on more than it tries."""

from __future__ import annotations

import ast
import itertools
import math
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.core import get_format, pack
from tools.chapters import ROOT

REFEREE = {
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}


def written_in_the_open() -> dict:
    """The functions of the chapter's cells, and its table FLOATS."""
    text = (ROOT / "book" / "number-formats.md").read_text(encoding="utf-8")
    cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)\n```", text, re.S)
    wanted = []
    for cell in cells:
        for node in ast.parse(re.sub(r"(?m)^:tags:.*$", "", cell)).body:
            table = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FLOATS"
            if table or isinstance(node, ast.FunctionDef):
                wanted.append(node)
    space = {"np": np, "math": math}
    exec(compile(ast.Module(wanted, []), "number-formats.md", "exec"), space)
    return space


CHAPTER = written_in_the_open()
FLOATS = {name: CHAPTER["FLOATS"][name] for name in REFEREE}
names = st.sampled_from(sorted(REFEREE))
# float32 over the whole range of the formats and beyond their subnormals.
sizes = st.builds(
    lambda m, e: float(np.float32(math.ldexp(m, e))),
    st.floats(-2, 2, width=32),
    st.integers(-24, 16),
)


@settings(deadline=None)  # a first call imports, and the machine may be busy
@given(st.integers(1, 8), st.booleans(), st.data())
def test_integers_are_those_of_qlab(bits, signed, data):
    code = data.draw(st.integers(0, 2**bits - 1))
    fmt = get_format(f"{'int' if signed else 'uint'}{bits}")
    value = CHAPTER["decode_integer"](code, bits, signed)
    assert fmt.min <= value <= fmt.max
    assert value % 2**bits == code


@settings(deadline=None)
@given(names, sizes)
def test_encode_is_that_of_the_referee(name, x):
    E, M, special = FLOATS[name]
    code = CHAPTER["encode"](x, E, M, special)
    value = CHAPTER["decode"](code, E, M, special)
    largest = get_format(name).max
    if abs(x) <= largest:
        assert code == int(np.array(x, np.float32).astype(REFEREE[name]).view(np.uint8))
    else:
        assert value == math.copysign(largest, x)
    assert CHAPTER["nearest_float"](np.array([x]), E, M, special)[0] == value


@settings(deadline=None)
@given(names, sizes)
def test_the_error_of_a_normal_float_is_bounded(name, x):
    """Equation (eq-bounds): half a step is at most 2^(-M-1) of the number."""
    E, M, special = FLOATS[name]
    fmt = get_format(name)
    if fmt.smallest_normal <= abs(x) <= fmt.max:
        back = CHAPTER["nearest_float"](np.array([x]), E, M, special)[0]
        assert abs(back - x) <= 2.0 ** (-M - 1) * abs(x)


@settings(deadline=None)
@given(names, sizes)
def test_the_naive_code_fails_where_the_chapter_says(name, x):
    """Among normal numbers in range: exactly where the mantissa carries."""
    E, M, special = FLOATS[name]
    fmt = get_format(name)
    if not fmt.smallest_normal <= abs(x) <= fmt.max:
        return
    fraction = math.frexp(x)[0]  # |x| = |fraction| 2^k, 1/2 <= |fraction| < 1
    carries = round((2 * abs(fraction) - 1) * 2**M) == 2**M
    naive, right = CHAPTER["naive"](x, E, M), CHAPTER["encode"](x, E, M, special)
    assert (naive != right) == carries


def test_codes_of_positive_floats_are_in_the_order_of_their_values():
    """Why the carry lands where it should."""
    for name, (E, M, special) in FLOATS.items():
        values = [CHAPTER["decode"](c, E, M, special) for c in range(get_format(name).max_code + 1)]
        assert all(a < b for a, b in itertools.pairwise(values)), name


def test_infinity_would_cost_e4m3_half_of_its_range():
    values = {special: CHAPTER["finite"](4, 3, special) for special in ("ieee", "nan")}
    assert max(values["ieee"]) == 240 and max(values["nan"]) == 448
    assert len(values["nan"]) - len(values["ieee"]) == 14


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=5, max_size=5))
def test_five_ternary_digits_fit_a_byte(trits):
    byte = CHAPTER["pack_five"](trits)
    assert 0 <= byte < 243 and CHAPTER["unpack_five"](byte) == trits


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_the_stream_of_bits_is_that_of_qlab(bits, n, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, n).astype(np.uint8)
    assert CHAPTER["pack_bits"](codes.tolist(), bits) == pack(codes, bits).tolist()


def test_bf16_is_the_upper_half_of_float32():
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    # Every tie there is for these upper halves, and the values around it.
    ties = (patterns[:50_000] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    patterns = np.concatenate([patterns, ties, ties - 1, ties + 1])
    x = patterns.view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        theirs = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(CHAPTER["fp32_to_bf16"](x), theirs)


@pytest.mark.parametrize("word", ["mxfp8", "mxfp6", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("kind", ["normal", "heavy", "tiny", "outlier", "huge"])
def test_block_scales_are_those_of_qlab(word, kind):
    import qlab

    rng = np.random.default_rng(1)
    x = rng.normal(size=(32, 128))
    x = {
        "normal": x,
        "heavy": x**5,
        "tiny": x * 1e-30,
        "outlier": np.where(np.arange(x.size).reshape(x.shape) == 77, 1e4, x),
        "huge": x * 1e30,
    }[kind].astype(np.float32)
    elements = {"mxfp8": "fp8_e4m3", "mxfp6": "fp6_e2m3", "mxfp4": "fp4_e2m1"}
    ours = CHAPTER["mx"](x, elements[word]) if word in elements else CHAPTER["nvfp4"](x)
    assert np.array_equal(ours, qlab.quantize(x, word).dequantize())


def test_rounding_twice_is_wrong_for_one_number_in_256():
    """The exercise's count: eight ties, each with 2^-11 of numbers beside it on one side."""
    x = np.linspace(1, 2, 1_000_003, endpoint=False)[1:]  # no tie is a multiple of this step
    direct = CHAPTER["nearest_float"](x, 4, 3, "nan")
    twice = CHAPTER["nearest_float"](x.astype(np.float16).astype(np.float64), 4, 3, "nan")
    # The grid resolves each of the eight intervals to one point.
    assert np.mean(twice != direct) == pytest.approx(1 / 256, abs=2e-5)
