"""What the chapter on the cache says, on input of our own."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

import qlab
from qlab.cache import QuantizedCache, cache_bytes, cached_logits, quantize_offset

seeds = st.integers(0, 2**32 - 1)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kivi(x, bits, tokens=1, channels=1):
    """The chapter's."""
    *rest, t, d = x.shape
    blocks = x.reshape(*rest, t // tokens, tokens, d // channels, channels)
    m = blocks.amin((-3, -1), keepdim=True)
    s = (blocks.amax((-3, -1), keepdim=True) - m) / (2**bits - 1)
    return (((blocks - m) / s).round() * s + m).reshape(x.shape)


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds, bits=st.integers(1, 8), tokens=st.sampled_from([2, 4, 8]), shift=st.floats(-9, 9)
)
def test_the_open_cell_is_qlabs(seed, bits, tokens, shift):
    x = draw(seed, 2, 16, 8) + shift
    for word, cut in ((f"b{tokens}x1", {"tokens": tokens}), (f"g{tokens}", {"channels": tokens})):
        q = quantize_offset(x, f"int{bits}-asym-{word}")
        assert torch.equal(q.dequantize(), kivi(x, bits, **cut))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, bits=st.integers(3, 4), power=st.integers(3, 8))
def test_a_far_channel_costs_nothing_along_tokens_and_much_along_channels(seed, bits, power):
    x = draw(seed, 1, 2, 64, 32)
    far = x.clone()
    far[..., 5] *= 2.0**power
    others = torch.arange(32) != 5
    along, across = f"int{bits}-asym-b32x1", f"int{bits}-asym-g32"
    assert torch.equal(quantize_offset(far, along).codes, quantize_offset(x, along).codes)
    before = qlab.sqnr(x[..., others], quantize_offset(x, across).dequantize()[..., others])
    after = qlab.sqnr(x[..., others], quantize_offset(far, across).dequantize()[..., others])
    assert after < before - 3


@settings(max_examples=30, deadline=None)
@given(seed=seeds, shift=st.floats(4, 100))
def test_a_number_as_zero_is_worth_most_far_from_zero(seed, shift):
    x = draw(seed, 1, 1, 32, 32) + shift
    real = qlab.sqnr(x, quantize_offset(x, "int3-asym-b32x1").dequantize())
    assert real > qlab.sqnr(x, qlab.quantize(x, "int3-asym-b32x1").dequantize()) + 1


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_rounding_again_in_the_same_blocks_changes_nothing(seed):
    once = quantize_offset(draw(seed, 1, 1, 32, 64), "int4-asym-g32").dequantize()
    again = quantize_offset(once, "int4-asym-g32").dequantize()
    torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-6)


def test_scaled_keys_and_queries_make_the_same_model_and_the_same_codes():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.arange(64)[None] + 3
    word = "int3-asym-b8x1"
    with torch.no_grad():
        exact = cached_logits(model, ids, DynamicCache(), 16)
        coarse = cached_logits(model, ids, QuantizedCache(config, word, None, 0), 16)
        for block in model.model.layers:
            for channel in (5, 21, 37, 53):  # RoPE mixes 5 and 21 of a head of 32
                block.self_attn.k_proj.weight[channel] *= 16
                block.self_attn.q_proj.weight[channel] /= 16
        assert torch.equal(cached_logits(model, ids, DynamicCache(), 16), exact)
        assert torch.equal(
            cached_logits(model, ids, QuantizedCache(config, word, None, 0), 16), coarse
        )
        across = cached_logits(model, ids, QuantizedCache(config, "int3-asym-g8", None, 0), 16)
    assert (across - exact).square().mean() > 2 * (coarse - exact).square().mean() > 0


def test_a_token_of_llama_takes_half_a_megabyte():
    """Llama-2-7B: 2 · 32 · 32 · 128 numbers of two bytes. Llama-3.1-8B shares keys: a quarter."""
    two = transformers.LlamaConfig(num_hidden_layers=32, num_attention_heads=32, hidden_size=4096)
    assert cache_bytes(two, 1) == 524_288
    two.num_key_value_heads = 8
    assert cache_bytes(two, 1) == 131_072
    assert cache_bytes(two, 10, 3) == pytest.approx(10 * 131_072 * 3 / 16)
