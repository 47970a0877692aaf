"""What the chapter on quantization-aware training says, on input of our own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qlab
from qlab.training import convert, fake_quantize, lsq_quantize, prepare
from qlab.viz.straight_through import RULES, walk


class Fake(torch.autograd.Function):
    """The chapter's."""

    @staticmethod
    def forward(ctx, w, scale, q):
        y = (w / scale).round()
        ctx.passes = (y >= -q) & (y <= q)
        return y.clamp(-q, q) * scale

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.passes, None, None


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), share=st.floats(0.3, 2.0))
def test_the_open_cell_is_fake_quantize(seed, bits, share):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 16, generator=g).requires_grad_()
    q = 2 ** (bits - 1) - 1
    scale = w.detach().abs().amax(1, keepdim=True) / q * share
    grad = torch.randn(4, 16, generator=g)
    ours, theirs = Fake.apply(w, scale, q), fake_quantize(w, f"int{bits}-channel", scale)
    assert torch.equal(ours, theirs)
    (a,), (b,) = torch.autograd.grad(ours, w, grad), torch.autograd.grad(theirs, w, grad)
    assert torch.equal(a, b)


def lsq_gradient(v, s, qn, qp):
    """The chapter's."""
    r = v / s
    inside = (r > -qn) & (r < qp)
    return torch.where(inside, r.round() - r, r.clamp(-qn, qp))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), s=st.floats(0.05, 2.0))
def test_the_open_gradient_of_the_step_size(seed, bits, s):
    g = torch.Generator().manual_seed(seed)
    v, grad = torch.randn(3, 8, generator=g), torch.randn(3, 8, generator=g)
    scale = torch.full((3, 1), s, requires_grad=True)
    q = 2 ** (bits - 1) - 1
    (theirs,) = torch.autograd.grad(lsq_quantize(v, scale, None, f"int{bits}-channel"), scale, grad)
    ours = (grad * lsq_gradient(v, scale.detach(), q, q)).sum(1, keepdim=True)
    # Sums of 8 float32 products of size up to q.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-6 * q)


@pytest.mark.parametrize("target", [0.62, -0.3, 1.1])
def test_a_weight_swings_around_the_border_and_the_mean_comes_near(target):
    hats = [h for _, h in walk(-1.1, target, 0.2, RULES[0], 0.5, 3)[-20:]]
    below = np.floor(target / 0.5) * 0.5
    assert set(hats) == {below, below + 0.5}
    assert abs(np.mean(hats) - target) < 0.1


def test_a_fake_weight_without_its_scale_is_another_weight():
    torch.manual_seed(3)
    trained = prepare(nn.Sequential(nn.Linear(64, 32)), "int3-channel", method="lsq", skip=())
    x = torch.randn(8, 64)
    right = convert(trained)(x)
    lost = qlab.quantize(trained[0].weight.detach(), "int3-channel").dequantize()
    wrong = x @ lost.T + trained[0].bias.detach()
    assert float((wrong - right).detach().norm() / right.norm()) > 0.05
    again = prepare(nn.Sequential(nn.Linear(64, 32)), "int3-channel", method="lsq", skip=())
    again.load_state_dict(trained.state_dict())
    assert torch.equal(convert(again)(x), right)
