"""What the chapter on rotations says, on input of our own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.methods.hadamard import hadamard, random_rotation
from qlab.viz.rotations import far_tokens

seeds = st.integers(0, 2**32 - 1)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


def sylvester(n):
    """The chapter's."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)]) / math.sqrt(2)
    return h


@pytest.mark.parametrize("n", [1, 2, 8, 64, 256, 1024])
def test_the_doubling_is_qlabs(n):
    torch.testing.assert_close(sylvester(n), hadamard(n))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.sampled_from([8, 10, 12, 64]), outputs=st.integers(1, 9))
def test_norms_and_readers_do_not_see_a_rotation(seed, n, outputs):
    x, w, q = draw(seed, 5, n) * 10, draw(seed + 1, outputs, n), random_rotation(n, seed % 1000)
    torch.testing.assert_close(norm(x @ q), norm(x) @ q)
    torch.testing.assert_close((x @ q) @ (w @ q).T, x @ w.T)  # reads
    h, down = draw(seed + 2, 5, 7), draw(seed + 3, n, 7)
    torch.testing.assert_close(h @ (q.T @ down).T, (h @ down.T) @ q)  # writes


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=st.sampled_from([8, 12, 64]))
def test_layer_norm_is_rms_norm_once_the_mean_is_gone(seed, n):
    x, h = draw(seed, 4, n) + 3, hadamard(n)
    m = torch.eye(n, dtype=torch.float64) - 1 / n

    def layer_norm(x):
        return norm(x - x.mean(-1, keepdim=True))

    torch.testing.assert_close(layer_norm(x), norm(x @ m))
    torch.testing.assert_close(norm(x @ m @ h), layer_norm(x) @ h)


@pytest.mark.parametrize(("n", "size"), [(256, 16.0), (1024, 16.0), (768, 8.0)])
def test_a_hadamard_matrix_saves_the_other_features(n, size):
    x, h = far_tokens(size, n), hadamard(n).float()
    others = torch.arange(n) != 37
    plain = qlab.quantize(x, "int4-token").dequantize()
    turned = qlab.quantize(x @ h, "int4-token").dequantize() @ h.T
    assert not plain[:, others].any() or size < 16
    assert qlab.sqnr(x[:, others], turned[:, others]) > 10
    assert qlab.sqnr(x[:, others], turned[:, others]) > (
        qlab.sqnr(x[:, others], plain[:, others]) + 6
    )


def test_there_is_an_outlier_too_far_for_it():
    """The error is then larger than that of setting all other features to zero."""
    x, h = far_tokens(256.0), hadamard(256).float()
    error = qlab.quantize(x @ h, "int4-token").dequantize() - x @ h
    assert error.square().mean() > 1
    assert (qlab.quantize(x, "int4-token").dequantize() - x).square().mean() == pytest.approx(
        1, rel=0.05
    )


def test_hadamard_spreads_one_value_more_evenly_than_a_rotation_drawn_at_random():
    u = torch.linalg.qr(draw(0, 256, 256))[0]
    assert (u.abs().amax(1) > 2 * hadamard(256).abs().max()).all()
