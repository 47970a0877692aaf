"""The bytes that a tool's layers hold, whatever class of tensor they are made of.

bitsandbytes keeps scales beside a weight that is a tensor of codes, torchao wraps codes and scales
in one tensor, torch's old modules hide them in a packed object, hqq keeps a dict. To compare sizes
all of them must be counted, each once.

Chapter: transformers and bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

# Kinds of parts of a decoder, in the order in which they are drawn; the last names of modules.
KINDS = {
    "embedding": ("embed_tokens",),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "feed-forward": ("gate_proj", "up_proj", "down_proj"),
    "head": ("lm_head",),
}


def kind_of(name: str) -> str | None:
    """The kind of part that a module's name ends in, or None for norms and all else.

    Chapter: transformers and bitsandbytes.
    """
    last = name.rpartition(".")[2]
    return next((kind for kind, names in KINDS.items() if last in names), None)


def held_bytes(module: Any) -> int:
    """Bytes of all tensors that ``module`` itself computes with: codes, scales, zero points, bias.

    Tables that all layers of a library share (levels of NF4, 64 bytes) are counted where the layer
    holds them.

    Chapter: transformers and bitsandbytes.
    """
    seen: dict[int, int] = {}
    for tensor in _tensors(module):
        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def bits_of_parts(model: Any) -> dict[str, float]:
    """Bits a weight of each kind in ``KINDS``: what its modules hold over what they stand for.

    Args:
        model: a Llama of transformers, quantized by whatever tool replaces modules or weights; its
            ``config`` says how many weights there are.

    Chapter: transformers and bitsandbytes.
    """
    held = dict.fromkeys(KINDS, 0)
    for name, module in model.named_modules():
        kind = kind_of(name)
        if kind is not None:
            held[kind] += held_bytes(module)
    counts = weights_of_config(model.config)
    return {kind: 8 * held[kind] / counts[kind] for kind in KINDS}


def weights_of_config(config: Any) -> dict[str, int]:
    """How many weights each kind in ``KINDS`` has, by a Llama's configuration.

    Chapter: transformers and bitsandbytes.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    return {
        "embedding": config.vocab_size * hidden,
        "attention": config.num_hidden_layers * 2 * hidden * size * (heads + keys),
        "feed-forward": config.num_hidden_layers * 3 * hidden * config.intermediate_size,
        "head": config.vocab_size * hidden,
    }


def _tensors(module: Any) -> Iterator[torch.Tensor]:
    packed = getattr(module, "_packed_params", None)
    if packed is not None:  # torch.ao: the weight is a quantized tensor in an object of its own
        weight = module.weight()
        yield weight.int_repr()
        if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            yield weight.q_per_channel_scales()
            yield weight.q_per_channel_zero_points()
        return
    if hasattr(module, "W_q"):  # hqq
        yield module.W_q
        yield from (v for v in module.meta.values() if isinstance(v, torch.Tensor))
        return
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        yield from _inside(tensor)
        yield from _beside(tensor)


def _inside(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor, or the plain tensors that one of torchao's is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.data
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _inside(getattr(tensor, name))


def _beside(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """What bitsandbytes keeps beside a weight: absmax, and the absmax of these."""
    scale = getattr(tensor, "SCB", None)
    if isinstance(scale, torch.Tensor):
        yield scale
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield state.absmax
        state = getattr(state, "state2", None)


def onnx_bits(file: Any, config: Any) -> dict[str, float]:
    """Bits a weight of each kind in ``KINDS`` in an ONNX file: constants of the products.

    A product takes its constants itself (MatMulInteger, MatMulNBits), or through nodes that
    restore or turn them (DequantizeLinear, Transpose). Nodes must carry the names of the layers, as
    ``qlab.export.save_onnx`` writes them. A table that the head shares with the embedding counts
    for the embedding alone.

    Args:
        file: path of the file, or an onnx ModelProto.
        config: of the model, a Llama of transformers.

    Chapter: ONNX Runtime.
    """
    import numpy as np
    import onnx

    model = file if isinstance(file, onnx.ModelProto) else onnx.load(file)
    graph = model.graph
    sizes = {i.name: int(onnx.numpy_helper.to_array(i).nbytes) for i in graph.initializer}
    numbers = {i.name: int(np.prod(i.dims)) for i in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    passing = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Cast")

    def constants(name: str) -> Iterator[str]:
        if name in sizes:
            yield name
        elif name in makers and makers[name].op_type in passing:
            for one in makers[name].input:
                yield from constants(one)

    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for node in graph.node:
        used = {c for name in node.input for c in constants(name)}
        if node.op_type == "Gather" and any(numbers[c] >= config.vocab_size for c in used):
            found["embedding"] |= used
            continue
        for kind, names in KINDS.items():
            if node.op_type.startswith(("MatMul", "Gemm", "Mul")) and any(
                n in node.name for n in names
            ):
                found[kind] |= used
    found["head"] -= found["embedding"]
    counts = weights_of_config(config)
    return {k: 8 * sum(sizes[c] for c in found[k]) / counts[k] for k in KINDS}
