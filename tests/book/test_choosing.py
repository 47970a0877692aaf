"""What the chapter on choosing claims, on input of our own."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.study.choosing import Needs, Option, obstacles, speed_ceiling, weight_bytes
from qlab.viz.choosing import DEVICES, SIZES, TASKS

losses = st.lists(st.tuples(st.floats(1.5, 16), st.floats(0, 1)), min_size=1, max_size=20)


def test_devices_are_as_published():
    published = {  # GB/s, from the makers' pages
        "single-board": 17.1,
        "phone": 68.3,
        "laptop": 89.6,
        "server": 460.8,
        "RTX 4090": 1008,
        "A100": 2039,
        "H100": 3350,
    }
    for word, there in published.items():
        device = next(d for d in DEVICES if d.name.startswith(word))
        assert device.bandwidth / 1e9 == pytest.approx(there, rel=2e-3)


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 16), st.integers(1, 64))
def test_fewer_bits_gain_less_where_there_are_caches(bits, texts):
    for size in SIZES:
        one = Needs(size, DEVICES[0], replace(TASKS[0], texts=texts))
        gain = speed_ceiling(bits, one) / speed_ceiling(16, one)
        assert 1 <= gain * (1 + 1e-9) and gain <= 16 / bits * (1 + 1e-9)
        more = replace(one, task=replace(one.task, texts=texts + 1))
        assert speed_ceiling(bits, more) / speed_ceiling(16, more) <= gain * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(losses, st.lists(st.floats(1e9, 1e11), min_size=2, max_size=10), st.floats(0, 0.2))
def test_the_thrifty_rule_rises_by_no_more_than_was_granted(pairs, memories, more):
    """The exercise's rule."""
    options = [Option(str(i), b, x, 1.0, DEVICES[2].engines) for i, (b, x) in enumerate(pairs)]
    size = next(s for s in SIZES if "7B" in s.name)
    found = []
    for memory in sorted(memories):
        needs = Needs(size, replace(DEVICES[2], memory=memory), TASKS[0])
        fit = [o for o in options if not obstacles(o, needs)]
        if fit:
            least = min(o.loss for o in fit)
            pick = min((o for o in fit if o.loss <= least + more), key=lambda o: (o.bits, o.loss))
            found.append(pick.loss)
    assert all(
        b <= a + more + 1e-12 for i, a in enumerate(found) for b in found[i + 1 :]
    )  # also over several steps


def test_the_published_sizes_of_70b():
    """llama.cpp's quantize README: Llama 3.1 70B in Q4_K_M takes 43.1 GB, at 4.89 bits a weight."""
    seventy = next(s for s in SIZES if "70B" in s.name)
    assert weight_bytes(4.8944, seventy) / 1e9 == pytest.approx(43.1, rel=0.01)
    assert math.isclose(weight_bytes(16, seventy), 2 * seventy.weights)
