"""Fixtures that several folders of tests use."""

import pytest

pytest_plugins = ["tests.coverage_plugin"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small random Llama with a small tokenizer: (model, tokenizer). Do not change it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from qlab.story.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["once upon a time the fox and the moon"] * 3, 300, 512)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    """The same model as a Hugging Face folder. Do not change it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model, tokenizer = tiny
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
