"""AWQ: the model stays the same in full precision; the searches find the best of their grid."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.calibrate.blocks import BlockRunner
from qlab.methods.awq import (
    AwqOptions,
    _consumer,
    awq,
    awq_groups,
    awq_scales,
    clip_limits,
    prepare,
    relative_magnitude,
    scale_block,
    scaled_rounding,
    search_scales,
)
from qlab.nn import linear_layers, weight_of
from tests.models import random_model

SCHEME = qlab.Scheme.parse("int3-asym-g16")
KINDS = ["llama", "qwen2", "opt", "gpt2"]


def build(kind):
    """A random model with large weights and norms of their own, some of them far."""
    if kind == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=100,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=64,
            )
        ).eval()
    else:
        model = random_model(kind)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.15)
            elif name.endswith("weight"):
                parameter.copy_(torch.exp(torch.randn(parameter.shape, generator=g)))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return model


def samples(n=4, length=20):
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 99, (1, length), generator=g) for _ in range(n)]


def first_block(model, calibration):
    return next(iter(BlockRunner(model, calibration, skip=())))


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


# --- properties -----------------------------------------------------------------------------------

positive = st.floats(2.0**-8, 2.0**8, width=32)


@settings(max_examples=80, deadline=None)
@given(x=st.lists(positive, min_size=6, max_size=6), ratio=st.floats(0, 1))
def test_scales_follow_the_activations_and_are_centered_on_one(x, ratio):
    s = awq_scales(torch.tensor(x), ratio)
    assert float(s.max() * s.min()) == pytest.approx(1, rel=1e-5)
    expected = np.array(x) ** ratio
    np.testing.assert_allclose(s / s[0], expected / expected[0], rtol=2e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), factor=st.integers(-8, 8))
def test_only_the_ratios_of_the_scales_count(seed, factor):
    """All columns times one power of two: the same codes, so the same weights at the end."""
    g = torch.Generator().manual_seed(seed)
    w, s = torch.randn(4, 32, generator=g), torch.rand(32, generator=g) + 0.5
    one = scaled_rounding(w, s, SCHEME)
    assert torch.equal(one, scaled_rounding(w, s * 2.0**factor, SCHEME))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(1, 16), column=st.integers(0, 15))
def test_the_error_of_a_column_is_bounded_by_half_a_step_over_its_scale(seed, factor, column):
    """Equation 3 of the paper: |ŵ - w| <= step / (2 s)."""
    g = torch.Generator().manual_seed(seed)
    w, s = torch.randn(8, 16, generator=g), torch.ones(16)
    s[column] = factor
    step = qlab.quantize(w * s, SCHEME).scale
    error = (scaled_rounding(w, s, SCHEME) - w).abs()
    # An asymmetric range may be cut by half a step more, where the zero point was rounded.
    assert (error * s <= step * (1 + 1e-5)).all()
    assert (error[:, column] <= step[:, 0] / factor * (1 + 1e-5)).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 5), asym=st.booleans())
def test_clipping_never_makes_a_group_worse(seed, bits, asym):
    """The widest range is among those that are tried; the judge is what the group adds."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(6, 32, generator=g) ** 3
    x = torch.randn(40, 32, generator=g) * torch.exp(torch.randn(32, generator=g))
    scheme = f"int{bits}-{'asym-' if asym else ''}g16"
    limit = clip_limits(w, x, scheme)
    largest = w.reshape(6, 2, 16).abs().amax(2)
    assert ((limit >= 0.55 * largest * (1 - 1e-6)) & (limit <= largest)).all()

    def error(rounded):
        delta = (rounded - w).reshape(6, 2, 16)
        return torch.einsum("tgi,rgi->trg", x.reshape(40, 2, 16), delta).square().sum(0)

    plain = error(qlab.quantize(w, scheme).dequantize())
    ours = error(awq(w, limit, scheme).dequantize())
    # float32: a sum of 40 squares, and the products x·x of another order.
    assert (ours <= plain * (1 + 1e-3) + 1e-6 * plain.max()).all()


def test_clipping_takes_the_best_of_the_grid():
    """Against trying each range on the outputs themselves, one group at a time."""
    g = torch.Generator().manual_seed(3)
    w, x = torch.randn(5, 32, generator=g) ** 3, torch.randn(30, 32, generator=g)
    limit = clip_limits(w, x, "int3-asym-g16")
    for row in range(5):
        for group in range(2):
            part, xs = (t[:, group * 16 : group * 16 + 16] for t in (w[row : row + 1], x))
            tried = [part.abs().max() * (1 - i / 20) for i in range(10)]
            errors = [
                float(
                    (
                        (awq(part, t.reshape(1, 1), "int3-asym-g16").dequantize() - part) @ xs.T
                    ).norm()
                )
                for t in tried
            ]
            assert float(limit[row, group]) == pytest.approx(float(tried[int(np.argmin(errors))]))


