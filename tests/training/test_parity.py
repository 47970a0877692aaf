"""Fake quantization against torch's operators and torchao's QAT."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchao.quantization import qat

from qlab.training import convert, fake_quantize, lsq_quantize, prepare

QMIN, QMAX = -8, 7


def adversarial(seed=0):
    """(6, 40): normal rows, zeros, a constant, an outlier, denormals, large values, ties."""
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    x[1] = 0
    x[2] = -0.3
    x[3, 7] = 1e4
    x[4] *= 1e-40
    x[5, :20] *= 1e6
    return x


def ties(x, scale):
    """Elements whose x / scale is halfway to within float32's precision.

    torch multiplies by 1 / scale where qlab divides; the two differ by an ulp, which decides
    between two codes only there.
    """
    y = (x / scale).double()
    return ((y - y.floor() - 0.5).abs() < 1e-5 * y.abs().clamp_min(1)) & (y.abs() < 20)


@pytest.mark.oracle("training ste", "torch", "equal values and gradients but at ties")
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), s=st.floats(0.01, 2.0), z=st.integers(QMIN, QMAX))
def test_fake_quantize_per_tensor_affine(seed, s, z):
    x = adversarial(seed)
    s = torch.tensor(s).float()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    a = fake_quantize(ours, "int4-asym-tensor", s.reshape(1, 1), torch.tensor([[z]]).int())
    b = torch.fake_quantize_per_tensor_affine(theirs, s, torch.tensor(z).int(), QMIN, QMAX)
    a.backward(g)
    b.backward(g)
    clear = ~ties(x, s)
    # A scale such as 0.6 puts a sixth of the numbers on a tie.
    assert clear.float().mean() > 0.5
    assert torch.equal(a[clear], b[clear])
    assert torch.equal(ours.grad[clear], theirs.grad[clear])


def test_equal_bits_where_the_inverse_is_exact():
    x, s = adversarial(1), torch.tensor(0.25)
    x[0] = torch.arange(-20, 20) * 0.125  # every second one is a tie
    a = fake_quantize(x, "int4-asym-tensor", s.reshape(1, 1), torch.tensor([[3]]).int())
    b = torch.fake_quantize_per_tensor_affine(x, s, torch.tensor(3).int(), QMIN, QMAX)
    assert torch.equal(a, b)


@pytest.mark.oracle("training ste", "torch", "equal values and gradients but at ties")
@pytest.mark.parametrize("axis", [0, 1])
def test_fake_quantize_per_channel_affine(axis):
    x = adversarial(2)
    n = x.shape[axis]
    g = torch.Generator().manual_seed(4)
    s = torch.rand(n, generator=g) + 0.05
    z = torch.randint(QMIN, QMAX + 1, (n,), generator=g).int()
    shape = (n, 1) if axis == 0 else (1, n)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a = fake_quantize(ours, f"int4-asym-channel{axis}", s.reshape(shape), z.reshape(shape))
    b = torch.fake_quantize_per_channel_affine(theirs, s, z, axis, QMIN, QMAX)
    a.sum().backward()
    b.sum().backward()
    clear = ~ties(x, s.reshape(shape))
    assert torch.equal(a[clear], b[clear]) and torch.equal(ours.grad[clear], theirs.grad[clear])


def lead(kind, x, s, z, g, grad_factor):
    """Values and gradients of torch's learnable operators."""
    x, s, z = (t.clone().requires_grad_() for t in (x, s, z))
    if kind == "tensor":
        y = torch._fake_quantize_learnable_per_tensor_affine(x, s, z, QMIN, QMAX, grad_factor)
    else:
        y = torch._fake_quantize_learnable_per_channel_affine(x, s, z, 0, QMIN, QMAX, grad_factor)
    y.backward(g)
    return y, x.grad, s.grad, z.grad


