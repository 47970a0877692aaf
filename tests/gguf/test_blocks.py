"""Properties of the block types, and what ``quantize`` refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from qlab import QlabError
from qlab.gguf import BLOCK_TYPES, block_type, dequantize, quantize
from qlab.gguf.arithmetic import nearest_int, round_away, truncate
from qlab.gguf.blocks import _k
from qlab.gguf.blocks._grids import EVEN_SIGNS, RINGS, quantizer_grid, signs, split_signs
from qlab.kernels.cpu import gguf_lanes
from tests.gguf.arrays import importance_for

ENCODE = [k for k, b in BLOCK_TYPES.items() if b.can_encode]
READ_ONLY = [k for k, b in BLOCK_TYPES.items() if not b.can_encode]
GRIDS = [k for k in ENCODE if k.startswith(("IQ1", "IQ2", "IQ3"))]
finite = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.fixture(scope="module")
def normal():
    return np.random.default_rng(0).normal(size=(16, 512)).astype(np.float32)


@pytest.mark.parametrize("name", ENCODE)
def test_rows_are_stored_by_themselves(name, normal):
    row = importance_for(name, 512)
    whole = quantize(normal, name, row)
    assert whole.dtype == np.uint8 and whole.shape == (16, block_type(name).row_bytes(512))
    assert np.array_equal(whole[3], quantize(normal[3], name, row))
    cube = quantize(normal.reshape(2, 8, 512), name, row)
    assert np.array_equal(cube.reshape(whole.shape), whole)
    assert np.array_equal(quantize(normal[::2], name, row), whole[::2])  # not contiguous
    assert quantize(normal[:0], name, row).shape == (0, whole.shape[1])
    assert quantize(normal[:, :0], name, importance_for(name, 0)).shape == (16, 0)
    assert dequantize(whole, name).shape == normal.shape
    assert dequantize(cube, name).shape == (2, 8, 512)
    assert dequantize(whole[:0], name).shape == (0, 512)


@pytest.mark.parametrize("name", ENCODE)
def test_zeros_stay_zeros(name):
    x = np.zeros((2, 512), np.float32)
    assert not dequantize(quantize(x, name, importance_for(name, 512)), name).any()


@pytest.mark.parametrize("name", [k for k in ENCODE if BLOCK_TYPES[k].block_size > 1])
def test_what_was_read_is_stored_almost_alike(name, normal):
    """A second rounding finds levels that it can hit; the search may settle a little elsewhere."""
    row = importance_for(name, 512)
    once = dequantize(quantize(normal, name, row), name)
    twice = dequantize(quantize(once, name, row), name)
    first = np.square(normal - once).sum()
    again = np.square(once - twice).sum()
    # One bit stores the mean magnitude, which is its own; the others lose at most a third more.
    assert again <= first / 3


def test_more_bits_are_closer(normal):
    """Error of normal weights in the order of bits per weight, within each family."""

    def error(name):
        # Without importance IQ1_M weighs errors by x², and gives up small weights for large ones.
        row = np.ones(512, np.float32) if name in GRIDS else None
        found = dequantize(quantize(normal, name, row), name)
        return np.square(normal - found).mean()

    families = (
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL"),
        ("Q1_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "BF16", "F16", "F32"),
        ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    )
    for family in families:
        errors = [error(k) for k in family]
        assert errors == sorted(errors, reverse=True)
        bits = [block_type(k).bits_per_weight() for k in family[:-3]]
        assert bits == sorted(bits)


@pytest.mark.parametrize(
    "name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS", "Q4_0", *GRIDS]
)
def test_importance_buys_what_it_asks_for(name):
    """The weighted error falls where columns differ in importance."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, 512)).astype(np.float32)
    importance = rng.chisquare(1, 512).astype(np.float32) ** 2

    def cost(row):
        found = dequantize(quantize(x, name, row), name)
        return (importance * np.square(x - found)).sum()

    assert cost(importance) < 0.97 * cost(importance_for(name, 512))


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL", "Q3_K", "Q4_1", *GRIDS])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_both_engines_agree(name, data):
    x = data.draw(npst.arrays(np.float32, (2, 256), elements=finite, fill=finite))
    costs = npst.arrays(np.float32, 256, elements=st.floats(0, 2.0**66, width=32))
    importance = data.draw(costs if block_type(name).needs_importance else st.none() | costs)
    found = []
    for engine in ("numpy", "numba"):
        try:
            found.append(quantize(x, name, importance, engine=engine))
        except QlabError as error:  # both or none
            assert name in GRIDS and "overflow" in str(error)
            found.append(None)
    assert np.array_equal(*found)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0"])
