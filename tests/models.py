"""Small random models of several architectures."""

import torch


def random_model(kind):
    import transformers as t

    torch.manual_seed(0)
    shape = {"vocab_size": 100, "max_position_embeddings": 64}
    if kind == "gpt2":
        config = t.GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        return t.GPT2LMHeadModel(config).eval()
    if kind == "opt":
        config = t.OPTConfig(
            **shape,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=32,
        )
        return t.OPTForCausalLM(config).eval()
    config = t.Qwen2Config(
        **shape,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return t.Qwen2ForCausalLM(config).eval()
