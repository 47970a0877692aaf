"""SmoothQuant: the scales balance, the model stays the same, and int8 gets better."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

import qlab
from qlab.calibrate.blocks import BlockRunner
from qlab.methods.folding import fold_groups
from qlab.methods.smoothquant import (
    SmoothQuantOptions,
    column_absmax,
    smooth,
    smoothing_scales,
)
from qlab.outliers import inject_outliers, measure_outliers

SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**GATED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GATED),
    "qwen3": Qwen3Config(**GATED, head_dim=8),
    "mistral": MistralConfig(**GATED),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "gpt2": GPT2Config(
        vocab_size=80, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1
    ),
}
# Last names of the layers that read no norm.
OTHERS = ("o_proj", "out_proj", "down_proj", "fc2", "c_proj", "lm_head")


def build(config, outliers=True):
    """A random model whose norms have weights and biases of their own, some of them far."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.15)
            elif name.endswith("weight"):
                parameter.copy_(torch.exp(torch.randn(parameter.shape, generator=g)))
                if outliers and parameter.shape == (32,):
                    parameter[5] = 60.0
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return model


def samples(n=3, length=20):
    g = torch.Generator().manual_seed(2)
    return [torch.randint(3, 80, (1, length), generator=g) for _ in range(n)]


def difference(model, other, ids):
    """Largest difference of the logits, relative to the largest logit."""
    with torch.no_grad():
        a, b = model(ids).logits, other(ids).logits
    return float((a - b).abs().max() / a.abs().max())


positive = st.floats(2.0**-10, 2.0**10, width=32)


@settings(max_examples=80, deadline=None)
@given(
    x=st.lists(positive, min_size=6, max_size=6),
    w=st.lists(positive, min_size=6, max_size=6),
    alpha=st.floats(0, 1),
)
def test_the_scales_share_the_range(x, w, alpha):
    """max|X_j|/s_j = (xw)^(1-α)... : the products x·w stay, and alpha says who bears them."""
    x, w = torch.tensor(x), torch.tensor(w)
    s = smoothing_scales(x, w, alpha)
    # The floor of 1e-5 is below every factor of such inputs: 2^-10 is the least.
    torch.testing.assert_close(x / s, (x * w) ** (1 - alpha), rtol=2e-5, atol=0)
    torch.testing.assert_close(w * s, (x * w) ** alpha, rtol=2e-5, atol=0)
    if alpha == 0.5:
        torch.testing.assert_close(x / s, w * s, rtol=2e-5, atol=0)


def test_alpha_at_its_ends():
    """0: every weight column reaches 1. 1: every feature does. Half: both sides are equal."""
    x, w = torch.tensor([0.1, 3.0, 200.0]), torch.tensor([0.02, 0.5, 0.01])
    assert torch.allclose(w * smoothing_scales(x, w, 0.0), torch.ones(3))
    assert torch.allclose(x / smoothing_scales(x, w, 1.0), torch.ones(3))
    assert torch.allclose(x / smoothing_scales(x, w), w * smoothing_scales(x, w))


def test_features_of_which_nothing_is_known_stay_as_they_are():
    x, w = torch.tensor([0.0, 2.0, 0.0, 9.0]), torch.tensor([1.0, 0.0, 0.0, 0.3])
    for alpha in (0.0, 0.3, 1.0):
        s = smoothing_scales(x, w, alpha)
        assert (s[:3] == 1).all() and torch.isfinite(s).all() and s[3] != 1
    tiny = smoothing_scales(torch.tensor([1e-40]), torch.tensor([1.0]), 1.0)
    assert float(tiny) == pytest.approx(1e-5)
    assert torch.isfinite(smoothing_scales(torch.tensor([3e38]), torch.tensor([1e-40]), 0.5)).all()


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_stay_and_ranges_are_balanced(name, down):
    model, calibration = build(CONFIGS[name]), samples()
    before = copy.deepcopy(model.state_dict())
    smoothed = smooth(model, calibration, down=down)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    # Rounding: each weight and norm is rounded once more, 2^-24 each, over a few layers.
    assert difference(model, smoothed, calibration[0]) < 2e-5
    assert difference(model, smoothed, samples(1, 40)[0]) < 2e-5
    seen = 0
    for block in BlockRunner(smoothed, calibration, skip=()):
        for group in fold_groups(block, down):
            x = block.gather(group.layers[:1], needs=())[group.layers[0]].absmax
            w = column_absmax(block.module, group.layers)
            torch.testing.assert_close(x, w, rtol=1e-3, atol=1e-6)
            seen += 1
    gated = hasattr(CONFIGS[name], "num_key_value_heads") and name not in ("opt", "gpt2")
    assert seen == 2 * (2 + (down and gated))


def test_groups_are_the_readers_of_a_norm():
    expected = {
        "llama": {
            ("input_layernorm", "q_proj k_proj v_proj"),
            ("post_attention_layernorm", "gate_proj up_proj"),
        },
        "opt": {
            ("self_attn_layer_norm", "q_proj k_proj v_proj"),
            ("final_layer_norm", "fc1"),
        },
        "gpt2": {("ln_1", "c_attn"), ("ln_2", "c_fc")},
    }
    for name, groups in expected.items():
        block = next(iter(BlockRunner(build(CONFIGS[name]), samples(1), skip=())))
        found = {
            (g.source, frozenset(layer.rpartition(".")[2] for layer in g.layers))
            for g in fold_groups(block)
        }
        assert found == {(norm, frozenset(layers.split())) for norm, layers in groups}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("activations", ["int8-token", "int8-tensor", "int8-asym-tensor"])
