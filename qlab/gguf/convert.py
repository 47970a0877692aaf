"""A transformers model and its tokenizer to one GGUF file.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.gguf import architectures
from qlab.gguf.architectures import Architecture, interleave
from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks import block_type
from qlab.gguf.mixes import Facts, choose_types, get_mix, needs_importance
from qlab.gguf.quantize import quantize
from qlab.gguf.tokenizers import write_tokenizer
from qlab.gguf.writer import GGUFWriter

QUANTIZATION_VERSION = 2  # of the block types, llama.cpp's GGML_QNT_VERSION
ROPE_FREQS = "rope_freqs.weight"


def to_gguf(
    model: Any,
    tokenizer: Any,
    out: str | Path,
    scheme: str = "f32",
    importance: Mapping[str, Array] | None = None,
    *,
    name: str = "model",
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, str]:
    """Write a GGUF file that llama.cpp and transformers load; all of it or nothing.

    The file of a mix is the one that llama.cpp's ``llama_model_quantize`` makes of the file of
    ``f32``, byte for byte.

    Args:
        model: a transformers model of the Llama family (Llama, Mistral, SmolLM2, Qwen2, Qwen3).
            Layers that qlab quantized are taken as the weights they stand for.
        tokenizer: its tokenizer.
        out: the file; an old one is replaced.
        scheme: a mix of ``mixes.MIXES``, such as ``f32``, ``q8_0``, ``q4_k_m``.
        importance: GGUF's name of a tensor, such as ``blk.0.attn_q.weight``, to the mean square
            of each of its inputs, float32 (columns,); as ``read_imatrix`` gives it. Tensors that
            are not named are quantized without.
        name: ``general.name``.
        threads: for the quantizers; default one a core.
        progress: show a bar.

    Returns: name of each tensor -> its block type, in the order of the file.

    Raises: QlabError for an unknown mix or architecture, a part of the model that GGUF has no place
        for, a tokenizer that llama.cpp could not copy, an importance of another length or, where
        the mix needs one, none.

    Chapter: GGUF, byte by byte.
    """
    mix = get_mix(scheme)
    config = model.config
    arch = architectures.of_model_type(config.model_type)
    hyperparameters, rope_freqs = architectures.to_metadata(arch, config)
    sources = dict(_sources(model, arch))
    if rope_freqs is not None:
        sources[ROPE_FREQS] = _Source(rope_freqs.shape, lambda: rope_freqs)
    shapes = {key: sources[key].shape for key in sorted(sources, key=_place)}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    facts = Facts(
        layers=config.num_hidden_layers,
        heads_per_kv=heads // kv_heads,
        tied="output.weight" not in shapes,
        importance=importance is not None,
        seventy=arch.seventy(config.num_hidden_layers, heads, kv_heads),
    )
    types = choose_types(mix, shapes, facts)
    rows = _importance(importance, shapes)
    for key, kind in types.items():
        if not block_type(kind).can_encode:
            raise QlabError(
                f"mix '{mix.name}' stores {key} as {kind}, which can be read but not written here: "
                "choose another mix"
            )
        if importance is not None and key not in rows and needs_importance(mix, key, kind):
            raise QlabError(
                f"the importance matrix has no row for {key}, and mix '{mix.name}' needs one: "
                "compute it on this model"
            )
    writer = GGUFWriter(out)
    writer.add("general.architecture", arch.name)
    writer.add("general.type", "model")
    writer.add("general.name", name)
    for key, (value, kind) in hyperparameters.items():
        writer.add(key, value, kind)
    write_tokenizer(writer, tokenizer, shapes["token_embd.weight"][0])
    # llama.cpp sets these two anew when it quantizes, so they stand last.
    writer.add("general.quantization_version", QUANTIZATION_VERSION, "uint32")
    writer.add("general.file_type", mix.file_type, "uint32")
    with _bar(len(shapes), progress) as bar:
        for key, shape in shapes.items():
            data = _data(sources[key], types[key], rows.get(key), threads, bar)
            writer.add_tensor(key, shape, types[key], data)
        writer.write()
    return types


@dataclass(frozen=True)
class _Source:
    """A tensor to be: its shape, and how to get it as float32."""

    shape: tuple[int, ...]
    read: Callable[[], Array]


def _sources(model: Any, arch: Architecture) -> Iterator[tuple[str, _Source]]:
    """GGUF's name of every tensor of the model, and where it comes from."""
    config = model.config
    left = {key for key in model.state_dict() if not key.endswith("rotary_emb.inv_freq")}
    for ours, theirs in architectures.tensor_names(arch, config.num_hidden_layers).items():
        try:
            module = model.get_submodule(theirs)
        except AttributeError:
            raise QlabError(f"the model has no '{theirs}': it is no {config.model_type}") from None
        left -= {key for key in left if key.startswith(f"{theirs}.")}
        if ours == "output" and _tied(model, module):
            continue
        part = ours.rpartition(".")[2]
        for kind in ("weight", "bias"):
            tensor = getattr(module, kind, None)
            if tensor is None:
                continue
            if kind == "bias" and part not in arch.biases:
                raise QlabError(
                    f"'{theirs}' has a bias, and llama.cpp's {arch.name} has no place for it"
                )
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            turned = heads.get(part) if arch.interleaved else None
            yield f"{ours}.{kind}", _Source(tuple(tensor.shape), _reader(module, kind, turned))
    if left:
        raise QlabError(
            f"'{min(left)}' has no place in llama.cpp's {arch.name}: {len(left)} such tensors"
        )


def _reader(module: Any, kind: str, heads: int | None) -> Callable[[], Array]:
    def read() -> Array:
        tensor = getattr(module, kind).detach().cpu().float().numpy()
        return np.ascontiguousarray(tensor if heads is None else interleave(tensor, heads))

    return read


def _tied(model: Any, output: Any) -> bool:
    """Whether the output matrix is the embeddings."""
    embeddings = model.get_input_embeddings().weight
    return getattr(output, "weight", None) is embeddings


def _place(name: str) -> tuple[int, str]:
    """llama.cpp's order: the outer tensors, then each layer's, by name."""
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    return layer, name


def _importance(
    given: Mapping[str, Array] | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The rows that are used. Raises: QlabError if one does not fit, or none is of this model."""
    if given is None:
        return {}
    found = {}
    for key in shapes:
        row = given.get(key)
        if row is None:
            continue
        row = np.asarray(row, np.float32)
        if row.shape == (shapes[key][-1],):
            found[key] = row
        elif key != "token_embd.weight":  # of which older tools wrote something else
            raise QlabError(
                f"the importance of {key} has shape {row.shape}, and its rows {shapes[key][-1]} "
                "weights: compute it on this model"
            )
    if not found:
        raise QlabError("the importance matrix names no tensor of this model: compute it on it")
    return found


def _data(
    source: _Source, kind: str, importance: Array | None, threads: int | None, bar: Any
) -> Callable[[], Array]:
    def make() -> Array:
        made = quantize(source.read(), kind, importance, threads=threads)
        bar.update()
        return made

    return make


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="quantizing", unit="tensor", delay=2, disable=not progress)
