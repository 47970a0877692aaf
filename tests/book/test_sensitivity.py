"""What the chapters on sensitivity and on learned rounding say, on input of our own."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.calibrate.inputs import LayerInputs
from qlab.core import Scheme
from qlab.evaluate.allocation import Choice, allocate, frontier
from qlab.methods.autoround import AutoRoundOptions, learn

seeds = st.integers(0, 2**32 - 1)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_highs(choices, budget):
    """The chapter's integer program."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    flat = [(i, c) for i, options in enumerate(choices.values()) for c in options]
    one_each = np.array([[i == n for i, _ in flat] for n in range(len(choices))], float)
    size = np.array([[c.nbytes for _, c in flat]], float)
    found = milp(
        [c.cost for _, c in flat],
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size, -np.inf, budget)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    return found.fun


@settings(max_examples=15, deadline=None)
@given(seed=seeds, share=st.floats(0.05, 0.95))
def test_highs_finds_no_cheaper_allocation(seed, share):
    random = np.random.default_rng(seed)
    choices = {
        f"layer{i}": [
            Choice(f"int{b}", int(b * size), float(weight * 4.0**-b * random.uniform(0.5, 2)))
            for b in (2, 3, 4, 5)
        ]
        for i, (size, weight) in enumerate(
            zip(random.choice([8, 24, 31], 12), random.uniform(0.1, 10, 12), strict=True)
        )
    }
    low, high = (sum(c[i].nbytes for c in choices.values()) for i in (0, -1))
    budget = int(low + share * (high - low))
    assert allocate(choices, budget).cost == pytest.approx(by_highs(choices, budget), rel=1e-5)


def test_where_each_bit_gains_less_greedy_lies_on_the_frontier():
    """Layers of one size with convex costs: the greedy rule of the exercise is exact."""
    random = np.random.default_rng(3)
    choices = {
        f"layer{i}": [Choice(f"int{b}", 10 * b, float(c * 4.0**-b)) for b in (2, 3, 4)]
        for i, c in enumerate(random.uniform(0.1, 10, 10))
    }
    gains = sorted(
        (a.cost - b.cost for options in choices.values() for a, b in itertools.pairwise(options)),
        reverse=True,
    )
    cost = sum(options[0].cost for options in choices.values())
    for point, gain in zip(frontier(choices), [0.0, *gains], strict=True):
        cost -= gain
        assert point.cost == pytest.approx(cost)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_the_kl_of_a_small_change_is_half_its_fisher_form(seed):
    """KL(p ‖ p + dp) is dᵀ F d / 2 for a small change d of the logits: why Fisher is a guess."""
    logits, change = draw(seed, 30).double(), draw(seed + 1, 30).double() * 1e-3
    p = torch.softmax(logits, 0)
    kl = float((p * (torch.log_softmax(logits, 0) - torch.log_softmax(logits + change, 0))).sum())
    fisher = torch.diag(p) - torch.outer(p, p)
    assert kl == pytest.approx(float(change @ fisher @ change) / 2, rel=0.02)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_with_alike_and_independent_inputs_the_nearest_codes_are_the_best(seed):
    """The exercise: H a multiple of the identity leaves nothing to gain by V."""
    w = draw(seed, 6, 16)
    inputs = LayerInputs.of(torch.eye(16) * 4)
    _, losses = learn(w, inputs, "int3-g16", AutoRoundOptions(steps=20, ranges=False))
    assert min(losses) >= losses[0] * (1 - 1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_descent_lies_between_the_best_rounding_and_the_nearest(seed):
    """Eight weights, all 256 roundings tried."""
    n = 8
    w = draw(seed, 4, n)
    x = draw(seed + 1, 40, n) + 2 * draw(seed + 2, 40, 1)
    inputs = LayerInputs.of(x)
    scale = w.abs().amax(1, keepdim=True) / 3
    ups = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)))
    codes = ((w / scale).floor()[:, None] + ups).clamp(-3, 3)
    delta = codes * scale[:, None] - w[:, None]
    best = float(((delta @ inputs.hessian) * delta).sum(-1).min(1).values.sum())
    _, losses = learn(w, inputs, "int3-channel", AutoRoundOptions(steps=40, ranges=False))
    assert best * (1 - 1e-4) <= min(losses) <= losses[0]
    assert losses[0] == pytest.approx(
        float(
            ((d := qlab.quantize(w, "int3-channel").dequantize() - w) @ inputs.hessian * d).sum()
        ),
        rel=1e-4,
    )


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_the_twenty_lines_of_the_chapter_are_the_method(seed):
    w = draw(seed, 8, 32)
    x = draw(seed + 1, 64, 32) + 2 * draw(seed + 2, 64, 1)
    hessian, steps, q = LayerInputs.of(x).hessian, 12, 3
    s = (w.reshape(8, -1, 16).abs().amax(2) / q).repeat_interleave(16, 1)
    v, losses = torch.zeros_like(w), []
    for t in range(steps):
        y = w / s + v
        delta = y.round().clamp(-q, q) * s - w
        slope = delta @ hessian
        losses.append(float((slope * delta).sum()))
        inside = (y.round() >= -q) & (y.round() <= q)
        v -= (1 / steps) * (1 - t / steps) * (slope * inside).sign()
        v.clamp_(-0.5, 0.5)
    scheme = Scheme.parse("int3-g16")
    options = AutoRoundOptions(steps=steps, ranges=False)
    _, theirs = learn(w, LayerInputs.of(x), scheme, options)
    assert losses[0] == pytest.approx(theirs[0], rel=1e-4)
    # A code halfway between two may go either way in the last digit of float32.
    assert math.isclose(min(losses), min(theirs), rel_tol=0.05)
