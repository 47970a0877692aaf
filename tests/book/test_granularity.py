"""What the chapter on granularity says of formulas, promises and products, on input of our own."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab

words = st.sampled_from(["tensor", "channel", "channel1", "token", "g8", "b4x8"])


def blocks_in_the_open(w, bits, block):
    """The chapter's quantize_blocks."""
    q = 2 ** (bits - 1) - 1
    (R, C), (rows, columns) = w.shape, block
    blocks = w.reshape(R // rows, rows, C // columns, columns)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / q
    codes = (blocks / scale).round().clamp(-q, q)
    return (codes * scale).reshape(R, C), scale[:, 0, :, 0]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), word=words, bits=st.integers(2, 8))
def test_a_cut_is_a_reshape(seed, word, bits):
    w = torch.from_numpy(np.random.default_rng(seed).standard_normal((8, 16)).astype(np.float32))
    q = qlab.quantize(w, f"int{bits}-{word}")
    ours, scale = blocks_in_the_open(w, bits, q.scheme.granularity.block_shape((8, 16)))
    assert torch.equal(ours, q.dequantize()) and torch.equal(scale, q.scale)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    word=words,
    row=st.integers(0, 7),
    column=st.integers(0, 15),
    size=st.floats(10, 1e6),
)
def test_a_far_weight_spoils_its_own_block_and_no_other(seed, word, row, column, size):
    w = np.random.default_rng(seed).standard_normal((8, 16)).astype(np.float32)
    spoiled = w.copy()
    spoiled[row, column] = size
    one, other = qlab.quantize(w, f"int4-{word}"), qlab.quantize(spoiled, f"int4-{word}")
    rows, columns = one.scheme.granularity.block_shape(w.shape)
    inside = np.zeros(w.shape, bool)
    top, left = row // rows * rows, column // columns * columns
    inside[top : top + rows, left : left + columns] = True
    np.testing.assert_array_equal(one.dequantize()[~inside], other.dequantize()[~inside])
    changed = one.scale != other.scale
    assert changed.sum() == 1 and changed[row // rows, column // columns]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), group=st.sampled_from([1, 2, 4, 8, 16]))
def test_scales_leave_the_sum_unless_they_depend_on_the_input_channel(seed, group):
    """Integer products, then scales: equal to the product of the restored matrices."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, 16)).astype(np.float32)
    w = rng.standard_normal((3, 16)).astype(np.float32)
    qx, qw = qlab.quantize(x, "int8-token"), qlab.quantize(w, "int8-channel")
    exact = qx.dequantize().astype(np.float64) @ qw.dequantize().T.astype(np.float64)
    integers = qx.codes.astype(np.int64) @ qw.codes.T.astype(np.int64)
    scales = qx.scale.astype(np.float64) * qw.scale.T
    # Restored values are rounded to float32 once: 2^-24 of each of 16 products.
    np.testing.assert_allclose(integers * scales, exact, rtol=1e-5, atol=1e-5)

    qx, qw = qlab.quantize(x, f"int8-g{group}"), qlab.quantize(w, f"int8-g{group}")
    exact = qx.dequantize().astype(np.float64) @ qw.dequantize().T.astype(np.float64)
    partial = np.einsum(
        "tki,oki->tok",
        qx.codes.astype(np.int64).reshape(5, -1, group),
        qw.codes.astype(np.int64).reshape(3, -1, group),
    )
    assert partial.shape[-1] == 16 // group
    summed = (partial * qx.scale[:, None].astype(np.float64) * qw.scale[None]).sum(-1)
    np.testing.assert_allclose(summed, exact, rtol=1e-5, atol=1e-5)


def test_a_scale_an_input_channel_is_stuck_in_the_sum():
    """Two inputs with the same integer product and different results: it cannot be factored."""
    w = np.array([[127, 127]], np.float32)  # both codes 127, scale 1
    scale = np.array([1.0, 10.0])  # of the two input channels
    a, b = np.array([[2, 1]]), np.array([[1, 2]])  # codes of two tokens
    codes = qlab.quantize(w, "int8-channel").codes.astype(np.int64)
    assert (a @ codes.T == b @ codes.T).all()
    assert ((a * scale) @ w.T != (b * scale) @ w.T).all()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_bit_more_buys_about_six_decibels_and_a_halving_less_each_time(bits):
    """Of normal weights: the price list of the chapter."""
    w = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)

    def point(word):
        q = qlab.quantize(w, word)
        return q.bits_per_weight, qlab.sqnr(w, q)

    (x0, y0), (x1, y1) = point(f"int{bits - 1}-channel-sfp16"), point(f"int{bits}-channel-sfp16")
    a_bit = (y1 - y0) / (x1 - x0)
    # 20 log10 of (2^b - 2) / (2^(b-1) - 2): 6.02 dB in the limit, 7.4 from 3 to 4 bits.
    assert a_bit == pytest.approx(20 * np.log10((2**bits - 2) / (2 ** (bits - 1) - 2)), abs=0.2)
    sizes = [256, 128, 64, 32, 16, 8]
    points = [point(f"int{bits}-g{n}-sfp16") for n in sizes]
    prices = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
    assert prices == sorted(prices, reverse=True)
    assert prices[0] > a_bit > prices[3], (prices, a_bit)


def test_squares_cost_what_groups_of_as_many_weights_cost():
    w = np.ones((64, 256), np.float32)
    for square, group in (("b8x8", "g64"), ("b16x16", "g256"), ("b4x8", "g32")):
        for extra in ("", "-sfp16"):
            one, other = (qlab.quantize(w, f"int4-asym-{c}{extra}") for c in (square, group))
            assert one.bits_per_weight == other.bits_per_weight
    # And a square's transpose is cut into the same squares.
    w = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    np.testing.assert_array_equal(
        qlab.quantize(w, "int4-b8x8").dequantize().T, qlab.quantize(w.T, "int4-b8x8").dequantize()
    )
    assert (
        qlab.quantize(w, "int4-g64").dequantize().T != qlab.quantize(w.T, "int4-g64").dequantize()
    ).any()
