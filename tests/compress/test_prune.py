"""Pruning: what must hold for any layer and any model, and what bad input gets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.calibrate import LayerInputs
from qlab.compress import Target, prune_model
from qlab.compress.magnitude import magnitude
from qlab.compress.prune import quantize_pruned
from qlab.compress.sparsegpt import SparsegptOptions, sparsegpt
from qlab.compress.wanda import wanda
from qlab.errors import QlabError
from qlab.methods.gptq import GptqOptions, gptq
from qlab.nn import QuantLinear, dequantize_model, linear_layers, quant_layers, weight_of
from tests.models import random_model

seeds = st.integers(0, 2**31)


def layer(rows=24, columns=64, seed=0, tokens=256):
    """(weight, stats): inputs are correlated, and some are larger than others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g) * torch.rand(columns, generator=g).mul(2)
    x += torch.randn(tokens, 4, generator=g) @ torch.randn(4, columns, generator=g)
    return torch.randn(rows, columns, generator=g), LayerInputs.of(x, name="here")


def loss(w, new, hessian):
    d = (w - new).double()
    return float(((d @ hessian.double()) * d).sum())


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    share=st.floats(0, 0.99),
    within=st.sampled_from(["row", "layer"]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 30),
)
def test_as_many_go_as_asked_for_and_the_lowest(seed, share, within, rows, columns):
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    gone = Target(share).lowest(scores, within)
    groups = [(s, g) for s, g in zip(scores, gone, strict=True)] if within == "row" else [
        (scores, gone)
    ]  # fmt: skip
    for s, g in groups:
        assert int(g.sum()) == int(s.numel() * share + 1e-9)
        if g.any():
            assert s[g].max() <= s[~g].min()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, pattern=st.sampled_from(["2:4", "1:4", "4:8", "1:2"]))
def test_a_pattern_keeps_n_of_each_m(seed, pattern):
    w, stats = layer(5, 32, seed)
    n, m = map(int, pattern.split(":"))
    target = Target.parse(pattern=pattern)
    for pruned in (
        magnitude(w, None, target), wanda(w, stats, target), sparsegpt(w, stats, target),
    ):  # fmt: skip
        assert ((pruned != 0).reshape(5, -1, m).sum(-1) == n).all()
    # And of all choices in a group, magnitude keeps the one of most squares.
    kept = magnitude(w, None, target).square().reshape(5, -1, m).sum(-1)
    best = w.square().reshape(5, -1, m).topk(n, dim=-1).values.sum(-1)
    torch.testing.assert_close(kept, best)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_wandas_score_is_what_a_weight_costs_on_its_own(seed):
    w, stats = layer(4, 12, seed)
    pruned = wanda(w, stats, Target(1 / 12), "row")
    for r in range(4):
        costs = []
        for j in range(12):
            other = w.clone()
            other[r, j] = 0
            costs.append(loss(w, other, stats.hessian))
        assert pruned[r, int(np.argmin(costs))] == 0


@settings(max_examples=20, deadline=None)
@given(seed=seeds, share=st.sampled_from([0.3, 0.5, 0.8]))
def test_with_inputs_of_one_size_and_alone_all_three_agree(seed, share):
    w, _ = layer(8, 32, seed)
    stats = SimpleNamespace(hessian=3 * torch.eye(32), name="")
    plain = magnitude(w, None, Target(share), "layer")
    assert torch.equal(wanda(w, stats, Target(share), "layer"), plain)
    torch.testing.assert_close(sparsegpt(w, stats, Target(share)), plain, rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, power=st.sampled_from([-12, 2, 20]))
def test_the_unit_of_the_inputs_does_not_matter(seed, power):
    """x · 2^k makes H · 4^k: every step of the arithmetic scales exactly."""
    w, stats = layer(8, seed=seed)
    other = SimpleNamespace(hessian=stats.hessian * 4.0**power, name="")
    for way in (wanda, sparsegpt):
        assert torch.equal(way(w, stats, Target(0.5)), way(w, other, Target(0.5)))


