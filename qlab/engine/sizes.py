"""What the engine must know of a model beside its weights, from whatever describes it.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.gguf.architectures import ARCHITECTURES, llama3_factors


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Llama-style decoder.

    Attributes:
        model_type: ``llama``, ``mistral``, ``qwen2`` or ``qwen3``.
        layers, hidden, inner, heads, kv_heads, head_dim, vocabulary: counts.
        context: the most tokens that the model takes.
        eps: added to the mean square in RMSNorm.
        rope: ``rope_type``, ``rope_theta`` and what a stretch of RoPE needs, as transformers says.
        ends: ids of the tokens that end a text.
        begin: id of the token that begins one, or None.

    Chapter: An engine in one file's worth of Python.
    """

    model_type: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    eps: float
    rope: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[int, ...] = ()
    begin: int | None = None

    @property
    def queries(self) -> int:
        """Numbers of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers of all keys of a token in a layer, and of all values."""
        return self.kv_heads * self.head_dim


def known_model_types() -> list[str]:
    """The kinds of model that the engine computes."""
    return sorted(t for one in ARCHITECTURES.values() for t in one.model_types)


def from_config(config: Any) -> Sizes:
    """Sizes of a configuration of transformers.

    Raises: QlabError for a kind of model, an activation, a window or a RoPE that the engine does
        not compute, naming what it does.

    Chapter: An engine in one file's worth of Python.
    """
    kind = getattr(config, "model_type", "")
    if kind not in known_model_types():
        raise QlabError(
            f"the engine does not know models of type '{kind}': it computes "
            f"{', '.join(known_model_types())}; run others through transformers"
        )
    act = getattr(config, "hidden_act", "silu")
    if act != "silu":
        raise QlabError(f"hidden_act '{act}': the engine computes silu only")
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    context = int(config.max_position_embeddings)
    if kind == "mistral" and window:
        context = min(context, int(window))  # up to the window's length both compute the same
    elif layer_types != {"full_attention"}:
        raise QlabError(f"layers with {sorted(layer_types)}: the engine computes full attention")
    heads = config.num_attention_heads
    ends = config.eos_token_id
    sizes = Sizes(
        kind,
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
        config.vocab_size,
        context,
        float(config.rms_norm_eps),
        dict(getattr(config, "rope_parameters", None) or {}),
        () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends),
        config.bos_token_id,
    )
    inverse_frequencies(sizes)  # a RoPE that is not known is said now
    return sizes


def inverse_frequencies(sizes: Sizes) -> np.ndarray[Any, Any]:
    """Radians that each pair of channels turns from one token to the next, float32 (head_dim/2,).

    theta^(-2j/d) for pair j, divided by ``factor`` (linear) or by Llama 3.1's factors (llama3).

    Source: Su et al. 2021, RoFormer, arXiv 2104.09864, section 3.2.2.

    Raises: QlabError for another kind of RoPE.

    Chapter: An engine in one file's worth of Python.
    """
    rope, d = sizes.rope, sizes.head_dim
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or d % 2:
        raise QlabError(f"RoPE over a part of each head of {d}: the engine turns all of it")
    kind = rope.get("rope_type", "default")
    power = np.arange(0, d, 2, dtype=np.float32) / np.float32(d)
    theta = np.float32(rope.get("rope_theta", 10000.0))
    inverse = (np.float32(1.0) / theta**power).astype(np.float32)
    if kind == "default":
        return inverse
    if kind == "linear":
        return inverse / np.float32(rope["factor"])
    if kind == "llama3":
        return (inverse / llama3_factors(rope, d)).astype(np.float32)
    raise QlabError(f"RoPE of kind '{kind}': the engine knows default, linear and llama3")


def rope_table(sizes: Sizes, context: int) -> np.ndarray[Any, Any]:
    """Cosines and sines of all positions, float32 (context, 2, head_dim/2).

    Angles are rounded to float32 before the cosine, as transformers does.

    Chapter: An engine in one file's worth of Python.
    """
    angle = np.arange(context, dtype=np.float32)[:, None] * inverse_frequencies(sizes)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
