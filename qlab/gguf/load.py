"""A GGUF file to a transformers model and its tokenizer.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlab.gguf import architectures
from qlab.gguf.architectures import Architecture, uninterleave
from qlab.gguf.arithmetic import Array
from qlab.gguf.convert import ROPE_FREQS
from qlab.gguf.errors import GGUFError
from qlab.gguf.reader import GGUFFile
from qlab.gguf.tokenizers import read_tokenizer


def load_gguf(path: str | Path) -> tuple[Any, Any]:
    """Load a model of the Llama family from a GGUF file, whoever wrote it.

    The weights are dequantized to float32: the model computes with exactly the values that the
    file stands for, and takes the memory of a float32 model.

    Args:
        path: the file.

    Returns: a transformers model in evaluation mode on the CPU, and its tokenizer.

    Raises: GGUFError for an architecture or a tokenizer that is not known here (naming the known
        ones), and for tensors that are missing, too many or of another shape than the file's
        hyperparameters say.

    Chapter: GGUF, byte by byte.
    """
    with GGUFFile(path) as file:
        arch = architectures.of_file(file.metadata)
        config = _config(arch, file)
        tokenizer = read_tokenizer(file.metadata, config.max_position_embeddings)
        return _model(arch, config, file), tokenizer


def _config(arch: Architecture, file: GGUFFile) -> Any:
    from transformers import AutoConfig

    freqs = file.tensors.get(ROPE_FREQS) if arch.rope_freqs else None
    values = architectures.from_metadata(
        arch, file.metadata, None if freqs is None else freqs.dequantize()
    )
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise GGUFError("no tensor token_embd.weight: the file holds no whole model")
    values["vocab_size"] = embeddings.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    if "attn_output" in arch.biases:  # llama: two switches for all biases
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        values["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    elif arch.name == "qwen3":
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    for name, key in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")]:
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        values[f"{name}_token_id"] = number if isinstance(number, int) else None
    return AutoConfig.for_model(arch.model_types[0], **values)


def _model(arch: Architecture, config: Any, file: GGUFFile) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    _check_size(config, file)
    with torch.device("meta"):  # shapes alone: no random weights are drawn to be replaced
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted = model.state_dict()
    state: dict[str, Any] = {}
    used = {ROPE_FREQS} if arch.rope_freqs else set()
    for ours, theirs in architectures.tensor_names(arch, config.num_hidden_layers).items():
        for kind in ("weight", "bias"):
            key, name = f"{theirs}.{kind}", f"{ours}.{kind}"
            if key not in wanted or (ours == "output" and config.tie_word_embeddings):
                continue
            tensor = file.tensors.get(name)
            shape = tuple(wanted[key].shape)
            if tensor is None or tensor.shape != shape:
                there = "is missing" if tensor is None else f"has shape {tensor.shape}"
                raise GGUFError(f"tensor {name} {there}: the model needs {shape}")
            used.add(name)
            values = tensor.dequantize()
            if arch.interleaved:
                values = _uninterleaved(ours, values, config)
            state[key] = torch.from_numpy(values.copy())
    left = sorted(set(file.tensors) - used)
    if left:
        raise GGUFError(f"tensor {left[0]:.80} has no place in a {arch.name} ({len(left)} such)")
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    # The frequencies of RoPE are computed, not stored, so they are still shapes.
    rope = model.model.rotary_emb
    model.model.rotary_emb = type(rope)(config=config)
    return model.eval()


def _uninterleaved(name: str, values: Array, config: Any) -> Array:
    part = name.rpartition(".")[2]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return uninterleave(values, heads[part]) if part in heads else values


def _check_size(config: Any, file: GGUFFile) -> None:
    """Hyperparameters claim a size; make nothing that the file's tensors do not fill."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads = config.num_attention_heads * config.head_dim
    claimed = config.vocab_size * hidden + layers * (3 * hidden * inner + 2 * hidden * heads)
    there = sum(t.size for t in file.tensors.values())
    if claimed > there:
        raise GGUFError(f"the hyperparameters ask for {claimed} weights, the file has {there}")
