"""Small random models for the tests of LoRA."""

from __future__ import annotations

import torch


def llama(seed=0):
    """Two layers whose widths are multiples of 64, so that bitsandbytes' blocks end with rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()


def batch(step, rows=2, length=24):
    """Token ids of a step, int64."""
    g = torch.Generator().manual_seed(step)
    return torch.randint(3, 96, (rows, length), generator=g)


def fill(model, seed=0, size=0.05):
    """Give every adapter a B that is not zero."""
    from qlab.training.lora import lora_layers

    g = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        with torch.no_grad():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=g) * size)
    return model
