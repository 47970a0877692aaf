"""Packing is a bijection, and its byte layout is the one that others use."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.core import pack, packed_length, unpack
from qlab.errors import QlabError


@settings(max_examples=200, deadline=None)
@given(data=st.data(), bits=st.integers(1, 32), high_first=st.booleans())
def test_round_trip(data, bits, high_first):
    n, rows = data.draw(st.integers(0, 41)), data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 2**32 - 1))
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, n)).astype(dtype)
    packed = pack(codes, bits, high_first)
    assert packed.shape == (rows, packed_length(n, bits))
    back = unpack(packed, bits, n, high_first)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, codes)
    theirs = torch.from_numpy(packed)
    np.testing.assert_array_equal(unpack(theirs, bits, n, high_first).numpy(), codes)
    same = pack(torch.from_numpy(codes), bits, high_first).numpy()
    np.testing.assert_array_equal(same, packed)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_whole_bytes_are_those_of_the_machine_word(dtype):
    """16 and 32 bits: low byte first is how little-endian machines keep a word in memory."""
    bits = 8 * np.dtype(dtype).itemsize
    codes = np.random.default_rng(0).integers(0, 2**bits, (3, 5)).astype(dtype)
    np.testing.assert_array_equal(pack(codes, bits), codes.astype(f"<u{bits // 8}").view(np.uint8))
    big = codes.astype(f">u{bits // 8}").view(np.uint8)
    np.testing.assert_array_equal(pack(codes, bits, high_first=True), big)


@pytest.mark.parametrize("bits", range(1, 9))
def test_low_first_is_the_little_endian_stream_of_numpy(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 24).astype(np.uint8)
    stream = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]
    expected = np.packbits(stream.reshape(-1), bitorder="little")
    np.testing.assert_array_equal(pack(codes, bits), expected)
    stream = np.unpackbits(codes[:, None], axis=1, bitorder="big")[:, 8 - bits :]
    expected = np.packbits(stream.reshape(-1), bitorder="big")
    np.testing.assert_array_equal(pack(codes, bits, high_first=True), expected)


def test_both_nibble_orders():
    codes = np.array([0x1, 0x2, 0x3], np.uint8)
    assert pack(codes, 4).tolist() == [0x21, 0x03]
    assert pack(codes, 4, high_first=True).tolist() == [0x12, 0x30]


def test_bytes_that_cannot_hold_the_codes_are_refused():
    with pytest.raises(QlabError, match="cut or the shape is wrong"):
        unpack(np.zeros((2, 3), np.uint8), 4, 7)
    with pytest.raises(QlabError, match="1 to 32"):
        pack(np.zeros(4, np.uint8), 33)
