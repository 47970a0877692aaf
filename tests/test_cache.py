"""The quantized cache: KIVI's arithmetic, what stays exact, bytes, and how it grows."""

import itertools
import json

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache
from transformers.cache_utils import QuantizedCache as TransformersCache

import qlab
from qlab.cache import (
    QuantizedCache,
    QuantizedStates,
    cache_bytes,
    cache_perplexity,
    quantize_offset,
)
from qlab.core import Scheme
from tests.models import random_model
from tools.record_kv_cache import KINDS, OUT, digest, states

seeds = st.integers(0, 2**32 - 1)
WAYS = ["int4-asym-b8x1", "int2-asym-g8-sfp16", "int3-asym-token", "int8-g8-sfp16", "nf4-g8"]


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def kivi(x, bits, dim, group):
    """Algorithm 1 and equation 1 of KIVI in plain torch: codes and what they give back."""
    blocks = x.unflatten(dim, (-1, group))
    inside = dim if dim < 0 else dim + 1
    low, high = blocks.amin(inside, keepdim=True), blocks.amax(inside, keepdim=True)
    s = (high - low) / (2**bits - 1)
    s = torch.where(s == 0, torch.ones_like(s), s)
    codes = ((blocks - low) / s).round().clamp(0, 2**bits - 1)
    return codes.reshape(x.shape), (codes * s + low).reshape(x.shape)


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    bits=st.integers(1, 8),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    shift=st.sampled_from([0.0, 3.0, -100.0]),
    keys=st.booleans(),
)
def test_the_arithmetic_is_kivis(seed, bits, size, shift, keys):
    x = (draw(seed, 2, 3, 16, 8) + shift) * size
    word = f"int{bits}-asym-" + ("b8x1" if keys else "g4")
    q = quantize_offset(x, word)
    codes, restored = kivi(x, bits, *((-2, 8) if keys else (-1, 4)))
    assert torch.equal(q.codes.float(), codes) and torch.equal(q.dequantize(), restored)


def test_codes_are_those_of_quanto():
    """Recorded from transformers' QuantizedCache by tools/record_kv_cache.py.

    Its axis 0, the default, cuts along the channels of a token; axis -1 along tokens.
    """
    record = json.loads(OUT.read_text(encoding="utf-8"))
    assert {(r["kind"], r["bits"], r["axis"]) for r in record["results"]} == {
        (kind, bits, axis) for kind in KINDS for bits in (2, 4) for axis in (0, -1)
    }
    for r in record["results"]:
        cut = "g64" if r["axis"] == 0 else "b64x1"
        q = quantize_offset(states(r["kind"]), f"int{r['bits']}-asym-{cut}")
        assert digest(q.codes) == r["codes"], r
        # Sums of float64; a constant channel has a scale of its own in quanto.
        assert float(q.dequantize().double().square().sum()) == pytest.approx(
            r["restored"], rel=1e-6
        )
        assert float(q.minimum.double().abs().sum()) == pytest.approx(r["shift"], rel=1e-6)
        if (r["kind"], r["axis"]) != ("constant", -1):
            assert float(q.scale.double().abs().sum()) == pytest.approx(r["scale"], rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, bits=st.integers(1, 8), half=st.booleans(), shift=st.floats(-50, 50))
def test_no_error_is_above_half_a_step(seed, bits, half, shift):
    x = draw(seed, 1, 2, 16, 8) + shift
    q = quantize_offset(x, f"int{bits}-asym-b8x1" + ("-sfp16" if half else ""))
    s = q.scale.float().repeat_interleave(8, -2)
    reach = x.abs().amax() + s * 2**bits
    # In float16 the minimum and the far end move by up to 2^-11 of their size.
    slack = reach * (2.0**-10 if half else 2.0**-21)
    assert ((x - q.dequantize()).abs() <= s / 2 + slack).all()


@pytest.mark.parametrize("half", ["", "-sfp16"])
def test_hard_blocks(half):
    x = torch.zeros(1, 1, 32, 8)
    x[..., 1] = 5.0
    x[..., 2] = -3e-30
    x[..., 3] = torch.linspace(-1, 1, 32)
    x[..., 7, 4] = 30000.0
    q = quantize_offset(x, "int2-asym-b32x1" + half)
    back = q.dequantize()
    assert torch.isfinite(back).all()
    assert torch.equal(back[..., :2], x[..., :2])
    assert back[..., 2].abs().max() <= 1e-7
    assert back[..., 7, 4] == pytest.approx(30000.0, rel=1e-3)
    huge = torch.tensor([[-3e38, 3e38]]).T.expand(2, 8).reshape(1, 1, 2, 8).contiguous()
    if half:
        with pytest.raises(qlab.QlabError, match="leave out '-sfp16'"):
            quantize_offset(huge, "int4-asym-b2x1-sfp16")
    else:
        assert torch.isfinite(quantize_offset(huge, "int4-asym-b2x1").dequantize()).all()
    x[0, 0, 3, 3] = float("nan")
    with pytest.raises(qlab.QlabError, match="not finite"):
        quantize_offset(x, "int4-asym-b32x1" + half)


