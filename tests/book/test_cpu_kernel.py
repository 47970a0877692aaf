"""What the chapter on a CPU kernel says of sums, orders and instructions, on input of our own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.kernels import reference

GROUP = 128


def quantize_inputs(x):
    """The chapter's: codes, scales and sums of groups of 128."""
    blocks = x.reshape(-1, GROUP)
    t = np.abs(blocks).max(axis=1) / np.float32(127)
    u = np.rint(blocks / t[:, None]).astype(np.int8)
    return u.reshape(-1), t.astype(np.float32), u.sum(axis=1, dtype=np.int32)


def repack(codes):
    """The chapter's, for any number of inputs."""
    n = codes.shape[1] // 4
    tiles = codes.reshape(-1, 16, n, 4).transpose(0, 2, 1, 3).reshape(-1, n, 64)
    return tiles[:, 0::2] | tiles[:, 1::2] << 4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tiles=st.integers(1, 3), groups=st.integers(1, 3))
def test_the_offset_leaves_the_loop(seed, tiles, groups):
    """Equation of step 2, with the integers of the repacked bytes: exact."""
    rng = np.random.default_rng(seed)
    rows, columns = 16 * tiles, GROUP * groups
    codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
    u, _, u_sum = quantize_inputs(rng.normal(size=columns).astype(np.float32))
    loads = repack(codes)
    assert loads.nbytes == codes.size // 2
    total = np.tile(-8 * u_sum.astype(np.int64)[None, :, None], (tiles, 1, 16))
    for i in range(loads.shape[1]):  # each load: two steps of four inputs
        for half, part in enumerate((loads[:, i] & 15, loads[:, i] >> 4)):
            four = u[8 * i + 4 * half : 8 * i + 4 * half + 4].astype(np.int64)
            total[:, i // 16] += part.reshape(tiles, 16, 4).astype(np.int64) @ four
    products = (codes.astype(np.int64) - 8) * u
    wanted = products.reshape(tiles, 16, groups, GROUP).sum(axis=3).transpose(0, 2, 1)
    np.testing.assert_array_equal(total, wanted)


def test_a_load_of_the_repacked_order_is_that_of_the_library():
    from qlab.kernels.cpu.kinds import HEADER
    from qlab.kernels.cpu.pack import pack

    w = np.random.default_rng(0).normal(size=(32, 256)).astype(np.float32)
    q = qlab.quantize(w, "int4-g128")
    loads = repack((q.codes.astype(np.int16) + 8).astype(np.uint8))
    tiles = pack(q).buffer[HEADER:].reshape(2, -1)[:, : loads[0].size]
    np.testing.assert_array_equal(tiles, loads.reshape(2, -1))


@pytest.mark.parametrize("scheme", ["int4-g128", "int4-asym-g128"])
def test_int8_inputs_cost_little_beside_four_bits(scheme):
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(256, 512)).astype(np.float32), rng.normal(size=512).astype(np.float32)
    q = qlab.quantize(w, scheme)
    u, t, _ = quantize_inputs(x)
    seen = (u.reshape(-1, GROUP) * t[:, None].astype(np.float64)).reshape(-1)
    exact = reference.multiply(q, x)
    of_inputs = np.linalg.norm(reference.multiply(q, seen) - exact)
    of_weights = np.linalg.norm(exact - reference.multiply(w, x))
    assert 0 < of_inputs < of_weights / 5
    # The law: half a step of 1/127 of the largest of 128 normal numbers, about 2.6; s / sqrt(12).
    assert of_inputs / np.linalg.norm(exact) == pytest.approx(2.6 / 127 / 12**0.5, rel=0.3)


def test_when_sixteen_and_thirty_two_bits_are_enough():
    assert 2 * 127 * 128 <= 32767 < 2 * 128 * 128  # vpmaddubsw: codes up to 127
    assert 65793 * 255 * 128 < 2**31 <= 65794 * 255 * 128


def test_a_sum_of_floats_has_an_order():
    a, b, c = np.float32(1e8), np.float32(-1e8), np.float32(1)
    assert (a + b) + c != a + (b + c)
