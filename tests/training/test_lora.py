"""LoRA: what it computes, what it keeps, what it leaves alone, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.nn import QuantLinear, quant_layers
from qlab.training import TrainOptions, train
from qlab.training.lora import FrozenMatmul, LoraLinear, add_lora, lora_layers, merge
from tests.training.lora_cases import batch, fill, llama

WORDS = ["nf4-g64", "int4-asym-g64", "int8-channel", "int2-g64"]


def quant_linear(seed=0, out=48, into=64, word="nf4-g64", bias=True):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(out, into, generator=g)
    return QuantLinear(qlab.quantize(w, word), torch.randn(out, generator=g) if bias else None)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    word=st.sampled_from(WORDS),
    rank=st.integers(1, 16),
    alpha=st.floats(0.25, 64),
)
def test_the_formula_and_its_gradients(seed, word, rank, alpha):
    layer = LoraLinear(quant_linear(seed, word=word), rank, alpha)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.lora_B.copy_(torch.randn(48, rank, generator=g))
    x = torch.randn(3, 5, 64, generator=g, requires_grad=True)
    grad = torch.randn(3, 5, 48, generator=g)
    y = layer(x)
    y.backward(grad)

    # By hand in float64: y = x Ŵᵀ + b + s x Aᵀ Bᵀ and its derivatives.
    w, a, b = (t.detach().double() for t in (layer.base.weight, layer.lora_A, layer.lora_B))
    x64, g64, s = x.detach().double().reshape(-1, 64), grad.double().reshape(-1, 48), alpha / rank
    expected = x64 @ w.T + layer.base.bias.double() + s * x64 @ a.T @ b.T
    for found, exact in (
        (y.reshape(-1, 48), expected),
        (x.grad.reshape(-1, 64), g64 @ w + s * g64 @ b @ a),
        (layer.lora_A.grad, s * (g64 @ b).T @ x64),
        (layer.lora_B.grad, s * g64.T @ (x64 @ a.T)),
    ):
        # float32: sums of up to 64 products of size 1 to 100.
        size = float(exact.abs().max()) + 1e-30
        assert float((found.detach().double() - exact).abs().max()) < 2e-6 * size


def test_a_fresh_adapter_changes_nothing_and_only_it_learns():
    model = llama()
    base, _ = qlab.quantize_model(model, "nf4", "nf4-g64")
    lora = add_lora(base, 4, 8)
    ids = batch(0)
    assert torch.equal(base(ids).logits, lora(ids).logits)
    learning = {n for n, p in lora.named_parameters() if p.requires_grad}
    assert learning == {f"{n}.{p}" for n, _ in lora_layers(lora) for p in ("lora_A", "lora_B")}
    assert len(learning) == 2 * 2 * 7
    # The model that was given is as it was.
    assert not any(True for _ in lora_layers(base))
    assert all(p.requires_grad for p in model.parameters())
    codes = {n: m.packed.clone() for n, m in quant_layers(lora)}
    before = lora(ids, labels=ids).loss.item()
    train(lora, lambda step: ids, TrainOptions(steps=20, lr=2e-2, warmup=2))
    assert lora(ids, labels=ids).loss.item() < 0.8 * before
    assert all(torch.equal(m.packed, codes[n]) for n, m in quant_layers(lora))


def test_the_backward_pass_keeps_no_dequantized_weight():
    layer = quant_linear()
    x = torch.randn(7, 64, requires_grad=True)

    def kept(f):
        own = {t.untyped_storage().data_ptr() for t in layer.buffers()}
        found = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (found.append((t.untyped_storage().data_ptr(), tuple(t.shape))), t)[1],
            lambda t: t,
        ):
            y = f(x)
        return y, [shape for pointer, shape in found if pointer not in own]

    plain, naive = kept(layer)
    frozen, saved = kept(lambda x: FrozenMatmul.apply(x, layer))
    assert any(48 in s and 64 in s for s in naive) and saved == []
    assert torch.equal(plain, frozen)
    grad = torch.randn(7, 48)
    (a,), (b,) = (torch.autograd.grad(y, x, grad) for y in (plain, frozen))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)
    # Nothing that can be differentiated comes in: nothing goes out.
    assert not FrozenMatmul.apply(x.detach(), layer).requires_grad


@pytest.mark.parametrize("word", ["nf4-g64", None])
def test_merging_keeps_the_outputs(word):
    model = llama()
    base = qlab.quantize_model(model, "rtn", word)[0] if word else model
    lora = fill(add_lora(base, 4, 8))
    whole, ids = merge(lora), batch(1)
    a, b, c = (m(ids).logits for m in (lora, whole, base))
    # One rounding of float32 a layer; the logits are of size 10.
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    assert float((a - c).detach().abs().max()) > 0.1
    assert not any(True for _ in lora_layers(whole)) and any(True for _ in lora_layers(lora))
    name, layer = next(lora_layers(lora))
    merged = whole.get_submodule(name)
    assert isinstance(merged, torch.nn.Linear)
    assert torch.equal(merged.weight, layer.base.weight + layer.delta)
    # It is an ordinary model again.
    assert qlab.quantize_model(whole, "nf4", "nf4-g64")[1].bits_per_weight > 4


def test_merging_the_storyteller_keeps_its_dtype_and_bias():
    layer = LoraLinear(torch.nn.Linear(64, 48).to(torch.bfloat16), 2, 2)
    with torch.no_grad():
        layer.lora_B.fill_(0.01)
    merged = layer.merged()
    assert merged.weight.dtype == torch.bfloat16 and torch.equal(merged.bias, layer.base.bias)
    assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gpt2s_layers_too():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_positions=64, n_embd=64, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    for base in (model, qlab.quantize_model(model, "rtn", "int8-channel")[0]):
        lora = fill(add_lora(base, 2, 4, targets=("c_attn", "mlp.c_proj")))
        assert [n.rpartition("h.0.")[2] for n, _ in lora_layers(lora)] == [
            "attn.c_attn",
            "mlp.c_proj",
        ]
        ids = batch(0)
        torch.testing.assert_close(lora(ids).logits, merge(lora)(ids).logits, rtol=1e-4, atol=1e-4)
        lora(ids, labels=ids).loss.backward()
        assert all(float(m.lora_A.grad.abs().sum()) > 0 for _, m in lora_layers(lora))


def test_targets_rank_seed_and_dropout():
    model = llama()
    some = add_lora(model, 2, 4, targets=("q_proj", "v_proj"))
    assert {n.rpartition(".")[2] for n, _ in lora_layers(some)} == {"q_proj", "v_proj"}
    one = add_lora(model, 2, 4, targets=("1.mlp.up_proj",))
    assert [n for n, _ in lora_layers(one)] == ["model.layers.1.mlp.up_proj"]
    state = torch.random.get_rng_state()
    a, b, c = (add_lora(model, 2, 4, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    first = [next(lora_layers(m))[1].lora_A for m in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    # torch's own bound of a linear layer: uniform within 1/√in.
    assert 0.9 / 8 < float(first[0].abs().max()) <= 1 / 8
    wet = LoraLinear(torch.nn.Linear(64, 48), 4, 8, dropout=0.5)
    with torch.no_grad():
        wet.lora_B.fill_(0.1)
    x = torch.randn(256, 64)
    wet.eval()
    dry = wet(x)
    assert torch.equal(dry, wet(x))
    wet.train()
    assert not torch.equal(dry, wet(x))


def test_the_loss_curve_is_a_function_of_the_seed():
    base, _ = qlab.quantize_model(llama(), "nf4", "nf4-g64")
    curves = []
    for _ in range(2):
        lora = add_lora(base, 4, 8, dropout=0.1)
        curves.append([r.loss for r in train(lora, batch, TrainOptions(steps=4, lr=1e-2))])
    assert curves[0] == curves[1]


def test_what_is_refused():
    model = llama()
    for options, message in (
        ({"rank": 0}, "rank 0 .* 1 to 64"),
        ({"rank": 65}, "layer .*q_proj.*rank 65"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"targets": ("query",)}, "called 'query'.*q_proj"),
        ({"targets": ()}, "no linear layers"),
    ):
        with pytest.raises(qlab.QlabError, match=message):
            add_lora(model, **options)
    with pytest.raises(qlab.QlabError, match="already"):
        add_lora(add_lora(model, 2), 2)
    with pytest.raises(qlab.QlabError, match="no LoRA adapters"):
        merge(model)
    with pytest.raises(qlab.QlabError, match="on a linear layer, not on Embedding"):
        LoraLinear(torch.nn.Embedding(4, 4))
    both, _ = qlab.quantize_model(model, "rtn", "int8-channel", activations="int8-token")
    with pytest.raises(qlab.QlabError, match="passes no gradient"):
        add_lora(both, 2)
    bad = add_lora(model, 2)
    with torch.no_grad():
        next(lora_layers(bad))[1].lora_B[0, 0] = float("nan")
    with pytest.raises(qlab.QlabError, match=r"layers\.0\.self_attn\.q_proj.*NaN"):
        merge(bad)