def of(kind):
    if kind != "llama":
        return random_model(kind)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


IDS = torch.arange(80).reshape(2, 40) % 97 + 3


@torch.no_grad()
def read(model, cache, chunk, ids=IDS):
    parts = [
        model(ids[:, i : i + chunk], past_key_values=cache, use_cache=True).logits
        for i in range(0, ids.shape[1], chunk)
    ]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "opt"])
def test_a_residual_that_holds_all_changes_nothing(kind):
    model = of(kind)
    for chunk in (1, 7, 40):
        ours = QuantizedCache(model.config, "int4-asym-b8x1", "int4-asym-g8", residual=40)
        theirs = DynamicCache()
        assert torch.equal(read(model, ours, chunk), read(model, theirs, chunk))
        assert ours.get_seq_length() == 40
        for a, b in zip(ours.layers, theirs.layers, strict=True):
            assert torch.equal(a.key_states.read(), b.keys)
            assert torch.equal(a.value_states.read(), b.values)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_generation_in_sixteen_bits_and_more_is_the_ordinary_one(kind):
    model = of(kind)
    how = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(IDS[:, :9], **how)
    for word in (None, "fp32"):
        cache = QuantizedCache(model.config, word, word, residual=0)
        assert torch.equal(model.generate(IDS[:, :9], past_key_values=cache, **how), plain)
        assert cache.get_seq_length() == 28
    half = of(kind).to(torch.bfloat16)
    cache = QuantizedCache(model.config, "bf16", "bf16", residual=3)
    assert torch.equal(
        half.generate(IDS[:, :9], past_key_values=cache, **how), half.generate(IDS[:, :9], **how)
    )
    beams = {**how, "num_beams": 3}
    cache = QuantizedCache(model.config, "fp32", "fp32", residual=5)
    assert torch.equal(
        model.generate(IDS[:, :9], past_key_values=cache, **beams),
        model.generate(IDS[:, :9], **beams),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    word=st.sampled_from(WAYS),
    cuts=st.lists(st.integers(1, 39), max_size=6),
    residual=st.integers(0, 45),
)
def test_what_is_stored_does_not_depend_on_the_chunks(seed, word, cuts, residual):
    x = draw(seed, 2, 3, 40, 16)
    one = QuantizedStates(Scheme.parse(word), residual)
    one.append(x)
    other = QuantizedStates(Scheme.parse(word), residual)
    borders = [0, *sorted(set(cuts)), 40]
    for a, b in itertools.pairwise(borders):
        other.append(x[..., a:b, :])
        assert len(other) == b
    assert torch.equal(one.read(), other.read())
    assert one.nbytes == other.nbytes
    # What is recent is exact, and no more of it than the residual and a block.
    recent = other.recent.shape[-2]
    assert min(40, residual) <= recent < max(residual + other.step, 1) + (residual >= 40) * 40
    assert torch.equal(other.read()[..., 40 - recent :, :], x[..., 40 - recent :, :])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_first_chunk_is_exact_and_all_bits_come_near(kind):
    model = of(kind)
    plain = read(model, DynamicCache(), 40)
    errors = []
    for bits in (2, 4, 8):
        cache = QuantizedCache(
            model.config, f"int{bits}-asym-b4x1", f"int{bits}-asym-g8", residual=0
        )
        found = read(model, cache, 10)
        torch.testing.assert_close(found[:, :10], plain[:, :10], rtol=1e-4, atol=1e-5)
        errors.append(float((found - plain).square().mean()))
    # Four times the steps: a sixteenth of the squared error; 6 leaves room for what is not noise.
    assert errors[0] > 6 * errors[1] > 36 * errors[2] > 0, errors


def test_bytes_are_counted():
    model = of("llama")
    layers, heads, size = 2, 2, 8
    for word, bits in (
        ("int4-asym-b8x1-sfp16", 4 + 32 / 8),
        ("int2-asym-g8", 2 + 64 / 8),
        ("int8-g8-sfp16", 8 + 16 / 8),
    ):
        cache = QuantizedCache(model.config, word, None, residual=8)
        read(model, cache, 5)
        keys = heads * size * (32 * bits / 8 + 8 * 4)
        assert cache.nbytes == 2 * layers * (keys + heads * size * 40 * 4)  # two sequences
    cache = QuantizedCache(model.config, None, None)
    read(model, cache, 40)
    assert cache.nbytes == 2 * cache_bytes(model.config, 40, 32)
    assert cache_bytes(transformers.GPT2Config(), 1024) == 2 * 12 * 768 * 1024 * 2
    cache.reset()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0


