"""The count of memory: published sizes of models, QLoRA's own numbers, and what autograd keeps."""

from __future__ import annotations

import pytest
import torch

import qlab
from qlab.training.lora import add_lora
from qlab.training.lora_memory import Shape, fine_tuning_memory, kept_numbers
from tests.training.lora_cases import batch, llama

LLAMA_65B = Shape(8192, 22016, 80, 8192, 32000)


def test_the_count_of_weights():
    model = llama()
    shape = Shape.of(model.config)
    assert shape.linear + shape.rest == sum(p.numel() for p in model.parameters())
    lora = add_lora(model, 5)
    assert shape.adapters(5) == sum(p.numel() for p in lora.parameters() if p.requires_grad)
    # The models' cards: 65.2, 6.74 and 8.03 billion.
    for other, billions in (
        (LLAMA_65B, 65.3),
        (Shape(4096, 11008, 32, 4096, 32000), 6.74),
        (Shape(4096, 14336, 32, 1024, 128256), 8.03),
    ):
        assert (other.linear + other.rest) / 1e9 == pytest.approx(billions, abs=0.01 * billions)


def test_qloras_own_numbers():
    """Section 1: more than 780 GB for 16-bit fine-tuning of 65B, less than 48 GB with QLoRA (rank
    64, rows of 512 tokens, one at a time, with checkpointing)."""
    facts = {"rank": 64, "tokens": 512, "checkpointing": True}
    full, lora, small = (
        fine_tuning_memory(LLAMA_65B, way, **facts) for way in ("full", "lora", "qlora")
    )
    assert 780e9 < full.total < 800e9 and 40e9 < small.total < 48e9
    assert small.total < lora.total < full.total
    # Section 3: double quantization saves 0.37 bits a weight, about 3 GB at 65B.
    plain = fine_tuning_memory(LLAMA_65B, "qlora", bits=4.5, **facts)
    assert plain.weights - small.weights == pytest.approx(3e9, rel=0.02)
    # The parts are what the header says.
    weights = LLAMA_65B.linear + LLAMA_65B.rest
    assert full.weights == full.gradients == 2 * weights and full.optimizer == 8 * weights
    assert small.optimizer == 4 * small.gradients == 8 * LLAMA_65B.adapters(64)


@pytest.mark.parametrize("way", ["full", "lora", "qlora"])
def test_autograd_keeps_what_is_counted(way):
    """Every tensor that the forward pass saves, on a float32 model: 4 bytes a number."""
    model = llama()
    if way == "qlora":
        model, _ = qlab.quantize_model(model, "nf4", "nf4-g64")
    if way != "full":
        model = add_lora(model, 4)
    ids = batch(0, 2, 64)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(input_ids=ids, labels=ids).loss
    assert loss.requires_grad
    shape = Shape.of(model.config)
    counted = 4 * ids.numel() * (kept_numbers(shape, way, 4) + shape.vocabulary)
    # Left out: the last norm and the output layer (3 widths), a mean for each norm, tables of
    # angles and the ids themselves.
    assert counted <= sum(seen.values()) * 1.02 < 1.15 * counted


def test_laws():
    shape = Shape.of(llama().config)
    one, two = (fine_tuning_memory(shape, "qlora", tokens=n) for n in (100, 200))
    assert two.activations == 2 * one.activations and two.weights == one.weights
    small, large = (fine_tuning_memory(shape, "lora", rank=r) for r in (4, 8))
    assert large.adapters == 2 * small.adapters and large.optimizer == 2 * small.optimizer
    for way in ("full", "lora"):
        assert kept_numbers(shape, way, 4, True) < kept_numbers(shape, way, 4)
    for way, options, message in (
        ("some", {}, "no way 'some'"),
        ("lora", {"rank": 0}, "rank is 0"),
        ("full", {"tokens": -1}, "tokens is -1"),
        ("qlora", {"bits": float("nan")}, "bits is nan"),
    ):
        with pytest.raises(qlab.QlabError, match=message):
            fine_tuning_memory(shape, way, **options)