def test_the_others_pay_as_the_best_answer_says():
    """With one choice of weights, given, SparseGPT in one block solves column after column.

    No smaller loss is possible for the weights of a row that lie behind all those that go.
    """
    w, stats = layer(6, 16)
    gone = torch.zeros(6, 16, dtype=torch.bool)
    gone[:, :5] = True
    options = SparsegptOptions(damping=1e-7)
    found = sparsegpt(w, stats, Target(0.5), options, gone=gone).double()
    h = stats.hessian.double()
    best = w.double().clone()
    best[:, :5] = 0
    best[:, 5:] += torch.linalg.solve(h[5:, 5:], h[5:, :5] @ w[:, :5].double().T).T
    # float32 inverse of a Hessian with a condition of about 1e3.
    torch.testing.assert_close(found, best, rtol=0, atol=2e-3)


def test_the_losses_stand_in_the_order_of_the_methods():
    total = dict.fromkeys(("magnitude", "wanda", "paid", "sparsegpt"), 0.0)
    for seed in range(5):
        w, stats = layer(32, 64, seed)
        target = Target(0.5)
        by_wanda = wanda(w, stats, target)
        found = {
            "magnitude": magnitude(w, None, target),
            "wanda": by_wanda,
            "paid": sparsegpt(w, stats, target, gone=by_wanda == 0),
            "sparsegpt": sparsegpt(w, stats, target),
        }
        for name, pruned in found.items():
            total[name] += loss(w, pruned, stats.hessian)
    assert total["wanda"] < 0.8 * total["magnitude"]
    assert total["paid"] < 0.5 * total["wanda"] and total["sparsegpt"] < 0.5 * total["wanda"]


@pytest.mark.parametrize("scheme", [
    "int4-g16", "int4-channel", "int3-asym-g32", "int8-tensor", "nf4-g16", "uint4-g16",
    "fp4_e2m1-g16", "ternary-channel", "mxfp4", "int4-g16-sfp16", "int4-asym-tensor",
])  # fmt: skip
def test_zeros_stay_exactly_zero(scheme):
    w, stats = layer(32, 64)
    w[3] = w[3].abs() + 1  # asymmetric: the zero point lies at the end of the codes
    for target in (Target(0.5), Target.parse(pattern="2:4")):
        for pruned in (magnitude(w, None, target), wanda(w, stats, target)):
            back = quantize_pruned(pruned, scheme).dequantize()
            assert (back[pruned == 0] == 0).all() and back.any()
        gone = wanda(w, stats, target) == 0
        joint = sparsegpt(w, stats, target, scheme=scheme, gone=gone).dequantize()
        assert (joint[gone] == 0).all() and joint.any()
        chosen = sparsegpt(w, stats, target, scheme=scheme).dequantize()
        assert (chosen == 0).float().mean() >= 0.5
    if target.pattern:
        assert ((chosen != 0).reshape(32, -1, 4).sum(-1) <= 2).all()


def test_a_scheme_without_a_zero_is_refused():
    w, stats = layer(8, 64)
    with pytest.raises(QlabError, match="no code for zero"):
        quantize_pruned(magnitude(w, None, Target(0.5)), "binary-g16")
    with pytest.raises(QlabError, match="no code for zero"):
        sparsegpt(w, stats, Target(0.5), scheme="binary-g16")


@pytest.mark.parametrize("scheme", ["int4-g16", "int4-channel", "int3-asym-g32", "nf4-g16"])
def test_without_pruning_the_joint_way_is_gptq(scheme):
    """A share of 0: the same codes, but for the odd tie of float32 sums."""
    w, stats = layer(32, 64, seed=5)
    ours = sparsegpt(w, stats, Target(0.0), SparsegptOptions(block_size=64), scheme=scheme)
    theirs = gptq(w, stats, scheme, GptqOptions(block_size=64))
    assert float((ours.codes != theirs.codes).float().mean()) < 0.01
    assert loss(w, ours.dequantize(), stats.hessian) == pytest.approx(
        loss(w, theirs.dequantize(), stats.hessian), rel=0.02
    )


def test_rounding_on_the_way_beats_rounding_afterwards():
    one = two = 0.0
    for seed in range(5):
        w, stats = layer(32, 64, seed)
        joint = sparsegpt(w, stats, Target(0.5), scheme="int3-g32")
        after = quantize_pruned(sparsegpt(w, stats, Target(0.5)), "int3-g32")
        one += loss(w, joint.dequantize(), stats.hessian)
        two += loss(w, after.dequantize(), stats.hessian)
    assert one < 0.9 * two


