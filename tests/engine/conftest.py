"""Models that the engine's tests share."""

import pytest
import torch

SHAPES = {
    # Heads share keys, embeddings are the output matrix.
    "llama": dict(num_key_value_heads=2, tie_word_embeddings=True),
    # Every bias there is, an output matrix, heads of a size that is no whole register.
    "llama-bias": dict(
        num_key_value_heads=4,
        head_dim=12,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "llama3": dict(
        num_key_value_heads=1,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "linear": dict(
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    ),
    "mistral": dict(num_key_value_heads=2, sliding_window=None),
    "qwen2": dict(num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": dict(num_key_value_heads=2, head_dim=24, tie_word_embeddings=False),
}


def make(kind, **changes):
    """A small random model of a kind, with weights large enough that the next token is clear."""
    import transformers as t

    torch.manual_seed(0)
    name = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}.get(kind, "Llama")
    config = getattr(t, f"{name}Config")(
        **{
            "vocab_size": 131,
            "hidden_size": 64,
            "intermediate_size": 104,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "initializer_range": 0.15,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            **SHAPES[kind],
            **changes,
        }
    )
    model = getattr(t, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():  # biases begin as zeros, which would hide them, and norms as ones
        for key, p in model.named_parameters():
            if key.endswith("bias"):
                p.normal_(0, 0.3)
            elif "norm" in key:
                p.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session", params=list(SHAPES))
def any_model(request):
    """Each of the shapes. Do not change it."""
    return make(request.param)


@pytest.fixture(scope="session")
def story():
    import qlab

    return qlab.story.load()
