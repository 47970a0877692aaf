"""Rotation: turn the hidden states so that no feature stands out, and the weights with them.

A norm without weights commutes with a rotation Q of its input, ‖xQ‖ = ‖x‖. So a decoder computes
the same when its embedding is multiplied by Q, every layer that reads the hidden states by Qᵀ
first, and every layer that writes to them by Q last:

    embedding E Q      q, k, v, gate, up, head: W Q      o, down: Qᵀ W          (W is (out, in))

With Q a Hadamard matrix with random signs, a feature that is far larger than the others is spread
over all of them. The weights of the norms are first folded into the layers that read them.

``heads`` turns, in the same way, what each attention head passes from v to o. ``online`` also turns
the input of down_proj, which no layer before it can take over: the model then carries the matrix
and multiplies by it while it runs.

Source: Ashkboos et al. 2024, QuaRot, arXiv 2404.00456, section 4; Ashkboos et al. 2024, SliceGPT,
arXiv 2401.15024, section 3.1, for the invariance.

Chapter: Rotations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qlab.core import QTensor, Scheme, quantize
from qlab.errors import QlabError
from qlab.methods.hadamard import hadamard, random_rotation
from qlab.methods.registry import register


@dataclass(frozen=True)
class RotationOptions:
    """seed: of the random signs. heads: turn what v passes to o. online: turn down_proj's input."""

    seed: int = 0
    heads: bool = True
    online: bool = False


def rotate(model: Any, seed: int = 0, *, heads: bool = True, online: bool = False) -> Any:
    """An equivalent model in full precision with rotated hidden states.

    Args:
        model: a Llama, Mistral, Qwen2 or Qwen3 of transformers; left as it is.
        seed, heads, online: see ``RotationOptions``.

    Returns: a copy whose input and output embeddings are no longer tied, with the same outputs but
        for rounding. Without ``online`` it is an ordinary model of its architecture, which every
        engine runs.

    Raises: QlabError for another architecture, or a model that is quantized already.

    Chapter: Rotations.
    """
    rotated = copy.deepcopy(model)
    prepare(rotated, None, None, RotationOptions(seed, heads, online))
    return rotated


@torch.no_grad()
def prepare(
    model: Any,
    calibration: Sequence[torch.Tensor] | None,
    scheme: Scheme | None,
    options: RotationOptions,
    *,
    skip: tuple[str, ...] = (),
    progress: bool = False,
) -> Mapping[str, Any]:
    """Rotate ``model`` in place: what quantize_model does before it quantizes."""
    blocks = _blocks(model)
    _untie(model)
    config = model.config
    q = random_rotation(config.hidden_size, options.seed)
    body = model.model
    _multiply(body.embed_tokens, right=q)
    for block in blocks:
        attention, mlp = block.self_attn, block.mlp
        reads = (attention.q_proj, attention.k_proj, attention.v_proj)
        _fold_norm(block.input_layernorm, reads)
        _fold_norm(block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))
        for layer in (*reads, mlp.gate_proj, mlp.up_proj):
            _multiply(layer, right=q)
        for layer in (attention.o_proj, mlp.down_proj):
            _multiply(layer, left=q.T)
        if options.heads:
            _turn_heads(attention, config)
    _fold_norm(body.norm, (model.lm_head,))
    _multiply(model.lm_head, right=q)
    if options.online:
        for block in blocks:
            turn = hadamard(config.intermediate_size)
            _multiply(block.mlp.down_proj, right=turn)
            block.mlp = RotatedMLP(block.mlp, turn)
    return {}


@register(
    "rotation",
    options=RotationOptions,
    source="Ashkboos et al. 2024, arXiv 2404.00456, section 4",
    chapter="rotations",
    prepare=prepare,
)
def rotation(
    weight: torch.Tensor, stats: Any, scheme: Scheme, options: RotationOptions | None = None
) -> QTensor:
    """Quantize a rotated ``weight`` (out_features, in_features) by rounding to nearest.

    Chapter: Rotations.
    """
    return quantize(weight, scheme)


class RotatedMLP(nn.Module):
    """The gated feed-forward layer with a rotation H of down_proj's input, multiplied as it runs.

    y = down(H (act(gate(x)) · up(x))); down_proj already holds W H.

    Chapter: Rotations.
    """

    def __init__(self, mlp: Any, turn: torch.Tensor) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn
        self.register_buffer("turn", turn.to(mlp.down_proj.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., hidden_size) -> (..., hidden_size)."""
        inside = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        y: torch.Tensor = self.down_proj(inside @ self.turn)
        return y


def _blocks(model: Any) -> list[Any]:
    """The blocks of a Llama-like decoder, checked."""
    kinds = ("llama", "mistral", "qwen2", "qwen3")
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in kinds:
        raise QlabError(f"rotation knows {', '.join(kinds)}, not '{kind}'")
    blocks = list(model.model.layers)
    if not isinstance(blocks[0].mlp.down_proj, nn.Linear):
        raise QlabError("rotation comes before quantization: pass the model in full precision")
    return blocks


def _untie(model: Any) -> None:
    """Give the output head its own weight: the last norm is folded into it, and not into the input
    embedding."""
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _fold_norm(norm: Any, layers: Sequence[Any]) -> None:
    """Multiply the norm's weights into the columns of the layers that read it."""
    for layer in layers:
        weight = layer.weight.double() * norm.weight.double()
        layer.weight.copy_(weight.to(layer.weight.dtype))
    norm.weight.fill_(1.0)


def _multiply(
    layer: Any, left: torch.Tensor | None = None, right: torch.Tensor | None = None
) -> None:
    """W <- left W right in float64; a bias is an output, so ``left`` turns it too."""
    weight = layer.weight.double()
    weight = weight if right is None else weight @ right.to(weight.device)
    weight = weight if left is None else left.to(weight.device) @ weight
    layer.weight.copy_(weight.to(layer.weight.dtype))
    bias = getattr(layer, "bias", None)
    if left is not None and bias is not None:
        bias.copy_((left.to(weight.device) @ bias.double()).to(bias.dtype))


def _turn_heads(attention: Any, config: Any) -> None:
    """Turn the output of v within each head, and the columns of o that read it."""
    size = attention.head_dim
    turn = random_rotation(size, 1)
    values, heads = config.num_key_value_heads, config.num_attention_heads
    blocks: Any = torch.block_diag
    _multiply(attention.v_proj, left=blocks(*[turn] * values))
    _multiply(attention.o_proj, right=blocks(*[turn.T] * heads))