def test_w8a8_is_mended(name, activations):
    """Dynamic and static, by the method and by two steps: the same, and better than without.

    Of the layers that read a norm; the others have the same error with and without.
    """
    model, calibration = build(CONFIGS[name]), samples()
    ids = samples(5)[4]

    def error(source, method):
        small, report = qlab.quantize_model(
            source, method, "int8-channel", calibration, activations=activations, skip=OTHERS
        )
        assert report.activations == activations
        with torch.no_grad():
            exact = model(ids).logits
            return float((small(ids).logits - exact).norm() / exact.norm())

    plain, smoothed = error(model, "rtn"), error(model, "smoothquant")
    assert smoothed < 0.7 * plain
    twice = error(smooth(model, calibration), "rtn")
    assert twice == pytest.approx(smoothed, rel=1e-3)


def test_skipped_layers_are_scaled_too():
    model, calibration = build(CONFIGS["llama"]), samples()
    small, report = qlab.quantize_model(
        model, "smoothquant", "int8-channel", calibration, skip=("k_proj", "up_proj", "lm_head")
    )
    assert not any("k_proj" in layer.name for layer in report.layers)
    assert difference(model, small, calibration[0]) < 0.1
    whole, _ = qlab.quantize_model(
        model, "smoothquant", "int8-channel", calibration, options=SmoothQuantOptions(alpha=0.0)
    )
    assert difference(model, whole, calibration[0]) < 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_injected_outliers_change_nothing_but_the_ranges(name):
    model, calibration = build(CONFIGS[name], outliers=False), samples()
    spoiled = inject_outliers(model, calibration, [3, 9], 64.0)
    # A power of two: nothing is rounded.
    assert difference(model, spoiled, calibration[0]) == 0.0
    before = {one.name: one for one in measure_outliers(model, calibration)}
    after = {one.name: one for one in measure_outliers(spoiled, calibration)}
    assert list(before) == list(after)
    fed = 0
    for layer, one in after.items():
        factor = one.absmax / before[layer].absmax
        if (factor != 1).any():
            assert (factor[[3, 9]] == 64).all() and (factor != 1).sum() == 2
            assert one.count >= before[layer].count and one.largest >= before[layer].largest
            fed += 1
    assert fed == {"opt": 8, "gpt2": 4}.get(name, 10)
    # And smoothing undoes it: the same ranges from both.
    for a, b in zip(
        measure_outliers(smooth(model, calibration), calibration),
        measure_outliers(smooth(spoiled, calibration), calibration),
        strict=True,
    ):
        torch.testing.assert_close(a.absmax, b.absmax, rtol=1e-3, atol=1e-6)


def test_measured_outliers():
    model, calibration = build(CONFIGS["llama"]), samples()
    found = {one.name: one for one in measure_outliers(model, calibration, 6.0)}
    assert len(found) == 14
    one = found["model.layers.0.self_attn.q_proj"]
    assert one.largest == float(one.absmax.max()) and int(one.absmax.argmax()) == 5
    assert one.ratio > 10 and one.count >= 1 and one.share == one.count / 32
    assert measure_outliers(model, calibration, 1e9)[0].count == 0


def test_models_that_would_change_are_refused():
    after = OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False)
    with pytest.raises(qlab.QlabError, match="something else reads its norms too"):
        smooth(build(after), samples())
    gemma = build(GemmaConfig(**GATED, head_dim=8))
    with pytest.raises(qlab.QlabError, match="Gemma"):
        smooth(gemma, samples())


def test_bad_input_is_refused():
    model = build(CONFIGS["llama"])
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(qlab.QlabError, match="alpha"):
            smooth(model, samples(), alpha)
        with pytest.raises(qlab.QlabError, match="alpha"):
            smoothing_scales(torch.ones(2), torch.ones(2), alpha)
    with pytest.raises(qlab.QlabError, match="needs calibration"):
        smooth(model, [])
    with pytest.raises(qlab.QlabError, match="needs calibration"):
        qlab.quantize_model(model, "smoothquant", "int8-channel")
    with pytest.raises(qlab.QlabError, match="there is one of each for a feature"):
        smoothing_scales(torch.ones(2), torch.ones(3))
    with pytest.raises(qlab.QlabError, match="no norm"):
        smooth(torch.nn.Sequential(torch.nn.Embedding(80, 8), torch.nn.Linear(8, 8)), samples())
    with pytest.raises(qlab.QlabError, match="features 0 to 31"):
        inject_outliers(model, samples(), [32])
    with pytest.raises(qlab.QlabError, match="factor 0"):
        inject_outliers(model, samples(), [1], 0)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].input_layernorm.weight[3] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"layers\.1.*q_proj.*nan"):
        smooth(broken, samples())


def test_a_model_in_half_precision():
    model = build(CONFIGS["llama"]).bfloat16()
    smoothed = smooth(model, samples())
    # 2^-9 for each rounding of a weight, a norm and an activation, over two layers.
    assert difference(model.float(), smoothed.float(), samples()[0]) < 0.05
    assert next(smoothed.parameters()).dtype == torch.float32  # of the copy that was made above