def test_weights_of_zeros_and_dead_inputs():
    w = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for weight in (w, torch.zeros(4, 32)):
        for x in (torch.zeros(8, 32), torch.ones(8, 32)):
            limit = clip_limits(weight, x, SCHEME)
            assert torch.isfinite(awq(weight, limit, SCHEME).dequantize()).all()
    dead = torch.ones(32)
    dead[3] = 0
    assert torch.isfinite(awq_scales(dead, 0.95)).all() and (awq_scales(dead, 0.5) > 0).all()
    assert (awq_scales(torch.zeros(32), 0.5) == 1).all()
    assert (awq_scales(torch.tensor([1e38, 1e-38]), 0.95) > 0).all()


def test_relative_magnitude_by_hand():
    w = torch.tensor([[1.0, -2.0, 3.0, 4.0], [2.0, 2.0, 0.0, -8.0]])
    found = relative_magnitude(w, "int4-g2")
    assert torch.allclose(found, torch.tensor([0.75, 1.0, 0.375, 1.0]), atol=1e-5)


# --- on models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_the_same_after_folding(kind):
    model, calibration = build(kind), samples()
    changed = copy.deepcopy(model)
    limits = prepare(changed, calibration, SCHEME, AwqOptions(), skip=("lm_head",))
    a, b = logits(model, calibration[0]), logits(changed, calibration[0])
    # Each weight and norm is rounded once more, 2^-24 each, over a few layers.
    assert float((a - b).abs().max() / a.abs().max()) < 3e-5
    moved = sum(
        not torch.equal(x, y) for x, y in zip(model.parameters(), changed.parameters(), strict=True)
    )
    assert moved >= 4
    names = {name.rpartition(".")[2] for name in limits}
    assert not names & {"q_proj", "k_proj", "c_attn"} and len(limits) >= 4
    for name, layer in linear_layers(changed):
        if name in limits:
            rows, columns = weight_of(layer).shape
            assert limits[name].shape == (rows, columns // 16)


def test_groups_and_who_judges_them():
    expected = {
        "llama": {
            ("input_layernorm", "q_proj k_proj v_proj", "self_attn"),
            ("post_attention_layernorm", "gate_proj up_proj", "mlp"),
            ("mlp.up_proj", "down_proj", "mlp.down_proj"),
            ("self_attn.v_proj", "o_proj", "self_attn.o_proj"),
        },
        "qwen2": {  # heads share values: nothing is folded into v_proj
            ("input_layernorm", "q_proj k_proj v_proj", "self_attn"),
            ("post_attention_layernorm", "gate_proj up_proj", "mlp"),
            ("mlp.up_proj", "down_proj", "mlp.down_proj"),
        },
        "opt": {
            ("self_attn_layer_norm", "q_proj k_proj v_proj", "self_attn"),
            ("final_layer_norm", "fc1", "fc1"),
            ("self_attn.v_proj", "out_proj", "self_attn.out_proj"),
            ("fc1", "fc2", "fc2"),
        },
        "gpt2": {("ln_1", "c_attn", "attn"), ("ln_2", "c_fc", "mlp")},
    }
    for kind, groups in expected.items():
        found = {
            (g.source, frozenset(n.rpartition(".")[2] for n in g.layers), _consumer(g))
            for g in awq_groups(first_block(build(kind), samples(1)))
        }
        assert found == {(s, frozenset(layers.split()), judge) for s, layers, judge in groups}


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_takes_the_least_loss_and_puts_the_weights_back(kind):
    model, calibration = build(kind), samples()
    before = copy.deepcopy(model.state_dict())
    block = first_block(model, calibration)
    for group in awq_groups(block):
        inputs = block.gather(group.layers[:1], needs=())[group.layers[0]]
        one = search_scales(block, group, inputs, SCHEME, AwqOptions(grid=6))
        assert len(one.losses) == 6 and one.losses[0] >= min(one.losses) > 0
        assert torch.equal(one.scales, awq_scales(inputs.mean_abs, one.ratio))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_the_loss_is_that_of_the_layers_output():
    """For a group that is its own judge, by one matrix product."""
    model, calibration = build("llama"), samples()
    block = first_block(model, calibration)
    group = next(g for g in awq_groups(block) if g.layers == ("mlp.down_proj",))
    inputs = block.gather(group.layers)[group.layers[0]]
    one = search_scales(block, group, inputs, SCHEME, AwqOptions(grid=4, tokens=None))
    w, x = model.model.layers[0].mlp.down_proj.weight.detach(), inputs.sample
    for ratio, loss in zip(one.ratios, one.losses, strict=True):
        delta = scaled_rounding(w, awq_scales(inputs.mean_abs, ratio), SCHEME) - w
        assert loss == pytest.approx(float((x @ delta.T).square().mean()), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_awq_beats_rounding_to_nearest(kind):
    """On inputs it has not seen. The random models have features of very different size."""
    model, calibration = build(kind), samples(8)
    ids = torch.randint(3, 99, (12, 60), generator=torch.Generator().manual_seed(7))
    exact = logits(model, ids)
    off = {}
    for method in ("rtn", "awq"):
        small, report = qlab.quantize_model(model, method, "int4-asym-g16", calibration)
        off[method] = float((logits(small, ids) - exact).norm() / exact.norm())
    assert off["awq"] < 0.95 * off["rtn"], off
    assert {r.name for r in report.layers} == {name for name, _ in linear_layers(model)}


def test_a_skipped_layer_is_scaled_and_kept():
    model, calibration = build("llama"), samples()
    small, report = qlab.quantize_model(
        model, "awq", "int8-asym-g16", calibration, skip=("k_proj", "lm_head")
    )
    assert not any("k_proj" in layer.name for layer in report.layers)
    a, b = logits(model, calibration[0]), logits(small, calibration[0])
    assert float((a - b).norm() / a.norm()) < 0.1


@pytest.mark.parametrize("scheme", ["nf4-g16", "fp4_e2m1-g16", "int4-channel", "int4-b2x16"])
def test_other_schemes(scheme):
    model, calibration = build("llama"), samples(2)
    small, _ = qlab.quantize_model(model, "awq", scheme, calibration, options=AwqOptions(grid=4))
    assert torch.isfinite(logits(small, calibration[0])).all()


def test_half_precision():
    model = build("llama").bfloat16()
    changed = copy.deepcopy(model)
    prepare(changed, samples(2), SCHEME, AwqOptions(grid=4), skip=("lm_head",))
    a, b = logits(model, samples(1)[0]).float(), logits(changed, samples(1)[0]).float()
    # 2^-9 for each rounding of a weight, a norm and an activation. This random model answers eight
    # bits in its weights, 2^-9 of the largest of each group, with 0.035.
    assert float((a - b).norm() / a.norm()) < 0.1
    assert next(changed.parameters()).dtype == torch.bfloat16


def test_bad_input_is_refused():
    model, calibration = build("llama"), samples(2)
    with pytest.raises(qlab.QlabError, match="needs calibration"):
        qlab.quantize_model(model, "awq", "int4-asym-g16")
    with pytest.raises(qlab.QlabError, match="kmeans"):
        qlab.quantize_model(model, "awq", "kmeans4-g16", calibration)
    with pytest.raises(qlab.QlabError, match=r"layers\.0.*48"):
        qlab.quantize_model(model, "awq", "int4-g48", calibration)
    for bad in ({"grid": 0}, {"tokens": 0}):
        with pytest.raises(qlab.QlabError, match=r"grid|tokens"):
            AwqOptions(**bad)
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(qlab.QlabError, match="ratio"):
            awq_scales(torch.ones(2), ratio)
    with pytest.raises(qlab.QlabError, match="rows or to groups"):
        clip_limits(torch.randn(4, 32), torch.randn(5, 32), "int4-tensor")
    plain = torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Linear(8, 8))
    with pytest.raises(qlab.QlabError, match="no norm"):
        prepare(plain, samples(2), qlab.Scheme.parse("int4-g8"), AwqOptions())
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].input_layernorm.weight[3] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"layers\.1.*q_proj.*nan"):
        qlab.quantize_model(broken, "awq", "int4-asym-g16", calibration)


