"""Small models of fixed random weights, on which all rules of the mixes show.

NumPy draws the weights, so they are the same on every machine and with every version of torch.
"""

import numpy as np

# Each: what it is for, and its sizes.
SIZES = {
    # 16 layers: the first eighth and sixteenth exist. Four heads share a key: attn_v gets more.
    # A separate output matrix. 20 ids that the tokenizer does not have.
    "grouped": {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    # Two heads share a key, and the embeddings are the output matrix.
    "tied": {
        "vocab_size": 300,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    # Rows that are whole blocks of 32 and not of 256.
    "odd": {
        "vocab_size": 300,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    # Rows that are no whole blocks.
    "odder": {
        "vocab_size": 300,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    # 80 layers whose heads share keys: a 70B to llama.cpp.
    "eighty": {
        "vocab_size": 300,
        "hidden_size": 256,
        "intermediate_size": 32,
        "num_hidden_layers": 80,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "tie_word_embeddings": False,
    },
}
PROMPTS = (
    "Once upon a time",
    "The old fisherman",
    "Lily had a red ball.",
    "In a small house near the forest",
    '"Where are you going?" asked the bear.',
    "One day, a little boy named Tim",
    "The fox and the moon",
    "It was raining, and",
    "Mia looked at the stars",
    "There was a dragon who",
)


def tokenizer():
    from qlab.story.tokenizer import train_tokenizer

    return train_tokenizer(["once upon a time the fox and the moon"] * 3, 300, 512)


def seeded_model(name="grouped", kind="llama", **changes):
    """A transformers model of type ``kind``, in evaluation mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **{**sizes, "pad_token_id": 0, **SIZES[name], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            shape = tuple(parameter.shape)
            drawn = rng.standard_normal(shape, dtype=np.float32)
            # Heavier tails than a normal distribution's, as weights have.
            drawn = drawn * np.abs(drawn) * np.float32(0.1) if len(shape) > 1 else 1 + 0.1 * drawn
            parameter.copy_(torch.from_numpy(drawn))
    return model.eval()


def seeded_importance(shapes):
    """A random importance row for each matrix: name -> float32 (columns,)."""
    rng = np.random.default_rng(1)
    rows = {}
    for name, shape in sorted(shapes.items()):
        row = rng.lognormal(0, 2, shape[-1]).astype(np.float32)
        if len(shape) == 2 and name not in ("token_embd.weight", "output.weight"):
            rows[name] = row
    return rows


def runs(types):
    """The block types of a file in short: part -> such as ``2 Q6_K, 14 Q4_K`` over the layers.

    Args:
        types: name of each tensor -> its block type, in the order of the file.
    """
    parts = {}
    for name, kind in types.items():
        part = name.split(".", 2)[2] if name.startswith("blk.") else name
        told = parts.setdefault(part, [])
        if told and told[-1][1] == kind:
            told[-1][0] += 1
        else:
            told.append([1, kind])
    return {part: ", ".join(f"{n} {kind}" for n, kind in told) for part, told in parts.items()}