@pytest.mark.oracle("training lsq", "torch", "equal values and gradients, to the order of sums")
@pytest.mark.parametrize("kind", ["tensor", "channel"])
@pytest.mark.parametrize("seed", range(4))
def test_learnable_operators(kind, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 40, generator=g)
    n = 1 if kind == "tensor" else 6
    s = torch.rand(n, generator=g) * 0.3 + 0.05
    # The backward pass of torch's per-tensor operator takes int(z + 0.5), which is z + 1 for
    # negative integers (torch 2.13; its forward pass rounds): compared from 0 on.
    low = 0 if kind == "tensor" else QMIN
    z = torch.randint(low, QMAX + 1, (n,), generator=g).float()
    grad = torch.randn(x.shape, generator=g)
    grad[ties(x, s.reshape(n, 1))] = 0  # says nothing where the codes may differ
    y, of_x, of_s, of_z = lead(kind, x, s, z, grad, 0.3)
    ours = [t.clone().requires_grad_() for t in (x, s.reshape(n, 1), z.reshape(n, 1))]
    a = lsq_quantize(*ours, f"int4-asym-{kind}", grad_scale=0.3, by_code=True)
    a.backward(grad)
    clear = ~ties(x, s.reshape(n, 1))
    assert torch.equal(a[clear], y[clear])
    assert torch.equal(ours[0].grad, of_x)
    off = lsq_quantize(x, s.reshape(n, 1), z.reshape(n, 1) + 0.2, f"int4-asym-{kind}")
    assert torch.equal(off, a)  # a zero point is rounded
    # Sums of 40 or 240 float32 products in another order; x / s is their x · (1 / s).
    torch.testing.assert_close(ours[1].grad.flatten(), of_s.flatten(), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(ours[2].grad.flatten(), of_z.flatten(), rtol=1e-5, atol=1e-5)


def test_the_paper_and_torch_differ_in_the_last_half_step_alone():
    x = torch.linspace(-12, 12, 4801).reshape(1, -1) + 1e-3
    grads = []
    for by_code in (False, True):
        s, v = torch.ones(1, 1, requires_grad=True), x.clone().requires_grad_()
        lsq_quantize(v, s, None, "int4-full-tensor", by_code=by_code).sum().backward()
        grads.append(v.grad)
    where = x[grads[0] != grads[1]]
    assert bool((((where > 7) & (where <= 7.5)) | ((where < -8) & (where >= -8.5))).all())
    assert where.numel() > 100


def power_of_two_groups(w, size, unit, low, high):
    """The rows with the two ends of each group moved so that its scale is ``unit`` exactly.

    torchao multiplies by 1 / scale where qlab divides. With amax / 7.5 the largest weight of each
    group is a tie, so for other scales a code in a group may go either way.
    """
    w = w.clamp(low * unit * 0.99, high * unit * 0.99).reshape(w.shape[0], -1, size).clone()
    w[..., 0], w[..., -1] = low * unit, high * unit
    return w.reshape(w.shape[0], -1)


@pytest.mark.oracle(
    "training ste", "torchao", "equal bits of its 8da4w training where scales are powers of two"
)
def test_torchao_8da4w():
    """prepare, the forward pass and gradient of training, and convert, as torchao does them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32)).eval()
    for i in (0, 2):
        net[i].weight.data = power_of_two_groups(net[i].weight.data, 32, 2.0**-6, -7.5, 7.5)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
    x = power_of_two_groups(x, 64, 2.0**-5, -128, 127)
    x[1] = 0
    theirs = qat.Int8DynActInt4WeightQATQuantizer(groupsize=32).prepare(copy.deepcopy(net))
    # torchao: symmetric scale amax / 7.5 with code -8 in use, inputs asymmetric a token.
    ours = prepare(net, "int4-full-g32", "int8-asym-token", skip=())
    for mine, other in zip((ours[0], ours[2]), (theirs[0], theirs[2]), strict=True):
        assert torch.equal(mine.fake_weight(), other.weight_fake_quantizer(other.weight))
    assert torch.equal(ours[0].inputs(x), theirs[0].activation_fake_quantizer(x))
    assert torch.equal(ours[0](x), theirs[0](x))
    # The second layer's input has any scale, so a code of it may differ by one at a tie.
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0.02)
    ours[0](x).sum().backward()
    theirs[0](x).sum().backward()
    assert torch.equal(ours[0].bias.grad, theirs[0].bias.grad)
    done = qat.Int8DynActInt4WeightQATQuantizer(groupsize=32).convert(theirs)
    small = convert(ours)
    for i in (0, 2):
        q = small[i].qweight
        assert torch.equal(q.codes, done[i].weight) and torch.equal(q.scale, done[i].scales)
    # Ours adds products of integer codes, theirs of dequantized numbers: rounding of 64 products.
    torch.testing.assert_close(small[0](x), done[0](x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_torchao_weights(seed):
    config = qat.IntxFakeQuantizeConfig(torch.int4, group_size=8, is_symmetric=True)
    x = adversarial(seed)
    a, b = fake_quantize(x, "int4-full-g8", clip=False), qat.IntxFakeQuantizer(config)(x)
    scale = x.reshape(6, 5, 8).abs().amax(2).clamp_min(1e-37) / 7.5
    clear = ~ties(x, scale.repeat_interleave(8, 1))
    assert clear.float().mean() > 0.6  # of 8, the largest is a tie; constant rows are nothing else
    assert torch.equal(a[clear], b[clear])
    # At a tie both are half a step away.
    torch.testing.assert_close((a - x).abs()[~clear], (b - x).abs()[~clear], rtol=1e-4, atol=1e-37)
