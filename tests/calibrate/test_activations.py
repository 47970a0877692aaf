"""capture: what flows into each linear layer, against the same numbers computed from all inputs."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.calibrate import MovingAverage, Percentile, capture
from qlab.calibrate.layers import linear_layers


def batches(count, seed=0, length=16):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (1, length), generator=generator) for _ in range(count)]


def inputs_of(model, layer, data):
    """All inputs of a layer, kept: (tokens, in_features)."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for ids in data:
            model(ids)
    hook.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in seen])


def hooks_of(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_the_summary_is_that_of_all_inputs(tiny):
    model, _ = tiny
    data = batches(5)
    stats = capture(model, iter(data), ("minmax", "percentile"))
    assert list(stats) == [name for name, _ in linear_layers(model)] and len(stats) == 14
    assert (stats.batches, stats.tokens) == (5, 80)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        x = inputs_of(model, model.get_submodule(name), data)
        layer = stats[name]
        assert layer.tokens == len(x) == 80
        assert torch.equal(layer.absmax, x.abs().amax(dim=0))
        # Sums in float64 in another order, rounded to float32 at the end.
        torch.testing.assert_close(layer.mean_square, x.double().square().mean(dim=0).float())
        assert (layer.minimum, layer.maximum) == (float(x.min()), float(x.max()))
        assert layer.histogram.count == x.numel()
        counts, _ = np.histogram(x.numpy().astype(np.float64), layer.histogram.edges)
        assert np.array_equal(counts, layer.histogram.counts)
        scale, zero = layer.observers["minmax"].params("int8-asym-tensor")
        plain = qlab.quantize(x, "int8-asym-tensor")
        assert scale.item() == plain.scale.item() and zero.item() == plain.zero_point.item()
        assert layer.observers["percentile"].count == x.numel()
    assert "16" not in stats and "5 batches" in repr(stats)


def test_observers_can_be_made_by_functions(tiny):
    model, _ = tiny
    makers = {"p90": lambda: Percentile(90), "slow": lambda: MovingAverage(0.5)}
    stats = capture(model, batches(2), makers)
    first, second = list(stats.values())[:2]
    assert first.observers["p90"].p == 90 and first.observers["slow"].momentum == 0.5
    assert first.observers["p90"] is not second.observers["p90"]


def alive():
    """Bytes of all tensors and NumPy arrays that are reachable."""
    gc.collect()
    total = 0
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter):
            total += thing.numel() * thing.element_size()
    return total


def test_memory_does_not_grow_with_the_number_of_batches(tiny):
    import tracemalloc

    model, _ = tiny
    names = ("minmax", "moving-average", "percentile", "entropy")

    def stream(count, sizes):
        for i in range(count):
            if i in (2, count - 1):
                sizes.append((alive(), tracemalloc.get_traced_memory()[0]))
            yield batches(1, seed=i)[0]

    sizes = []
    tracemalloc.start()
    try:
        stats = capture(model, stream(16, sizes), names)
    finally:
        tracemalloc.stop()
    # The kept values of `mse` are bounded too.
    small = capture(model, stream(16, []), {"mse": lambda: qlab.calibrate.MseOptimal(keep=1000)})
    (tensors_early, arrays_early), (tensors_late, arrays_late) = sizes
    assert stats.batches == 16
    # Fewer only where the collector frees what another test has left behind.
    assert tensors_late <= tensors_early
    # Python's own small objects come and go: 13 batches of one layer with 96
    # inputs would be 80 KB, of all layers 800 KB.
    assert arrays_late - arrays_early < 60_000
    assert not any(layer.observers["mse"].exact for layer in small.values())


def test_the_model_is_left_as_it_was(tiny):
    model, _ = tiny
    model.train()
    model.model.layers[0].eval()
    try:
        before = {m: m.training for m in model.modules()}
        capture(model, batches(1))
        assert hooks_of(model) == 0
        assert all(m.training == mode for m, mode in before.items())
        assert all(p.grad is None for p in model.parameters())

        def broken():
            yield batches(1)[0]
            raise RuntimeError("the data ended early")

        with pytest.raises(RuntimeError, match="ended early"):
            capture(model, broken())
        with pytest.raises(IndexError):
            capture(model, [torch.tensor([[10_000]])])  # no such token
        assert hooks_of(model) == 0
        assert all(m.training == mode for m, mode in before.items())
    finally:
        model.eval()


def test_other_layers_and_keyword_inputs():
    import transformers as t

    config = t.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    stats = capture(t.GPT2LMHeadModel(config).eval(), batches(2))
    assert stats["transformer.h.0.mlp.c_proj"].absmax.shape == (128,)

    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)
            self.unused = nn.Linear(4, 2)

        def forward(self, ids):
            return self.inner(input=ids.float()[..., None].expand(-1, -1, 4))

    stats = capture(Keywords(), batches(2))
    assert stats["inner"].tokens == 32
    with pytest.raises(qlab.QlabError, match="'unused' saw no tokens"):
        stats["unused"].absmax  # noqa: B018
    half = capture(Keywords(), [torch.zeros((1, 0), dtype=torch.int64), batches(1)[0]])
    assert half["inner"].tokens == 16


def test_bad_input_names_the_thing(tiny):
    model, _ = tiny
    with pytest.raises(qlab.QlabError, match="no batches"):
        capture(model, [])
    with pytest.raises(qlab.QlabError, match="no linear layers"):
        capture(nn.ReLU(), batches(1))
    with pytest.raises(qlab.QlabError, match="unknown observer 'max'"):
        capture(model, batches(1), ("max",))
    with pytest.raises(qlab.QlabError, match="list of names"):
        capture(model, batches(1), "minmax")
    stats = capture(model, batches(1))
    with pytest.raises(qlab.QlabError, match="no layer 'lm_head' was captured"):
        stats["lm_head"]
    with torch.no_grad():
        weight = model.model.layers[1].input_layernorm.weight
        kept = weight[3].clone()
        weight[3] = float("inf")
        with pytest.raises(qlab.QlabError, match=r"batch 0: .*layers\.1\.self_attn.* position"):
            capture(model, batches(1))
        weight[3] = kept
    assert hooks_of(model) == 0


def test_stats_need_no_gradient_and_take_bfloat16():
    model = nn.Sequential(nn.Embedding(300, 8), nn.Linear(8, 4)).bfloat16()
    stats = capture(model, batches(2))
    assert stats["1"].absmax.dtype == torch.float32 and not stats["1"].absmax.requires_grad
    x = model[0](torch.cat(batches(2))).float().detach()
    assert stats["1"].maximum == float(x.max())