def test_hard_rows_and_dead_inputs():
    """Zeros, one value, denormals, huge: finite, with the right number of zeros."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 32, generator=g)
    x[:, 7] = 0
    w = torch.randn(6, 32, generator=g)
    w[0], w[1], w[2], w[3] = 0, 0.5, w[2] * 1e-41, w[3] * 1e30
    w[4] = torch.tensor([1.0] + [0.0] * 31)
    stats = LayerInputs.of(x)
    for way in (magnitude, wanda):
        pruned = way(w, stats, Target(0.5), "row")
        assert torch.isfinite(pruned).all() and ((pruned == 0).sum(1) >= 16).all()
        assert (pruned[1:4] == 0).sum() == 48
        assert pruned[4, 0] == 1
    pruned = sparsegpt(w, stats, Target(0.5))
    assert torch.isfinite(pruned).all() and (pruned[:, 7] == 0).all()
    assert (wanda(w, stats, Target(0.04), "row")[:, 7] == 0).all()  # the dead one goes first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    w, stats = layer(8, 32)
    for pruned in (
        magnitude(w.to(dtype), None, Target(0.5)), wanda(w.to(dtype), stats, Target(0.5)),
        sparsegpt(w.to(dtype), stats, Target(0.5)),
    ):  # fmt: skip
        assert pruned.dtype == dtype and pruned.shape == w.shape


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen2"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_models_of_several_families(kind, method):
    model = random_model(kind)
    ids = [torch.randint(0, 100, (1, 48), generator=torch.Generator().manual_seed(i))
           for i in range(2)]  # fmt: skip
    before = {name: weight_of(one).clone() for name, one in linear_layers(model)}
    small, report = prune_model(model, method, pattern="2:4", calibration=ids)
    assert [r.name for r in report.layers] == list(before)
    for (name, one), r in zip(linear_layers(small), report.layers, strict=True):
        assert ((weight_of(one) != 0).reshape(-1, 4).sum(-1) <= 2).all()
        assert r.layout == "2:4" and r.bits_per_weight == 9 and r.sparsity == 0.5
        assert 0 < r.error < 1
        if method != "sparsegpt":  # what stays is as it was
            now = weight_of(one)
            assert torch.equal(now[now != 0], before[name][now != 0])
    for name, one in linear_layers(model):
        assert torch.equal(weight_of(one), before[name])
    assert torch.isfinite(small(ids[0]).logits).all()
    assert str(report).startswith(f"{method} 2:4")


def test_a_quantized_model_keeps_its_zeros_and_its_bytes(tiny):
    model, _ = tiny
    ids = [torch.randint(3, 300, (1, 100), generator=torch.Generator().manual_seed(1))]
    for method in ("magnitude", "wanda", "sparsegpt"):
        plain, _ = prune_model(model, method, 0.5, calibration=ids)
        small, report = prune_model(model, method, 0.5, calibration=ids, scheme="int4-g32-sfp16")
        assert len(list(quant_layers(small))) == len(report.layers) == 14
        for r in report.layers:
            q = small.get_submodule(r.name)
            assert isinstance(q, QuantLinear) and r.sparsity >= 0.5
            assert r.sparsity == float((q.weight == 0).float().mean())
            if r.layout == "bitmask":  # 4 bits for what stays, a bit for all, scales, offsets
                codes = 4 * (1 - r.sparsity) + 1 + 16 / 32
                # Codes are packed to whole bytes.
                most = codes + 32 / q.in_features + 8 / r.weights
                assert codes - 1e-6 <= r.bits_per_weight <= most
        first = "model.layers.0.self_attn.q_proj"
        if method != "sparsegpt":  # the same choice in the first layer, quantized or not
            gone = plain.get_submodule(first).weight == 0
            assert (small.get_submodule(first).weight[gone] == 0).all()
        logits = small(ids[0]).logits
        torch.testing.assert_close(dequantize_model(small)(ids[0]).logits, logits)


def test_later_layers_see_the_pruned_ones(tiny):
    model, _ = tiny
    ids = [torch.randint(3, 300, (1, 120), generator=torch.Generator().manual_seed(1))]
    small, _ = prune_model(model, "wanda", 0.7, calibration=ids)
    # By hand: the inputs of the last layer in the pruned model, all others done.
    name, seen = "model.layers.1.mlp.down_proj", []
    hook = small.get_submodule(name).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    small(ids[0])
    hook.remove()
    by_hand = wanda(model.get_submodule(name).weight, LayerInputs.of(seen[0]), Target(0.7))
    assert torch.equal(small.get_submodule(name).weight, by_hand)


def test_the_head_is_pruned_if_not_skipped_and_the_embeddings_stay(tiny):
    model, _ = tiny
    ids = [torch.randint(3, 300, (1, 80), generator=torch.Generator().manual_seed(1))]
    small, report = prune_model(model, "wanda", 0.5, calibration=ids, skip=())
    assert report.layers[-1].name == "lm_head" and report.layers[-1].error > 0
    assert torch.equal(small.model.embed_tokens.weight, model.model.embed_tokens.weight)
    # Row 0 is that of the padding: zeros before, too.
    assert (small.lm_head.weight[1:] == 0).float().mean() == 0.5


@pytest.mark.parametrize(("call", "says"), [
    (lambda m: prune_model(m, "wonder"), "choose one of magnitude, wanda, sparsegpt"),
    (lambda m: prune_model(m, "wanda"), "needs calibration data"),
    (lambda m: prune_model(m, "magnitude", 1.0), "from 0 to less than 1"),
    (lambda m: prune_model(m, "magnitude", float("nan")), "from 0 to less than 1"),
    (lambda m: prune_model(m, "magnitude", 0.5, pattern="2:4"), "one of the two"),
    (lambda m: prune_model(m, "magnitude", pattern="4:2"), "unknown pattern '4:2'"),
    (lambda m: prune_model(m, "magnitude", pattern="half"), "unknown pattern 'half'"),
    (lambda m: prune_model(m, "magnitude", pattern="3:7"), "layer 'model.layers.0.*multiple of 7"),
    (lambda m: prune_model(m, "magnitude", within="model"), "unknown within"),
    (lambda m: prune_model(m, "magnitude", scheme="binary-g32"), "no code for zero"),
    (lambda m: prune_model(torch.nn.ReLU(), "magnitude"), "no linear layers"),
    (lambda m: prune_model(m, "sparsegpt", within="row", calibration=[torch.ones(1, 4).long()]),
     "a block"),
    (lambda m: prune_model(m, "wanda", calibration=[torch.ones(4)]), "calibration sample 0"),
])  # fmt: skip
def test_bad_input_gets_one_clear_line(tiny, call, says):
    with pytest.raises(QlabError, match=says) as caught:
        call(tiny[0])
    assert "\n" not in str(caught.value)


def test_bad_layers_get_one_clear_line():
    w, stats = layer(4, 8)
    with pytest.raises(QlabError, match="weight has nan at position"):
        magnitude(w * float("nan"), None, Target(0.5))
    with pytest.raises(QlabError, match="2 axes"):
        magnitude(w[0], None, Target(0.5))
    zeros = SimpleNamespace(hessian=torch.zeros(8, 8), name="here")
    for way in (wanda, sparsegpt):
        with pytest.raises(QlabError, match="layer 'here' is zero"):
            way(w, zeros, Target(0.5))
        with pytest.raises(QlabError, match="has shape"):
            way(w, SimpleNamespace(hessian=torch.eye(9), name=""), Target(0.5))
    with pytest.raises(QlabError, match="multiple of 4"):
        sparsegpt(w, stats, Target.parse(pattern="2:4"), SparsegptOptions(block_size=6))
    with pytest.raises(QlabError, match="gone has shape"):
        sparsegpt(w, stats, Target(0.5), gone=torch.zeros(4, 7, dtype=torch.bool))
    for bad in ({"damping": -1}, {"block_size": 0}):
        with pytest.raises(QlabError):
            SparsegptOptions(**bad)


def test_half_of_the_storytellers_weights_go_and_it_still_predicts():
    """The order of the papers: who looks at the inputs loses less, who lets others pay least."""
    story = qlab.story.load()
    found = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        small, _ = prune_model(
            story.model, method, pattern="2:4", calibration=story.calibration()[:4]
        )
        found[method] = qlab.perplexity(small, story.tokenizer, story.validation()[:4])
    assert found["sparsegpt"] < 0.9 * found["wanda"] < 0.9 * found["magnitude"]
