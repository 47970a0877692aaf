"""Models of the Llama family in GGUF's words: names of tensors, hyperparameters, order of rows.

A GGUF file has no config.json. ``general.architecture`` names a graph that llama.cpp has built in,
keys such as ``llama.block_count`` give its sizes, and each tensor has a name of its own. Three
graphs are known here. Mistral and SmolLM2 are Llamas to llama.cpp.

The names of keys and tensors are those of llama.cpp's ``convert_hf_to_gguf.py``.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.gguf.arithmetic import Array
from qlab.gguf.errors import GGUFError

# GGUF's name of a part to transformers' name of the same part.
OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QKV = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True)
class Architecture:
    """A graph that llama.cpp has built in.

    Attributes:
        name: ``general.architecture``, and the first word of the hyperparameters' keys.
        model_types: ``config.model_type`` of transformers that this graph computes; the first is
            the one that a file loads as.
        interleaved: whether the rows of q and k stand in pairs (see ``interleave``).
        head_norms: whether q and k are normalized in each head.
        biases: the parts that may have a bias.
        rope_freqs: whether the graph reads ``rope_freqs.weight``, a factor for each frequency.
    """

    name: str
    model_types: tuple[str, ...]
    interleaved: bool = False
    head_norms: bool = False
    biases: tuple[str, ...] = ()
    rope_freqs: bool = False

    def seventy(self, layers: int, heads: int, kv_heads: int) -> bool:
        """Whether llama.cpp's rules for mixes take the model for a 70B."""
        if layers != 80:
            return False
        return self.name == "qwen2" or (self.name == "llama" and heads != kv_heads)


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "llama",
            ("llama", "mistral"),
            interleaved=True,
            biases=(*_QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
            rope_freqs=True,
        ),
        Architecture("qwen2", ("qwen2",), biases=_QKV),
        Architecture("qwen3", ("qwen3",), head_norms=True, biases=_QKV),
    )
}


def of_model_type(model_type: str) -> Architecture:
    """The graph for a transformers model. Raises: QlabError naming the known ones."""
    for one in ARCHITECTURES.values():
        if model_type in one.model_types:
            return one
    known = sorted(t for one in ARCHITECTURES.values() for t in one.model_types)
    raise QlabError(
        f"a model of type '{model_type}' cannot be written as GGUF here: known are "
        f"{', '.join(known)}"
    )


