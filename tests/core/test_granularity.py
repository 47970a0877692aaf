"""Granularity: blocks are independent, metadata is counted, and what finer blocks promise."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import Granularity, Scheme, granularity, quantize
from qlab.core.granularity import expand, row_chunks, to_blocks

WORDS = ["tensor", "channel", "channel1", "token", "g4", "g8", "b2x4", "b4x16", "global"]
# Coarse to fine on a tensor of 8 x 16: each is cut from the one before it. These are the chains of
# the partial order; two sizes that do not nest, such as g3 and g2, are in no order at all.
CHAINS = [
    ("global", "tensor", "channel", "g8", "g4", "g2", "g1"),
    ("tensor", "channel1", "b4x1", "b2x1", "g1"),
    ("tensor", "b4x16", "b4x8", "b2x8", "g8", "g4"),
    ("tensor", "b8x8", "b8x4", "b2x4", "b1x4"),
]


def matrices(shape=(8, 16)):
    """Float32 matrices: ordinary, with outliers, with zero rows, tiny, huge, on a coarse grid."""

    def build(seed, kind, exponent):
        rng = np.random.default_rng(seed)
        w = rng.standard_normal(shape)
        if kind == "outlier":
            w[rng.integers(shape[0]), rng.integers(shape[1])] *= 1000
        elif kind == "outlier column":
            w[:, rng.integers(shape[1])] *= 50
        elif kind == "zero rows":
            w[rng.random(shape[0]) < 0.5] = 0
        elif kind == "constant":
            w[:] = w[0, 0]
        elif kind == "grid":
            w = rng.integers(-3, 4, shape)
        return (w * 2.0**exponent).astype(np.float32)

    kinds = ("normal", "outlier", "outlier column", "zero rows", "constant", "grid")
    return st.builds(
        build, st.integers(0, 2**32 - 1), st.sampled_from(kinds), st.integers(-100, 100)
    )


# --- blocks -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    w=matrices(),
    word=st.sampled_from(WORDS),
    fmt=st.sampled_from(["int8", "int4-asym", "int3", "uint5"]),
)
def test_each_block_is_quantized_as_if_it_were_alone(w, word, fmt):
    """The definition: a granularity is a way to cut; a block is then a tensor of its own."""
    q = quantize(w, f"{fmt}-{word}")
    rows, columns = q.scheme.granularity.block_shape(w.shape)
    back = q.dequantize()
    for i, j in itertools.product(range(0, 8, rows), range(0, 16, columns)):
        alone = quantize(w[i : i + rows, j : j + columns], f"{fmt}-tensor")
        np.testing.assert_array_equal(alone.dequantize(), back[i : i + rows, j : j + columns])
        np.testing.assert_array_equal(alone.codes, q.codes[i : i + rows, j : j + columns])
        assert alone.scale.item() == q.scale[i // rows, j // columns]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_names_a_granularity_and_back(word):
    parsed = Granularity.parse(word)
    assert parsed is not None and parsed.name == word and Granularity.parse(parsed.name) == parsed
    assert Scheme.parse(f"int4-{word}").granularity == parsed


@pytest.mark.parametrize("bad", ["row", "g", "b4", "b4x", "channels", "Tensor", "g-1", "global2"])
def test_other_words_name_none(bad):
    assert Granularity.parse(bad) is None


def test_granularities_that_the_shape_cannot_have_are_refused():
    vector, scalar = np.ones(4, np.float32), np.float32(1)
    with pytest.raises(qlab.QlabError, match="needs 2 axes; the tensor has 1"):
        quantize(vector, "int4-b2x2")
    with pytest.raises(qlab.QlabError, match="only 1 axes"):
        quantize(vector, "int4-channel1")
    with pytest.raises(qlab.QlabError, match="the tensor is a scalar"):
        Granularity("channel").block_shape(())
    with pytest.raises(qlab.QlabError, match=r"b3x4.*axis 0.*8 = 2 x 3 \+ 2.*pad=True"):
        quantize(np.ones((8, 16), np.float32), "int4-b3x4")
    for word in ("tensor", "global"):
        assert quantize(scalar, f"int8-{word}").dequantize().shape == ()


def test_leading_axes_are_rows():
    """Group, block and token look at the last axes; every leading index has its own blocks."""
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 16)).astype(np.float32)
    for word in ("token", "g4", "b2x4"):
        whole = quantize(x, f"int4-{word}")
        for i, j in itertools.product(range(2), range(3)):
            one = quantize(x[i, j], f"int4-{word}")
            np.testing.assert_array_equal(one.dequantize(), whole.dequantize()[i, j])
    assert quantize(x, "int4-channel2").scale.shape == (1, 1, 8, 1)


# --- what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["int8", "int4", "int4-asym", "int3-asym", "int2"])
@pytest.mark.parametrize("scale", ["", "-sfp16"])
@pytest.mark.parametrize("word", ["tensor", "channel", "channel1", "token", "g32", "b16x32"])
def test_bits_per_weight_is_the_formula_of_the_chapter(fmt, scale, word):
    """b + (s + z) / n: codes, scale and zero point (as wide as a code) for each n weights."""
    rows, columns = 64, 256
    q = quantize(np.ones((rows, columns), np.float32), f"{fmt}-{word}{scale}")
    b = q.scheme.format.bits
    s, z = (16 if scale else 32), (b if "asym" in fmt else 0)
    n = math.prod(q.scheme.granularity.block_shape((rows, columns)))
    # Metadata is rounded up to whole bytes: only where it is a single odd number of bits.
    assert q.bits_per_weight == pytest.approx(b + (s + z) / n, abs=8 / (rows * columns))
    if (rows * columns // n * (s + z)) % 8 == 0:
        assert q.bits_per_weight == b + (s + z) / n


# --- what finer blocks promise ------------------------------------------------------------------


def bound(q, shape):
    """Largest possible squared error of each element: (scale / 2)², and 0 in a block of zeros."""
    block = q.scheme.granularity.block_shape(shape)
    scale = np.broadcast_to(
        expand(q.scale.astype(np.float64), block), to_blocks(np.empty(shape), block)[0].shape
    ).reshape(shape)
    return scale**2 / 4


def live(w, q):
    """Elements of blocks that are not all zero (those get scale 1, and no error)."""
    block = q.scheme.granularity.block_shape(w.shape)
    blocks, axes = to_blocks(w, block)
    some = np.broadcast_to((blocks != 0).any(axis=axes, keepdims=True), blocks.shape)
    return some.reshape(w.shape)


@settings(max_examples=150, deadline=None)
@given(
    w=matrices(),
    chain=st.sampled_from(CHAINS),
    fmt=st.sampled_from(["int8", "int4", "int2", "int4-asym", "uint3"]),
)
def test_cutting_a_block_never_raises_the_bound_of_any_element(w, chain, fmt):
    """A part's range lies in the whole's, so its scale is no larger, nor is (scale / 2)².

    Exactly, in floating point too: the scale is the range over a constant, and rounding is
    monotone. And the error keeps the bound, so finer blocks never lose more than the bound of the
    coarser ones: mse(fine) <= mean bound(fine) <= mean bound(coarse).
    """
    coarse = None
    for word in chain:
        q = quantize(w, f"{fmt}-{word}")
        now = np.where(live(w, q), bound(q, w.shape), 0)
        squared = (w.astype(np.float64) - q.dequantize()) ** 2
        # x / scale is rounded in float32: at most 2^-23 of up to 255 steps, twice.
        assert (squared <= now * (1 + 2.0**-13) ** 2 + 1e-80).all(), word
        if coarse is not None:
            assert (now <= coarse).all(), word
        coarse = now


@settings(max_examples=100, deadline=None)
@given(w=matrices(), chain=st.sampled_from(CHAINS))
def test_scales_in_half_precision_keep_the_order(w, chain):
    """Rounding to float16 is monotone, so stored scales do not grow either."""
    coarse = None
    for word in chain:
        q = quantize(w, f"int4-{word}-sfp16")
        now = np.where(live(w, q), bound(q, w.shape), 0)
        if coarse is not None:
            assert (now <= coarse).all(), word
        coarse = now


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    chain=st.sampled_from(CHAINS),
    law=st.sampled_from(["normal", "uniform", "laplace", "student"]),
    bits=st.integers(3, 8),
)
def test_of_random_data_the_error_falls_on_average(seed, chain, law, bits):
    """What the bound does not promise holds in the mean over many matrices of smooth data."""
    rng = np.random.default_rng(seed)
    shape = (40, 8, 16)
    w = {
        "normal": lambda: rng.standard_normal(shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "laplace": lambda: rng.laplace(size=shape),
        "student": lambda: rng.standard_t(4, size=shape),
    }[law]().astype(np.float32)
    errors = []
    for word in chain:
        if word in ("global", "g1"):
            continue
        errors.append(np.mean([qlab.mse(x, quantize(x, f"int{bits}-{word}")) for x in w]))
    # Over 5120 elements the mean squared error is known to some 3 percent; uniform data has
    # nearly the same largest value in any large block, hence no strict fall between neighbors.
    assert all(fine <= coarse * 1.1 for coarse, fine in itertools.pairwise(errors)), errors
    assert errors[-1] < errors[0]


def test_the_measured_error_can_rise():
    """The counterexample of the chapter: on the coarse grid by luck, off the fine one."""
    w = np.array([[7, 7, 3, 1]], np.float32)
    whole, halves = quantize(w, "int4-channel"), quantize(w, "int4-g2")
    assert qlab.mse(w, whole) == 0 and qlab.mse(w, halves) > 0.005
    # The bound fell all the same, and the error stays below it.
    assert bound(halves, w.shape).sum() < bound(whole, w.shape).sum()
    assert qlab.mse(w, halves) <= bound(halves, w.shape).mean()


@settings(max_examples=200, deadline=None)
@given(levels=st.lists(st.integers(-7, 7), min_size=8, max_size=8))
def test_values_on_a_coarse_grid_never_gain_from_finer_blocks(levels):
    """Why the measured error has no law of its own: coarse can be exact where fine is not."""
    w = np.array([levels], np.float32)
    w[0, 0] = 7  # the scale of the whole row is 1, and every value a multiple of it
    whole = qlab.mse(w, quantize(w, "int4-channel"))
    assert whole == 0
    for word in ("g4", "g2"):
        assert qlab.mse(w, quantize(w, f"int4-{word}")) >= whole


def test_sizes_that_do_not_nest_are_in_no_order():
    """Groups of 2 are smaller than groups of 3, and have the larger bound here."""
    w = np.array([[1, 9, 9, 1, 1, 1]], np.float32)
    two, three = quantize(w, "int4-g2"), quantize(w, "int4-g3")
    assert bound(two, w.shape).sum() > bound(three, w.shape).sum()
    other = np.array([[9, 9, 1, 1, 1, 1]], np.float32)
    two, three = quantize(other, "int4-g2"), quantize(other, "int4-g3")
    assert bound(two, w.shape).sum() < bound(three, w.shape).sum()


@settings(max_examples=60, deadline=None)
@given(w=matrices())
def test_one_element_a_block_is_exact_or_nearly(w):
    """Each weight its own scale: the code is ±7 and only float32 rounding is left."""
    back = quantize(w, "int4-g1").dequantize()
    # scale = |x| / 7 and 7 · scale each round once.
    np.testing.assert_allclose(back, w, rtol=2.0**-22, atol=0)


# --- working in pieces --------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    blocks=st.tuples(st.integers(0, 9), st.integers(1, 3)),
    block=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    chunk=st.integers(1, 200),
)
def test_pieces_cover_each_row_once_and_respect_blocks(blocks, block, chunk):
    shape = (blocks[0] * block[0], blocks[1] * block[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(granularity, "CHUNK", chunk)
        pieces = row_chunks(shape, block)
    covered = [i for rows, _, _ in pieces for i in range(shape[0])[rows]]
    assert covered == list(range(shape[0]))
    for rows, which, inside in pieces:
        count = len(range(shape[0])[rows])
        used = range(blocks[0])[which]
        assert inside[1:] == block[1:]
        assert count == len(used) * inside[0]
        # The parameters of a row are those of the block in which it lies.
        for i, row in enumerate(range(shape[0])[rows]):
            assert used[i // inside[0]] == row // block[0]
        if len(pieces) > 1:
            assert count * shape[1] <= max(chunk, shape[1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    word=st.sampled_from(WORDS),
    fmt=st.sampled_from(["int4", "int3-asym", "uint8"]),
    chunk=st.integers(1, 300),
    torch_too=st.booleans(),
)
def test_pieces_change_nothing(seed, word, fmt, chunk, torch_too):
    w = np.random.default_rng(seed).standard_normal((2, 8, 16)).astype(np.float32)
    w = w[0] if seed % 2 else w
    x = torch.from_numpy(w) if torch_too else w
    whole = quantize(w, f"{fmt}-{word}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(granularity, "CHUNK", chunk)
        pieces = quantize(x, f"{fmt}-{word}")
    np.testing.assert_array_equal(np.asarray(pieces.packed), whole.packed)
    np.testing.assert_array_equal(np.asarray(pieces.scale), whole.scale)
    np.testing.assert_array_equal(np.asarray(pieces.dequantize()), whole.dequantize())


def test_a_large_matrix_is_quantized_in_pieces_with_the_same_result(monkeypatch):
    w = np.random.default_rng(1).standard_normal((600, 1024)).astype(np.float32)
    assert w.size > 2 * granularity.CHUNK
    in_pieces = {word: quantize(w, f"int4-{word}") for word in ("g128", "tensor", "b300x32")}
    monkeypatch.setattr(granularity, "CHUNK", w.size)
    for word, q in in_pieces.items():
        at_once = quantize(w, f"int4-{word}")
        np.testing.assert_array_equal(q.packed, at_once.packed)
        np.testing.assert_array_equal(q.dequantize(), at_once.dequantize())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.filterwarnings("error")
def test_a_bad_value_is_found_wherever_it_hides(value, library):
    rng = np.random.default_rng(5)
    for position in [(0, 0), (7, 15), (3, 9)]:
        w = rng.standard_normal((8, 16)).astype(np.float32)
        w[position] = value
        x = torch.from_numpy(w) if library == "torch" else w
        with pytest.raises(qlab.QlabError, match=rf"position \({position[0]}, {position[1]}\)"):
            quantize(x, "int4-g8")


def test_the_input_is_not_changed():
    w = np.random.default_rng(6).standard_normal((8, 16)).astype(np.float32)
    for x in (w.copy(), torch.from_numpy(w.copy())):
        for word in WORDS:
            quantize(x, f"int4-asym-{word}")
        np.testing.assert_array_equal(np.asarray(x), w)
