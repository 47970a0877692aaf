"""What the chapter on fine-tuning says of memory, gradients, merging and starts, on our input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import qlab
from qlab.nn import QuantLinear
from qlab.training.lora import FrozenMatmul, LoraLinear
from qlab.training.lora_init import loftq
from qlab.training.lora_memory import Shape, fine_tuning_memory

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "qlora.md"
LLAMA_8B = Shape(4096, 14336, 32, 1024, 128256)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(seed=0, word="nf4-g64", out=96, into=128):
    return QuantLinear(qlab.quantize(normal(seed, out, into), word))


@pytest.mark.parametrize("billions", [1, 7, 65])
def test_twelve_bytes_a_weight_that_learns(billions):
    layers = round(billions * 1e9 / (4 * 4096**2 + 3 * 4096 * 11008))
    shape = Shape(4096, 11008, max(1, layers), 4096, 32000)
    full, small = (fine_tuning_memory(shape, way, rank=8) for way in ("full", "qlora"))
    weights = shape.linear + shape.rest
    assert full.total - full.activations == 12 * weights
    exact = shape.linear * (4 + 8 / 64 + 32 / 16384) / 8 + 2 * shape.rest + 12 * shape.adapters(8)
    assert small.total - small.activations == pytest.approx(exact)
    # LoRA does not make the activations fewer by much; checkpointing does.
    lora = fine_tuning_memory(shape, "lora", rank=8)
    assert 0.8 * full.activations < lora.activations < full.activations
    less = fine_tuning_memory(shape, "lora", rank=8, checkpointing=True)
    assert less.activations < 0.6 * lora.activations


def test_the_share_that_learns_falls_with_the_width():
    shares = []
    for width in (256, 1024, 4096):
        shape = Shape(width, 3 * width, 4, width, 4096)
        shares.append(shape.adapters(8) / shape.linear)
    assert shares[0] == pytest.approx(4 * shares[1]) == pytest.approx(16 * shares[2])


@pytest.mark.parametrize("word", ["nf4-g64", "int2-asym-g64", "int8-channel"])
def test_the_careful_backward_pass_is_the_careless_one(word):
    layer = quantized(1, word)
    x, grad = normal(2, 5, 128).requires_grad_(), normal(3, 5, 96)
    (a,) = torch.autograd.grad(FrozenMatmul.apply(x, layer), x, grad)
    (b,) = torch.autograd.grad(layer(x), x, grad)
    # Sums of 96 float32 products of size 1.
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_with_both_at_zero_nothing_moves():
    for a, b in ((1, 0), (0, 0), (1, 1)):
        layer = LoraLinear(quantized(4), 4, 8)
        with torch.no_grad():
            layer.lora_A.mul_(a)
            layer.lora_B.copy_(normal(5, 96, 4) * b)
        (layer(normal(6, 7, 128)) - normal(7, 7, 96)).square().mean().backward()
        moves = [float(p.grad.abs().sum()) > 0 for p in (layer.lora_A, layer.lora_B)]
        assert moves == [b == 1, a == 1]


@pytest.mark.parametrize("size", [0.01, 0.1, 0.5])
def test_rounding_a_merged_weight_brings_a_second_error(size):
    """As large as the first one, whatever the adapter, unless it moves no code at all."""
    w = normal(8, 96, 128)
    first = qlab.quantize(w, "nf4-g64")
    delta = normal(9, 96, 4) @ normal(10, 4, 128)
    delta = delta * (size * w.norm() / delta.norm())
    merged = first.dequantize() + delta
    again = qlab.quantize(merged, "nf4-g64")
    one, two = (float((a - b.dequantize()).norm()) for a, b in ((w, first), (merged, again)))
    assert two < 1.3 * one
    if size >= 0.1:
        assert two > 0.6 * one
    moved = float((first.codes != again.codes).float().mean())
    assert (moved < 0.15) if size == 0.01 else (moved > 0.1)


def test_a_correction_pays_where_much_was_lost():
    w = normal(11, 256, 256)
    gain = {}
    for word in ("nf4-g64", "int2-asym-g64"):
        q = qlab.quantize(w, word)
        _, left, right = loftq(w, lambda x, word=word: qlab.quantize(x, word), 16)
        before = float((w - q.dequantize()).square().sum())
        gain[word] = before - float((w - q.dequantize() - left @ right).square().sum())
    assert gain["int2-asym-g64"] > 10 * gain["nf4-g64"] > 0


def test_merging_into_a_real_zero_point_is_exact():
    """QA-LoRA: an adapter that sees sums of groups moves zero points and no code."""
    q, g = qlab.quantize(normal(12, 48, 128), "int4-asym-g32"), 32
    low = normal(13, 48, 3) @ normal(14, 3, 128 // g) * 0.1
    x = normal(15, 9, 128)
    beside = x @ q.dequantize().T + x.reshape(9, -1, g).sum(-1) @ low.T
    zero = q.zero_point - low / q.scale
    both = ((q.codes.reshape(48, -1, g) - zero[..., None]) * q.scale[..., None]).reshape(48, 128)
    torch.testing.assert_close(x @ both.T, beside, rtol=1e-5, atol=1e-4)


def test_pages_move_what_is_missing_and_only_the_optimizer():
    """The chapter's own function, on lengths of ours."""
    text = CHAPTER.read_text(encoding="utf-8")
    source = re.search(r"^def paged\(.*?^    return [^\n]*\n", text, re.S | re.M)[0]
    space = {"fine_tuning_memory": fine_tuning_memory, "llama8": LLAMA_8B}
    exec(source, space)
    facts = {"rank": 64, "checkpointing": True}
    need = fine_tuning_memory(LLAMA_8B, "qlora", tokens=4000, **facts)
    lengths = np.array([1000, 4000, 2000])
    assert space["paged"](lengths, need.total)[:2] == (0, 0)
    over, moved, seconds = space["paged"](lengths, need.total - 1e8)
    assert over == 1 and moved == pytest.approx(2e8) and seconds == pytest.approx(moved / 25e9)
    with pytest.raises(MemoryError, match="4000 tokens"):
        space["paged"](lengths, need.total - need.optimizer - 1e6)


def test_the_sailors_rules_are_words_and_not_parts():
    text = CHAPTER.read_text(encoding="utf-8")
    source = re.search(r"^RULES = \{.*?^    return [^\n]*\n", text, re.S | re.M)[0]
    space = {"re": re}
    exec(source, space)
    assert space["sailor"](
        "The king and my friend are playing to your house, little sand of mine."
    ) == ("Arr! The king an' me matey be playin' t' yer ship, wee sand o' mine.")
