"""What the chapter on speed says of bytes, overhead, experts and caches, on input of our own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.kernels import roofline as r


@given(
    st.integers(1, 512),
    st.integers(1, 512),
    st.integers(1, 16),
    st.floats(1e8, 1e13),
    st.floats(1e9, 1e15),
)
def test_the_slower_of_two_is_the_time(rows, inputs, tokens, bandwidth, peak):
    """Counted weight by weight, as a machine would that fetches and multiplies at once."""
    machine = r.Machine("m", bandwidth, peak, peak)
    fetched = sum(2 for _ in range(rows)) * inputs + 4 * tokens * (rows + inputs)
    done = sum(2 * inputs for _ in range(rows)) * tokens
    took = r.seconds(machine, r.SIXTEEN, rows, inputs, tokens)
    assert took == pytest.approx(max(fetched / bandwidth, done / peak))


@given(st.floats(0, 1), st.floats(1, 100))
def test_amdahl(p, s):
    whole = 1 / ((1 - p) + p / s)
    assert whole <= s * (1 + 1e-12)
    if p < 1:
        assert whole <= 1 / (1 - p) * (1 + 1e-12)
    # A program of a thousand steps, a share p of which is made s times as fast.
    steps = 1000 * (1 - p) + 1000 * p / s
    assert 1000 / steps == pytest.approx(whole)


def test_int8_has_a_roof_of_its_own():
    """Both at a batch so large that arithmetic is the limit: the ratio of the peaks."""
    m = r.Machine("m", 20e9, 200e9, 700e9)
    assert r.speedup(m, r.SCHEMES[4], 4096, 4096, 4096) == pytest.approx(3.5)
    assert r.speedup(m, r.SCHEMES[3], 4096, 4096, 4096) == pytest.approx(1)


def test_written_out_first():
    """4.5 bits read, 4 bytes written and 4 read: more than twice the bytes of float32."""
    assert (4.5 / 8 + 4 + 4) / 4 == pytest.approx(2.14, abs=0.01)


@pytest.mark.parametrize(("experts", "active", "tokens"), [(8, 2, 3), (64, 6, 40), (256, 8, 128)])
def test_how_many_experts_some_tokens_use(experts, active, tokens):
    rng = np.random.default_rng(0)
    used = experts * (1 - (1 - active / experts) ** tokens)
    drawn = []
    for _ in range(300):
        chosen = {e for _ in range(tokens) for e in rng.choice(experts, active, replace=False)}
        drawn.append(len(chosen))
    # Within four standard errors.
    assert np.mean(drawn) == pytest.approx(used, abs=4 * np.std(drawn) / 300**0.5 + 1e-9)


def test_the_kv_cache_of_llama_3_1():
    """131,072 bytes a token in 16 bits: 2 · 32 layers · 8 heads · 128 · 2."""
    one = 2 * 32 * 8 * 128 * 2
    assert one == 131_072
    tokens = (16e9 - 2 * 8e9 * 4.5 / 8) / one
    assert (16e9 + tokens * one) / (4.5e9 + tokens * one) == pytest.approx(2)