def of_file(metadata: Mapping[str, Any]) -> Architecture:
    """The graph that a file names. Raises: GGUFError naming the known ones."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise GGUFError(
            f"a file of architecture {name!r:.60} cannot be loaded as a model here: known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def tensor_names(arch: Architecture, layers: int) -> dict[str, str]:
    """GGUF's name of every part, without ``.weight`` or ``.bias``, to transformers' name.

    In the order in which llama.cpp writes them: the outer ones by their names, then each layer's.
    """
    names = dict(sorted(OUTER.items()))
    for i in range(layers):
        for ours, theirs in sorted(INNER.items()):
            if arch.head_norms or ours not in ("attn_q_norm", "attn_k_norm"):
                names[f"blk.{i}.{ours}"] = f"model.layers.{i}.{theirs}"
    return names


def interleave(rows: Array, heads: int) -> Array:
    """Rows of q or k in the order that llama.cpp's Llama expects.

    RoPE turns pairs of coordinates of a head. transformers pairs coordinate j with j + d/2, the
    code of Llama's authors, which llama.cpp follows, pairs 2j with 2j + 1. The scores between q and
    k do not change if both are reordered in the same way, so the rows are: 0, d/2, 1, d/2 + 1, ...

    Args:
        rows: (heads · d, ...), a weight or a bias.
        heads: number of heads in it.

    Returns: the same rows, reordered.
    """
    paired = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def uninterleave(rows: Array, heads: int) -> Array:
    """The inverse of ``interleave``."""
    paired = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def to_metadata(arch: Architecture, config: Any) -> tuple[dict[str, tuple[Any, str]], Any]:
    """Hyperparameters of a transformers configuration.

    Returns: key -> (value, GGUF type), and the factors of RoPE's frequencies, float32 (d/2,), or
        None.

    Raises: QlabError for what the graph does not compute: another activation, a sliding window in
        some layers, a RoPE of an unknown kind.
    """
    act = getattr(config, "hidden_act", "silu")
    if act != "silu":
        raise QlabError(f"hidden_act '{act}': llama.cpp's {arch.name} computes silu only")
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if arch.name != "llama" and layer_types != {"full_attention"}:
        raise QlabError(f"layers with {layer_types}: llama.cpp's {arch.name} has no such layers")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    context = config.max_position_embeddings
    # llama.cpp's Llama has no sliding window. Up to the window's length both compute the same.
    if arch.name == "llama" and getattr(config, "sliding_window", None):
        context = min(context, config.sliding_window)
    found: dict[str, tuple[Any, str]] = {
        "block_count": (config.num_hidden_layers, "uint32"),
        "context_length": (context, "uint32"),
        "embedding_length": (config.hidden_size, "uint32"),
        "feed_forward_length": (config.intermediate_size, "uint32"),
        "attention.head_count": (heads, "uint32"),
        "attention.head_count_kv": (config.num_key_value_heads, "uint32"),
        "attention.key_length": (head_dim, "uint32"),
        "attention.value_length": (head_dim, "uint32"),
        "attention.layer_norm_rms_epsilon": (config.rms_norm_eps, "float32"),
        "vocab_size": (config.vocab_size, "uint32"),
        "rope.dimension_count": (head_dim, "uint32"),
    }
    rope = dict(getattr(config, "rope_parameters", None) or {})
    found["rope.freq_base"] = (float(rope.get("rope_theta", 10000.0)), "float32")
    kind, freqs = rope.get("rope_type", "default"), None
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise QlabError(f"RoPE over a part of each head: llama.cpp's {arch.name} turns all of it")
    if kind in ("linear", "yarn"):
        found["rope.scaling.type"] = (kind, "string")
        found["rope.scaling.factor"] = (float(rope["factor"]), "float32")
        if kind == "yarn":
            original = rope.get("original_max_position_embeddings") or context
            found["rope.scaling.original_context_length"] = (int(original), "uint32")
    elif kind == "llama3" and arch.rope_freqs:
        freqs = llama3_factors(rope, head_dim)
    elif kind != "default":
        raise QlabError(
            f"RoPE of kind '{kind}' cannot be written for llama.cpp's {arch.name}: known are "
            f"default, linear, yarn{', llama3' if arch.rope_freqs else ''}"
        )
    return {f"{arch.name}.{key}": value for key, value in found.items()}, freqs


def from_metadata(
    arch: Architecture, metadata: Mapping[str, Any], rope_freqs: Array | None
) -> dict[str, Any]:
    """Fields of a transformers configuration.

    Args:
        arch: the graph.
        metadata: of the file.
        rope_freqs: the tensor ``rope_freqs.weight``, or None.

    Raises: GGUFError for a key that is missing or makes no sense.
    """

    def number(key: str, default: Any = None, kind: type = int) -> Any:
        value = metadata.get(f"{arch.name}.{key}", default)
        good = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, good) or not 0 < value < 2**31:
            raise GGUFError(f"{arch.name}.{key} is {value!r:.40}: a positive number is needed")
        # The shortest number that float32 tells apart: 1e-05, not 9.999999747378752e-06.
        return value if kind is int else float(str(np.float32(value)))

    hidden, heads = number("embedding_length"), number("attention.head_count")
    head_dim = number("attention.key_length", hidden // heads)
    context = number("context_length")
    if number("attention.value_length", head_dim) != head_dim:
        raise GGUFError("keys and values of different lengths: no such model is known here")
    if number("rope.dimension_count", head_dim) != head_dim or head_dim % 2:
        raise GGUFError(f"RoPE over a part of each head of {head_dim}: no such model is known here")
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": number("rope.freq_base", 10000.0, float),
    }
    kind = metadata.get(f"{arch.name}.rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope.update(rope_type=kind, factor=number("rope.scaling.factor", None, float))
        if kind == "yarn":
            original = number("rope.scaling.original_context_length", context)
            rope["original_max_position_embeddings"] = original
    elif kind != "none":
        raise GGUFError(f"RoPE scaled by {kind!r:.40}: known are none, linear, yarn")
    if rope_freqs is not None:
        rope = _llama3(rope_freqs, rope, head_dim)
    found = {
        "num_hidden_layers": number("block_count"),
        "max_position_embeddings": context,
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", None, float),
        "rope_parameters": rope,
    }
    if heads % found["num_key_value_heads"]:
        raise GGUFError(f"{heads} heads do not share {found['num_key_value_heads']} keys")
    return found


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Array:
    """Llama 3.1's stretch of RoPE as a divisor of each frequency, float32 (head_dim / 2,).

    High frequencies stay (divisor 1), low ones are divided by ``factor``, and between them the
    frequency itself is interpolated (transformers' ``rope_type="llama3"``).
    """
    factor = float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = int(rope["original_max_position_embeddings"])
    theta = float(rope.get("rope_theta", 10000.0))
    steps = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelength = 2 * np.pi * np.power(theta, steps.astype(np.float64))
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    divisor = np.where(wavelength > original / low, factor, between)
    return np.where(wavelength < original / high, 1.0, divisor).astype(np.float32)


def _llama3(found: Array, rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """The parameters that give these divisors. The file keeps the divisors alone.

    Llama 3.1's are 8192, 1 and 4; others are tried after them.
    """
    factor = float(found.max())
    lengths = sorted((2**n for n in range(6, 19)), key=lambda length: abs(length - 8192))
    for low, high in ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0)):
        for original in lengths:
            guess = {
                **rope,
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
            made = llama3_factors(guess, head_dim)
            if made.shape == found.shape and np.allclose(made, found, rtol=1e-4):
                return guess
    raise GGUFError("rope_freqs.weight holds factors that no known stretch of RoPE gives")
