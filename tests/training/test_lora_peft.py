"""Ours beside peft and bitsandbytes on the CPU: outputs, gradients, loss curves, merged weights."""

from __future__ import annotations

import logging

import pytest
import torch

import qlab
from qlab.nn import weight_of
from qlab.training import TrainOptions, train
from qlab.training.lora import LoraLinear, add_lora, lora_layers, merge
from tests.training.lora_cases import batch, fill, llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "model"
    llama().save_pretrained(path)
    return path


@pytest.fixture
def theirs(folder):
    """peft on bitsandbytes' NF4. Never run it in evaluation mode before training: on some CPUs one
    such forward pass repacks the weights, and no gradient comes through afterwards."""
    logging.disable(logging.WARNING)
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    yield get_peft_model(base, lora)
    logging.disable(logging.NOTSET)


@pytest.fixture
def ours():
    base, _ = qlab.quantize_model(llama(), "nf4", "nf4-g64")
    return add_lora(base, 4, 8)


def layer_of(theirs, name):
    return theirs.get_submodule(f"base_model.model.{name}")


def copy_adapters(ours, theirs):
    for name, layer in lora_layers(ours):
        other = layer_of(theirs, name)
        other.lora_A["default"].weight.data.copy_(layer.lora_A)
        other.lora_B["default"].weight.data.copy_(layer.lora_B)


@pytest.mark.oracle("training qlora", "bitsandbytes", "equal bits of the frozen base")
def test_the_base_is_bitsandbytes(ours, theirs):
    from bitsandbytes.functional import dequantize_4bit

    names = [name for name, _ in lora_layers(ours)]
    assert len(names) == 14 == sum(hasattr(m, "lora_A") for m in theirs.modules())
    for name in names:
        weight = layer_of(theirs, name).base_layer.weight
        assert torch.equal(
            dequantize_4bit(weight.data, weight.quant_state), ours.get_submodule(name).base.weight
        )


@pytest.mark.oracle("training qlora", "peft", "the same losses and gradients, to rounding")
def test_outputs_gradients_and_the_loss_curve(ours, theirs):
    copy_adapters(fill(ours), theirs)
    ids, found = batch(0), []
    for model in (ours, theirs):
        model.train()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append(loss.item())
    # The same operations in the same order: equal, or off by an order of sums.
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    for name, layer in lora_layers(ours):
        other = layer_of(theirs, name)
        for part in ("lora_A", "lora_B"):
            a, b = getattr(layer, part).grad, getattr(other, part)["default"].weight.grad
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 + 1e-5 * float(b.abs().max()))
    for model in (ours, theirs):
        model.zero_grad()
    options = TrainOptions(steps=12, lr=1e-2, warmup=2)
    a, b = (
        [row.loss for row in train(m, lambda step: batch(step % 2), options)]
        for m in (ours, theirs)
    )
    assert a == pytest.approx(b, rel=1e-4) and min(a[-3:]) < 0.9 * a[0]


def test_dropout_draws_the_same(ours):
    """A layer of peft over a plain one, with dropout, from the same seed."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    linear = torch.nn.Linear(64, 48)
    layer = LoraLinear(linear, 4, 8, dropout=0.3)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3)
    other = Linear(linear, "default", config, r=4, lora_alpha=8)
    with torch.no_grad():
        layer.lora_B.normal_()
        other.lora_A["default"].weight.copy_(layer.lora_A)
        other.lora_B["default"].weight.copy_(layer.lora_B)
    x, found = torch.randn(3, 64), []
    for one in (layer, other):
        torch.manual_seed(7)
        found.append(one.train()(x))
    assert torch.equal(*found)


@pytest.mark.oracle("training qlora", "peft", "equal bits of the merged weights")
def test_merged_weights(ours, theirs):
    """Into float, and back into NF4 as peft does it: the same bytes."""
    from bitsandbytes.functional import dequantize_4bit

    copy_adapters(fill(ours), theirs)
    whole = merge(ours)
    again, _ = qlab.quantize_model(whole, "nf4", "nf4-g64")
    with pytest.warns(UserWarning, match="rounding errors"):
        theirs.merge_adapter()
    for name, _ in lora_layers(ours):
        weight = layer_of(theirs, name).base_layer.weight
        restored = dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(restored, again.get_submodule(name).weight)


def test_merging_a_plain_model_as_peft_does():
    from peft import LoraConfig, get_peft_model

    ours = fill(add_lora(llama(), 4, 8))
    theirs = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    copy_adapters(ours, theirs)
    merged, whole = theirs.merge_and_unload(), merge(ours)
    for name, _ in lora_layers(ours):
        assert torch.equal(
            weight_of(merged.get_submodule(name)), weight_of(whole.get_submodule(name))
        )