@given(x=npst.arrays(np.float32, (3, 32), elements=st.floats(-1000, 1000, width=32)))
@settings(max_examples=30, deadline=None)
def test_error_bound_of_one_scale(name, x):
    """At most half a step, and a whole one at the end that the signed range lacks; and float16."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    codes = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 127}[name]
    step = largest / codes
    worst = 0.5 * step if name == "Q8_0" else step
    error = np.abs(x - dequantize(quantize(x, name), name))
    # float16 keeps 11 bits of the scale, and nothing finer than 2^-24.
    assert (error <= worst * 1.001 + largest * 2.0**-11 + codes * 2.0**-24).all()


@given(
    s=npst.arrays(np.uint8, (5, 8), elements=st.integers(0, 63)),
    m=npst.arrays(np.uint8, (5, 8), elements=st.integers(0, 63)),
)
def test_six_bits(s, m):
    packed = _k.pack_six_bits(s, m)
    assert packed.shape == (5, 12)
    found = _k.unpack_six_bits(packed)
    assert np.array_equal(found[0], s) and np.array_equal(found[1], m)


@given(npst.arrays(np.uint8, (3, 256)))
def test_packing_is_undone(codes):
    assert np.array_equal(_k.unpack_crumbs(_k.pack_crumbs(codes & 3)), codes & 3)
    assert np.array_equal(_k.unpack_k_nibbles(_k.pack_k_nibbles(codes & 15)), codes & 15)
    assert np.array_equal(_k.unpack_planes(_k.pack_planes(codes & 1)), codes & 1)


@given(st.floats(width=32))
def test_half_precision_of_the_kernels(x):
    with np.errstate(over="ignore"):
        expected = int(np.float32(x).astype(np.float16).view(np.uint16))
    found = int(gguf_lanes.to_half(np.float32(x)))
    if np.isnan(x):
        assert found & 0x7C00 == 0x7C00 and found & 0x3FF
    else:
        assert found == expected


def test_every_half_is_widened_right():
    bits = np.arange(65536, dtype=np.uint16)
    widened = np.array([gguf_lanes.from_half(np.uint32(b)) for b in bits], np.float32)
    assert np.array_equal(widened, bits.view(np.float16).astype(np.float32), equal_nan=True)


@given(st.floats(-4e6, 4e6, width=32))
def test_rounding_of_the_c(x):
    x = np.array([x], np.float32)
    assert nearest_int(x)[0] == np.rint(x.astype(np.float64))[0]
    assert truncate(x)[0] == np.trunc(x)[0]
    exact = float(x[0])
    assert round_away(x)[0] == np.copysign(np.floor(abs(exact) + 0.5), exact)


def test_truncate_beyond_int32():
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 2.0**31, -(2.0**31)], np.float32)
    assert (truncate(x) == -(2**31)).all()


def test_torch_tensors_are_taken(normal):
    import torch

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.from_numpy(normal).to(dtype)
        assert np.array_equal(quantize(x, "Q4_K"), quantize(x.float().numpy(), "Q4_K"))
    x = torch.from_numpy(normal).requires_grad_()
    assert np.array_equal(quantize(x, "q8_0"), quantize(normal, "Q8_0"))


@pytest.mark.parametrize(
    ("x", "name", "importance", "says"),
    [
        (np.zeros((2, 32)), "Q4_X", None, "no GGUF type 'Q4_X'"),
        (np.zeros((2, 100)), "Q4_K", None, "blocks of 256"),
        (np.float32(1), "F32", None, "dimension"),
        (np.array([[np.nan] * 32]), "Q4_0", None, "NaN"),
        (np.array([[1e39] * 32]), "Q4_0", None, "infinity"),
        (np.zeros((2, 32)), "Q4_0", np.ones(31), "importance of shape"),
        (np.zeros((2, 32)), "Q4_0", -np.ones(32), "negative"),
        (np.zeros((2, 32)), "Q4_0", np.full(32, np.inf), "infinity"),
        (np.zeros((2, 256)), "IQ2_XXS", None, "needs an importance matrix"),
        (
            np.random.default_rng(0).normal(size=(2, 256)) * 1e37,
            "IQ2_S",
            np.ones(256),
            "overflow float32",
        ),
        (np.zeros((2, 256)), "F64", None, "read but not written"),
        ([["a"]], "F32", None, "numbers"),
    ],
)
def test_bad_input(x, name, importance, says):
    with pytest.raises(QlabError, match=says) as error:
        quantize(x, name, importance)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [k for k in ENCODE if k not in ("F32", "F16", "BF16", *GRIDS)])
def test_what_is_not_finite_is_found_anywhere(name):
    """Each kind, alone in a matrix, with and without importance; the largest float is finite."""
    rng = np.random.default_rng(8)
    kinds = np.array([0x7F800000, 0xFF800000, 0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF])
    largest = np.float32(3.4028235e38)
    for importance in (None, np.ones(512, np.float32)):
        for value in kinds.astype(np.uint32).view(np.float32):
            x = rng.normal(size=(3, 512)).astype(np.float32)
            x[rng.integers(3), rng.integers(512)] = value
            with pytest.raises(QlabError, match="NaN or infinity"):
                quantize(x, name, importance)
        for value in (largest, -largest):
            x = rng.normal(size=(3, 512)).astype(np.float32)
            x[rng.integers(3), rng.integers(512)] = value
            assert quantize(x, name, importance).size


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_not_finite_is_found_by_the_grid_types(name):
    """Squares of the largest floats overflow, and then there is a nearest point or an error."""
    for value in (np.nan, np.inf, -np.inf):
        x = np.ones((3, 512), np.float32)
        x[1, 300] = value
        for engine in ("numpy", "numba"):
            with pytest.raises(QlabError, match="NaN or infinity"):
                quantize(x, name, np.ones(512, np.float32), engine=engine)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ3_XXS", "IQ3_S"])
def test_neighbours(name):
    """Checked for some combinations one by one, against their definition."""
    grid = quantizer_grid(name)
    points = grid.points.astype(int)
    assert len(grid.place) == grid.levels**grid.size
    assert np.array_equal(grid.place[grid.number(points)], np.arange(len(points)))
    assert (np.sort(grid.place[grid.place >= 0]) == np.arange(len(points))).all()
    for number in np.random.default_rng(0).choice(len(grid.place), 60, replace=False):
        levels = number // grid.levels ** np.arange(grid.size) % grid.levels
        near = grid.near[grid.first[number] : grid.first[number + 1]]
        distance = np.square(points - levels).sum(1)
        if grid.place[number] >= 0:
            assert len(near) == 0 and distance.min() == 0
            continue
        rings = sorted(set(distance.tolist()))[: RINGS[name]]
        expected = [i for ring in rings for i in np.flatnonzero(distance == ring)]
        assert near.tolist() == expected


@given(st.lists(st.integers(-8, 8), min_size=8, max_size=8))
def test_eight_signs_in_seven_bits(values):
    """The eighth follows from the others; at most one is wrong, and that the cheapest."""
    x, weights = np.array([values], np.float32), np.ones((1, 8), np.float32)
    magnitudes, bits = split_signs(x, weights, even=True)
    restored = magnitudes * signs(EVEN_SIGNS[bits])[:, 0]
    assert np.array_equal(restored, x) and bits.max() < 128
    flipped = magnitudes < 0
    assert flipped.sum() <= 1 and (np.abs(x[flipped]) == np.abs(x).min()).all()
    free, all_bits = split_signs(x, weights, even=False)
    assert np.array_equal(free * signs(all_bits)[:, 0], x) and (free >= 0).all()


def test_more_bad_input():
    with pytest.raises(QlabError, match="no compiled"):
        quantize(np.zeros((1, 128)), "Q1_0", engine="numba")
    with pytest.raises(QlabError, match="engine"):
        quantize(np.zeros((1, 32)), "Q4_0", engine="cuda")
    with pytest.raises(QlabError, match="whole"):
        dequantize(np.zeros((1, 17), np.uint8), "Q4_0")
    with pytest.raises(QlabError, match="uint8"):
        dequantize(np.zeros((1, 18)), "Q4_0")
    with pytest.raises(QlabError, match="uint8"):
        dequantize(np.uint8(3), "Q4_0")
    with pytest.raises(QlabError, match="no compiled"):
        dequantize(np.zeros((1, 18), np.uint8), "Q1_0", engine="numba")
    with pytest.raises(QlabError, match="engine"):
        dequantize(np.zeros((1, 18), np.uint8), "Q4_0", engine="cuda")


def test_every_type_says_how_it_lies():
    for kind in BLOCK_TYPES.values():
        assert kind.__doc__ and kind.bits_per_weight() > 1
        if kind.block_size > 1:
            assert "byte " in kind.__doc__ and f"{kind.block_bytes} bytes" in kind.__doc__
            assert f"{kind.bits_per_weight():g} bits" in kind.__doc__
    assert set(READ_ONLY) == {"F64", "I8", "I16", "I32", "I64"}
