"""HQQ against the library hqq on the CPU: codes, scale, zero point and error, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hqq.core import optimize
from hqq.core.quantize import Quantizer

from qlab.core import Scheme
from qlab.methods.hqq import HqqOptions, half_quadratic, hqq, slower

BITS = (8, 6, 5, 4, 3, 2, 1)


def inputs():
    """name -> float32 (rows, 256): ordinary, then hard."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(32, 256, generator=g) * 0.05
    outlier = normal.clone()
    outlier[::2, 7] = 50.0
    gaps = normal.clone()
    gaps[1:3] = 0
    return {
        "normal": normal,
        "outlier": outlier,
        "rows of zeros": gaps,
        "zeros": torch.zeros(4, 256),
        "constant rows": torch.linspace(-3, 3, 8)[:, None].expand(8, 256).contiguous(),
        "one sided": normal.abs() + 1,
        "wide, so that errors are shrunk": normal * 60,
        "heavy tails": torch.distributions.StudentT(2.0).sample((8, 256)),
        "narrow": normal * 1e-4,
        "denormal": normal * 1e-39,
        "huge": normal * 1e30,
        "few": normal[:1, :64].contiguous(),
    }


def theirs(w, bits, group, solver, **how):
    """codes, scale and zero as hqq has them before it packs, and ŵ."""
    before = Quantizer.optimize_weights
    Quantizer.optimize_weights = solver
    try:
        codes, meta = Quantizer.quantize(
            w, bits, group_size=group, axis=1, bitpack=False, device="cpu", **how
        )
    finally:
        Quantizer.optimize_weights = before
    restored = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    return codes, meta["scale"], meta["zero"], restored


@pytest.mark.oracle("method hqq", "hqq", "equal codes, scales and zero points")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_default_solver(bits, group, rounded):
    o = HqqOptions(round_zero=rounded)
    for what, w in inputs().items():
        codes, scale, zero, restored = theirs(
            w, bits, group, optimize.optimize_weights_proximal, round_zero=rounded
        )
        found = half_quadratic(w.reshape(-1, group), bits, o)
        assert torch.equal(found.scale, scale), what
        assert torch.equal(found.zero, zero), what
        assert torch.equal(found.codes.float(), codes), what
        q = hqq(w, None, Scheme.parse(f"uint{bits}-g{group}"), o)
        assert torch.equal(q.dequantize(), restored), what
        assert torch.equal((q.dequantize() - w).abs().mean(), (restored - w).abs().mean()), what


@pytest.mark.oracle("method hqq", "hqq", "equal codes, scales and zero points")
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_slower_solver_whose_beta_grows(bits):
    for what in ("normal", "outlier", "wide, so that errors are shrunk", "constant rows"):
        w = inputs()[what]
        codes, _, zero, restored = theirs(w, bits, 64, optimize.optimize_weights_proximal_slow)
        found = half_quadratic(w.reshape(-1, 64), bits, slower())
        assert torch.equal(found.zero, zero) and torch.equal(found.codes.float(), codes), what
        q = hqq(w, None, Scheme.parse(f"uint{bits}-g64"), slower())
        assert torch.equal(q.dequantize(), restored), what


def test_their_default_does_not_use_kappa():
    """The parameter is listed, 1.01, and has no effect: twice as large gives the same."""
    w = inputs()["wide, so that errors are shrunk"]
    low, high = w.reshape(-1, 64).aminmax(dim=1, keepdim=True)
    inverse = 7 / (high - low)
    zeros = []
    for kappa in (1.01, 2.0):
        parameters = {"lp_norm": 0.7, "beta": 10.0, "kappa": kappa, "iters": 20}
        _, _, zero = optimize.optimize_weights_proximal(
            w.reshape(-1, 64), inverse, -low * inverse, [0, 7], axis=1, opt_params=parameters
        )
        zeros.append(zero)
    assert torch.equal(*zeros)


def test_the_shrinkage_is_theirs():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    from qlab.methods.hqq import shrink

    for p in (0.3, 0.7, 1.0):
        for beta in (0.5, 10.0, 1e3):
            assert torch.equal(shrink(x, beta, p), optimize.shrink_lp_op(x, beta, p))


def test_a_row_is_a_group():
    w = inputs()["normal"]
    codes, meta = Quantizer.quantize(w, 4, group_size=None, axis=1, bitpack=False, device="cpu")
    q = hqq(w, None, Scheme.parse("uint4-channel"))
    assert torch.equal(q.codes.float(), codes) and torch.equal(q.zero_point, meta["zero"])


def test_half_precision_weights():
    w = inputs()["normal"].half()
    restored = theirs(w, 4, 64, optimize.optimize_weights_proximal)[3]
    q = hqq(w, None, Scheme.parse("uint4-g64"))
    assert torch.equal(q.dequantize(), restored.half())
