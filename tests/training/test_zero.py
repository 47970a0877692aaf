"""ZeRO's arithmetic: the paper's figures, laws, bad input."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.training.zero import FLOAT32, MIXED, OFFLOADS, zero_memory


def test_the_figures_of_the_paper():
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters on 64 devices."""
    for stage, gb in ((0, 120), (1, 31.4), (2, 16.6), (3, 1.9)):
        assert zero_memory(7.5e9, 64, stage).device / 1e9 == pytest.approx(gb, abs=0.05)


@given(
    parameters=st.integers(0, 10**12),
    workers=st.integers(1, 4096),
    precision=st.sampled_from([MIXED, FLOAT32]),
)
def test_laws(parameters, workers, precision):
    held = [zero_memory(parameters, workers, stage, precision=precision) for stage in range(4)]
    for a, b in pairwise(held):
        assert b.device <= a.device * (1 + 1e-12)  # a stage never takes more
    # All workers of stage 3 hold one copy together, and one worker alone is no stage.
    assert workers * held[3].device == pytest.approx(16 * parameters)
    assert zero_memory(parameters, 1, 3, precision=precision).device == pytest.approx(
        16 * parameters
    )
    for stage in (1, 2, 3):  # what leaves the device is on the host
        for offload in OFFLOADS[: 3 if stage == 3 else 2]:
            moved = zero_memory(parameters, workers, stage, offload, precision)
            assert moved.device + moved.host == pytest.approx(held[stage].device)


def test_offload_leaves_the_weights_alone_on_the_device():
    """Section 3 of arXiv 2101.06840: 2 M bytes stay, and 14 M are on the host."""
    held = zero_memory(1e9, 1, 2, "optimizer")
    assert (held.device, held.host) == (2e9, 14e9)
    # In stage 1 each device still has all gradients.
    assert zero_memory(1e9, 4, 1, "optimizer").gradients == 2e9


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((1, 1, 4), "stage 4"),
        ((1, 0, 1), "count both from 1"),
        ((1, 2, 1, "disk"), "unknown offload 'disk'"),
        ((1, 2, 0, "optimizer"), "offload needs a stage"),
        ((1, 2, 2, "optimizer and weights"), "their offload is stage 3"),
    ],
)
def test_bad_input(arguments, says):
    with pytest.raises(QlabError, match=says):
        zero_memory(*arguments)