def test_a_model_that_would_change_is_refused():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    after = OPTForCausalLM(
        OPTConfig(
            vocab_size=100,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
            do_layer_norm_before=False,
            init_std=0.3,
        )
    ).eval()
    with pytest.raises(qlab.QlabError, match="awq changed the output of block"):
        qlab.quantize_model(after, "awq", "int4-asym-g16", samples())


# --- on the storyteller ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story():
    return qlab.story.load()


def divergence(story, small, texts):
    """Mean KL from the full-precision model, nats a token."""
    from qlab.nn import dequantize_model

    small, total, count = dequantize_model(small), 0.0, 0
    for text in texts:
        ids = torch.tensor([story.tokenizer(text).input_ids])[:, :512]
        p, q = (logits(m, ids)[0].log_softmax(-1) for m in (story.model, small))
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(p)
    return total / count


@pytest.mark.parametrize("scheme", ["int4-asym-g128", "int3-g128"])
def test_awq_beats_rtn_on_the_storyteller(story, scheme):
    texts = story.validation()[:3]
    options = AwqOptions(tokens=800)
    kl = {
        method: divergence(
            story, qlab.quantize_model(story.model, method, scheme, data, options=o)[0], texts
        )
        for method, data, o in (("rtn", None, None), ("awq", story.calibration()[:4], options))
    }
    assert kl["awq"] < 0.95 * kl["rtn"], kl


def test_the_scales_alone_lower_the_error_of_every_group_of_the_storyteller(story):
    block = first_block(story.model, story.calibration()[:3])
    searches = scale_block(
        block, awq_groups(block), "int3-asym-g128", AwqOptions(tokens=600), skip=("lm_head",)
    )
    assert len(searches) == 4
    assert all(min(one.losses) <= one.losses[0] for one in searches)
    assert sum(min(one.losses) < 0.99 * one.losses[0] for one in searches) >= 2
