"""The roofline: laws of its arithmetic, published numbers, and the bytes of packed weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.kernels import roofline as r
from qlab.kernels.cpu import measure
from qlab.kernels.cpu.pack import pack

sizes = st.integers(1, 1 << 16)
machines = st.builds(
    r.Machine,
    st.just("m"),
    st.floats(1e8, 1e13),
    st.floats(1e9, 1e16),
    st.floats(1e9, 1e16),
    st.sampled_from([1, 2, 4]),  # else any integer is drawn now and then, below 0 too
)


@given(machines, st.sampled_from(r.SCHEMES), sizes, sizes, st.integers(1, 4096))
def test_neither_limit_is_ever_passed(machine, scheme, rows, inputs, tokens):
    took = r.seconds(machine, scheme, rows, inputs, tokens)
    moved, done = (
        r.bytes_moved(scheme, rows, inputs, tokens, machine.number),
        r.operations(rows, inputs, tokens),
    )
    assert moved / took <= machine.bandwidth * (1 + 1e-12)
    assert done / took <= r.peak(machine, scheme) * (1 + 1e-12)
    # And one of the two is reached.
    assert took == max(moved / machine.bandwidth, done / r.peak(machine, scheme))


@given(machines, st.sampled_from(r.SCHEMES[1:]), sizes, sizes)
def test_the_last_batch_that_gains_is_the_last(machine, scheme, rows, inputs):
    # The integer roof may be the lower one here: then one vector can gain less than many.
    if scheme.integers and machine.integers < machine.floats:
        return
    last = r.last_gain(machine, scheme, rows, inputs)
    if last is None:
        assert r.speedup(machine, scheme, rows, inputs, r.MOST) >= 1.1
    else:
        assert r.speedup(machine, scheme, rows, inputs, last + 1) < 1.1
        assert last == 0 or r.speedup(machine, scheme, rows, inputs, last) >= 1.1


@given(machines, sizes, sizes, st.integers(1, 4096))
def test_fewer_bits_with_the_same_arithmetic_gain_at_most_the_ratio_of_the_bits(
    machine, rows, inputs, tokens
):
    for scheme in r.SCHEMES:
        if not scheme.integers and not scheme.extra:
            gain = r.speedup(machine, scheme, rows, inputs, tokens)
            assert 1 - 1e-12 <= gain <= 16 / scheme.bits * (1 + 1e-12)


def test_by_hand():
    """4096 x 4096, one vector: 2 operations for 2 bytes, and 8 for 9 with Q4_0's 4.5 bits."""
    big = 4096
    assert r.operations(big, big) == 33_554_432
    assert r.bytes_moved(r.SIXTEEN, big, big) == 33_554_432 + 8192 * 4
    assert r.bytes_moved(r.SCHEMES[3], big, big, number=0) == big * big * 9 / 16
    # Writing 16 bits out and reading them again moves more bytes than reading 16 bits.
    assert r.speedup(r.LAPTOP, r.SCHEMES[5], big, big) < 1


def test_published_machines():
    """Where 16 bits meet the roof, in vectors: peak / bandwidth, known as 295 for H100."""
    assert r.H100.floats / r.H100.bandwidth == pytest.approx(295, abs=1)
    assert r.LAPTOP.bandwidth == pytest.approx(89.6e9)
    assert r.LAPTOP.floats == pytest.approx(844.8e9)
    big = 1 << 20  # so large that the vectors' bytes vanish
    # Weights alone stop gaining a tenth where 16 bits take 1.1 times as long to read.
    last = r.last_gain(r.H100, r.SCHEMES[3], big, big)
    assert last == pytest.approx(r.H100.floats / r.H100.bandwidth / 1.1, rel=0.01)
    assert r.last_gain(r.H100, r.SCHEMES[4], big, big) is None  # int8 has twice the roof


@pytest.mark.parametrize(
    ("scheme", "bits"), [("int4-g32-sfp16", 5.0), ("int8-channel", 8.0), ("nf4-g64", 4.5)]
)
def test_bits_of_packed_weights_are_those_that_are_read(scheme, bits):
    """Kernels of groups keep float32 scales: 4 + 32/32, 8 + 32/1024, 4 + 32/64."""
    packed = pack(qlab.quantize(np.ones((64, 1024), np.float32), scheme))
    assert packed.bits_per_weight == pytest.approx(bits, rel=0.01)
    moved = r.bytes_moved(r.Scheme("", packed.bits_per_weight), 64, 1024, 1)
    assert moved == packed.nbytes + 4 * (64 + 1024)


def test_what_is_measured_is_a_speed():
    """Positive, finite, and below what any processor does: times depend on the machine."""
    for speed, most in (
        (measure.read_bandwidth(1, seconds=0.01), 1e13),
        (measure.integer_peak(seconds=0.01), 1e14),
        (measure.float_peak(seconds=0.01), 1e13),
    ):
        assert 1e6 < speed < most


def test_the_loops_compute_what_they_say():
    """``_read`` adds up all bytes; the sums of ``_dot`` count all its products."""
    data, sums = np.arange(512, dtype=np.uint8), np.empty(64, np.uint8)
    measure._read(data, sums, 1)
    assert sums.view(np.int32).sum(dtype=np.int32) == data.view(np.int32).sum(dtype=np.int32)
    measure._dot(np.ones(128, np.uint8), sums, 10, 1)
    assert sums.view(np.int32).sum() * 2 == 10 * measure.DOT_OPERATIONS
    measure._multiply_add(np.full(16, 1, np.float32).view(np.uint8), sums, 10, 1)
    assert sums.view(np.float32).sum() * 2 == 10 * measure.FMA_OPERATIONS


def test_products_by_turns_are_the_product():
    w = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    for rows in (x, x[:1]):
        runs = measure.product_runs(pack(w), rows, 3)
        assert len(runs) == 3
        for run in runs:
            np.testing.assert_allclose(run(), rows @ w.T, rtol=1e-5, atol=1e-5)
    assert measure.fastest(runs, 0.01) > 0
