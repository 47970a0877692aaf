"""LayerInputs against plain formulas."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from qlab.calibrate import LayerInputs
from qlab.errors import QlabError


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_any_cut_into_batches_gives_the_same_summary(lengths, seed):
    torch.manual_seed(seed)
    x = torch.randn(sum(lengths), 6)
    full = x + 0.1 * torch.randn_like(x)
    inputs = LayerInputs(6, needs=("hessian", "sample", "cross"))
    for piece, true in zip(x.split(lengths), full.split(lengths), strict=True):
        inputs.update(piece[None], true[None])
    wide = x.double()
    n = len(x)
    # Sums of at most 45 products in float32.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(inputs.hessian.double(), 2 / n * wide.T @ wide, **close)
    cross = 2 / n * (full.double() - wide).T @ wide
    torch.testing.assert_close(inputs.cross.double(), cross, **close)
    torch.testing.assert_close(inputs.mean_abs.double(), wide.abs().mean(0), **close)
    assert torch.equal(inputs.absmax, x.abs().amax(0))
    assert inputs.tokens == n
    # Fewer rows than it may keep: all of them, in some order.
    assert sorted(map(tuple, inputs.sample.tolist())) == sorted(map(tuple, x.tolist()))


def test_the_sample_is_bounded_and_fair():
    inputs = LayerInputs(1)
    for start in range(0, 8192, 512):
        inputs.update(torch.arange(start, start + 512.0)[:, None])
    kept = inputs.sample.flatten()
    assert len(kept) == 1024 == len(kept.unique())
    # The mean of 1024 of 0 ... 8191 without replacement has standard deviation 69.
    assert abs(float(kept.mean()) - 4095.5) < 5 * 69


def test_bad_input_is_named():
    inputs = LayerInputs(4, "mlp.up_proj")
    with pytest.raises(QlabError, match=r"mlp\.up_proj.*no tokens"):
        _ = inputs.hessian
    with pytest.raises(QlabError, match=r"4 inputs, got shape \(2, 5\)"):
        inputs.update(torch.zeros(2, 5))
    bad = torch.zeros(2, 4)
    bad[1, 2] = torch.nan
    with pytest.raises(QlabError, match=r"mlp\.up_proj.*1, 2"):
        inputs.update(bad)
    assert inputs.tokens == 0
    with pytest.raises(QlabError, match="unquantized"):
        LayerInputs(4, needs=("cross",)).update(torch.zeros(2, 4))
    with pytest.raises(QlabError, match="hesian"):
        LayerInputs(4, needs=("hesian",))
    only = LayerInputs(4, needs=())
    only.update(torch.ones(2, 4))
    with pytest.raises(QlabError, match="'hessian' was not gathered"):
        _ = only.hessian
    assert only.cross is None