@pytest.mark.parametrize("word", ["int4-asym-b8x1", "int4-asym-g8", "fp8_e4m3-tensor", "int8-g8"])
def test_sequences_can_be_chosen(word):
    x = draw(1, 3, 2, 21, 8)
    kept = QuantizedStates(Scheme.parse(word), 2)
    kept.append(x)
    before, order = kept.read(), torch.tensor([2, 0, 0])
    kept.select(order)
    assert torch.equal(kept.read(), before[order])


def test_recent_tokens_can_be_taken_back():
    model = of("llama")
    cache = QuantizedCache(model.config, "int4-asym-b4x1", "int4-asym-g8", residual=4)
    read(model, cache, 10, IDS[:, :10])
    cache.crop(-3)
    assert cache.get_seq_length() == 7
    with pytest.raises(qlab.QlabError, match="larger residual"):
        cache.crop(-5)
    assert cache.get_seq_length() == 7


def test_fp8_is_that_of_transformers():
    """One scale a layer, fixed by the first tokens: the codes are equal bit for bit."""
    model = of("llama")
    theirs = TransformersCache("fp8", model.config)
    ours = QuantizedCache(model.config, "fp8_e4m3-tensor", "fp8_e4m3-tensor", residual=0)
    with torch.no_grad():
        for i in (0, 20, 30):  # the first call fixes the scale, and returns its tokens exactly
            chunk = draw(i, 1, 2, 10, 8) * (1 + i)  # later ones reach beyond it
            theirs.update(chunk, chunk * 3, 0)
            ours.update(chunk, chunk * 3, 0)
    layer = theirs.layers[0]
    for kept, q in (
        (ours.layers[0].key_states, layer._quantized_keys),
        (ours.layers[0].value_states, layer._quantized_values),
    ):
        clear = q[0].float().isfinite()  # torch's cast overflows to NaN; ours saturates
        same = kept.stored.codes[clear] == q[0].view(torch.uint8)[clear]
        # One divides by the scale, the other multiplies by its inverse: ties may fall apart.
        assert same.float().mean() > 0.99
        torch.testing.assert_close(
            kept.stored.scale.reshape(()), q[1].reshape(()), rtol=1e-6, atol=0
        )


def test_perplexity_through_an_exact_cache_is_perplexity(tiny):
    model, tokenizer = tiny
    texts = ["once upon a time the fox and the moon", "the moon and the fox " * 5]
    whole = qlab.perplexity(model, tokenizer, texts)
    for chunk in (1, 6, 500):
        found = cache_perplexity(model, tokenizer, texts, DynamicCache, chunk)
        assert found == pytest.approx(whole, rel=1e-5)
    exact = cache_perplexity(
        model, tokenizer, texts, lambda: QuantizedCache(model.config, residual=500), 3, batch=1
    )
    assert exact == pytest.approx(whole, rel=1e-5)

    def coarse():
        return QuantizedCache(model.config, "int2-asym-b4x1", "int2-asym-g32", residual=0)

    one = cache_perplexity(model, tokenizer, texts, coarse)
    # Padding of a batch changes nothing.
    assert one == pytest.approx(
        cache_perplexity(model, tokenizer, texts, coarse, batch=1), rel=1e-4
    )
    assert one != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_scheme": "int4-asym-channel"}, "b32x1"),
        ({"key_scheme": "int4-asym-global"}, "cannot grow"),
        ({"value_scheme": "nvfp4"}, "grows"),
        ({"value_scheme": "kmeans4"}, "grows"),
        ({"value_scheme": "int4-asym-g64"}, "does not divide heads of 8"),
        ({"residual": -1}, "0 or more"),
        ({"zero": "none"}, "'real' or 'integer'"),
    ],
)
def test_what_cannot_be_done_is_refused(change, message):
    with pytest.raises(qlab.QlabError, match=message):
        QuantizedCache(of("llama").config, **change)


def test_other_layers_are_refused(tiny):
    config = transformers.MistralConfig(sliding_window=16)
    with pytest.raises(qlab.QlabError, match="full attention"):
        QuantizedCache(config)
    with pytest.raises(qlab.QlabError, match="chunk 0"):
        cache_perplexity(*tiny, "once upon a time", DynamicCache, 0)
    with pytest.raises(qlab.QlabError, match="too few tokens"):
        cache_perplexity(*tiny, "", DynamicCache)
