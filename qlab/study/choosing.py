"""Choosing a strategy: which measured configuration fits a device, a task and a reader's demands.

The rules are few. A configuration *fits* if an engine of the device loads it, if weights and caches
go into the memory, if the bandwidth allows the speed, and if its loss is accepted. Of those that
fit, the one with the least loss is recommended, and the smallest and the fastest are named beside.
Where nothing fits, it is said what would have to give.

The losses are those of the case study's record, measured on the storyteller; bytes and speeds are
arithmetic, and the arithmetic is that of any dense decoder.

Chapter: Choosing a strategy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlab.errors import QlabError

USABLE = 0.8  # share of a device's memory that a model may take; the rest is for the system
CACHE_BYTES = 2  # of a number in the KV cache: 16 bits

# What qlab writes -> the engines whose loading of it a test or a record shows (see the chapter
# "What is checked against what"; a test compares this table with its record). transformers reads
# GGUF and compressed-tensors too, but restores the weights to floating point, at once or in the
# first pass, which saves no memory: it is left out.
LOADERS = {
    "gguf": ("llama.cpp",),
    "compressed-tensors": ("vLLM",),
    "gptq": ("GPTQModel", "vLLM"),
    "awq": ("vLLM",),
    "bitsandbytes": ("bitsandbytes",),
}
OWN = "qlab"  # loads whatever it made
FULL = "transformers"  # loads the model as it is, and so do all others


@dataclass(frozen=True)
class Option:
    """A configuration that was measured.

    Attributes:
        name: as in the case study.
        bits: of a weight in the quantized layers, metadata counted; of a GGUF mix see
            ``mix_bits``; 16 for the model as it is.
        loss: mean KL divergence from the model as it is, nats a token.
        ratio: perplexity over that of the model as it is.
        engines: that load it.
    """

    name: str
    bits: float
    loss: float
    ratio: float
    engines: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """A dense decoder: weights, layers, numbers kept for each token and layer in the KV cache."""

    name: str
    weights: float
    layers: int
    numbers: int


@dataclass(frozen=True)
class Device:
    """Where it shall run.

    Attributes:
        name: what a reader calls it.
        memory: bytes.
        bandwidth: bytes a second between memory and processor, as published.
        engines: that run there.
    """

    name: str
    memory: float
    bandwidth: float
    engines: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What it shall do: so many texts at once, of so many tokens each, prompts included."""

    name: str
    texts: int
    tokens: int


@dataclass(frozen=True)
class Needs:
    """All that a reader demands.

    Attributes:
        speed: tokens a second that each text shall get at the least; 0 for any.
        loss: the largest loss that is accepted, nats a token; infinite for any.
    """

    size: Size
    device: Device
    task: Task
    speed: float = 0.0
    loss: float = math.inf


@dataclass(frozen=True)
class Choice:
    """What ``choose`` says.

    Attributes:
        best: the option with the least loss among those that fit; None if nothing fits.
        smallest, fastest: the same by bytes and by speed.
        fits: how many fit.
        relax: where nothing fits, the ways to mend it, in words.
    """

    best: Option | None
    smallest: Option | None
    fastest: Option | None
    fits: int
    relax: tuple[str, ...] = ()


def exports(method: str, scheme: str, activations: str = "") -> tuple[str, ...]:
    """Names of ``LOADERS``: the layouts of others that hold a configuration's weights.

    Only what was tried is claimed: some layouts hold other widths as well, which no engine was
    given yet.

    Args:
        method, scheme, activations: as in a line of the case study; a mix of GGUF has no method.

    Raises: QlabError for a scheme that does not parse.

    Chapter: Choosing a strategy.
    """
    from qlab.core import Scheme
    from qlab.gguf.mixes import is_mix

    if not method and is_mix(scheme):
        return ("gguf",)
    if activations:
        integer = scheme.startswith("int8-channel") and activations == "int8-token"
        return ("compressed-tensors",) if integer and method != "llm_int8" else ()
    if method == "nf4" and scheme == "nf4-g64":
        return ("bitsandbytes",)
    parsed = Scheme.parse(scheme)
    name, kind = parsed.format.name, parsed.granularity.kind
    if not name.startswith("int") or kind not in ("channel", "group"):
        return ()
    return ("compressed-tensors", "gptq", "awq") if name == "int4" else ()


def engines(layouts: Sequence[str]) -> tuple[str, ...]:
    """Those that load one of the layouts, and qlab's own."""
    return (OWN, *sorted({e for layout in layouts for e in LOADERS[layout]}))


def read_options(path: str | Path | None = None) -> list[Option]:
    """The options of a record of the case study (default: the storyteller's), best first.

    The model as it is counts with 16 bits a weight, which lose nothing of it. Rows of mixed
    precision and students are the qlab engine's own: no layout is claimed for them.

    Raises: QlabError for a file that is no record.

    Chapter: Choosing a strategy.
    """
    from qlab.study import read_record

    found = []
    for row in read_record(path)[1]:
        line, ratio, loss = row.line, row.value("ratio"), row.value("kl")
        if ratio is None or loss is None:
            continue
        if not line["scheme"] and not line["among"]:
            every = sorted({FULL, *(e for names in LOADERS.values() for e in names)})
            found.append(Option(row.name, 16.0, 0.0, 1.0, (OWN, *every)))
            continue
        if row.bits_per_weight is None:
            continue
        plain = not line["among"] and not line["steps"]
        layouts = exports(line["method"], line["scheme"], line["activations"]) if plain else ()
        mix = layouts == ("gguf",)
        bits = mix_bits(line["scheme"], line["importance"]) if mix else row.bits_per_weight
        found.append(Option(row.name, bits, loss, ratio, engines(layouts)))
    return sorted(found, key=lambda o: (o.loss, o.bits, o.name))


def mix_bits(mix: str, importance: bool = False) -> float:
    """Bits a weight of the layers of Llama 3 8B in a GGUF mix, as llama.cpp's rules give them.

    The bits of the storyteller's file would say something else: a quarter of its weights are the
    embedding, which the mixes keep in more bits than the layers.

    Args:
        mix: its name, such as ``q4_k_m``.
        importance: whether there is an importance matrix; some mixes need one.

    Raises: QlabError for a mix that is not known, or needs an importance matrix.

    Chapter: Choosing a strategy.
    """
    from qlab.gguf.blocks import block_type
    from qlab.gguf.mixes import Facts, choose_types, get_mix

    hidden, inner, kv, layers = 4096, 14336, 1024, 32
    shapes = {
        f"blk.{i}.{role}.weight": shape
        for i in range(layers)
        for role, shape in {
            "attn_q": (hidden, hidden),
            "attn_k": (kv, hidden),
            "attn_v": (kv, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }.items()
    }
    facts = Facts(layers, hidden // kv, tied=False, importance=importance)
    types = choose_types(get_mix(mix), shapes, facts)
    weights = {name: rows * columns for name, (rows, columns) in shapes.items()}
    bits = sum(block_type(types[name]).bits_per_weight() * n for name, n in weights.items())
    return bits / sum(weights.values())


def weight_bytes(bits: float, size: Size) -> float:
    """Of all weights at so many bits each. Embeddings, which most engines keep at 8 or 16 bits, are
    counted like the rest: they are a few percent of a large model, and a third of a tiny one."""
    return size.weights * bits / 8


def cache_bytes(size: Size, task: Task) -> float:
    """Of the KV caches of all texts at their full length."""
    return task.texts * task.tokens * size.layers * size.numbers * CACHE_BYTES


def speed_ceiling(bits: float, needs: Needs) -> float:
    """Tokens a second that each text can get at most.

    A step reads all weights once and all caches, and gives each text one token. It cannot be faster
    than the memory; arithmetic, which limits large batches earlier, is left out.
    """
    moved = weight_bytes(bits, needs.size) + cache_bytes(needs.size, needs.task)
    return needs.device.bandwidth / moved


def obstacles(option: Option, needs: Needs) -> tuple[str, ...]:
    """What keeps an option from fitting: some of ``engine``, ``memory``, ``speed``, ``loss``."""
    total = weight_bytes(option.bits, needs.size) + cache_bytes(needs.size, needs.task)
    failed = {
        "engine": not set(option.engines) & set(needs.device.engines),
        "memory": total > USABLE * needs.device.memory,
        "speed": speed_ceiling(option.bits, needs) < needs.speed,
        "loss": option.loss > needs.loss,
    }
    return tuple(name for name, there in failed.items() if there)


def choose(options: Sequence[Option], needs: Needs) -> Choice:
    """The option to take, or what to relax.

    Raises: QlabError without options, or for demands that are negative or NaN.

    Chapter: Choosing a strategy.
    """
    if not options:
        raise QlabError("no options to choose from: give rows of a case study")
    if not (needs.speed >= 0 and needs.loss >= 0):
        raise QlabError(f"speed {needs.speed} and loss {needs.loss}: 0 or above")
    failed = [(option, obstacles(option, needs)) for option in options]
    fits = [option for option, why in failed if not why]
    if not fits:
        return Choice(None, None, None, 0, _relax(failed, needs))

    def by_bytes(o: Option) -> tuple[float, float, str]:
        return (o.bits, o.loss, o.name)

    return Choice(
        best=min(fits, key=lambda o: (o.loss, *by_bytes(o))),
        smallest=min(fits, key=by_bytes),
        # With one arithmetic for all, the fastest is the one that moves the fewest bytes.
        fastest=max(fits, key=lambda o: (speed_ceiling(o.bits, needs), -o.loss)),
        fits=len(fits),
    )


def _relax(failed: list[tuple[Option, tuple[str, ...]]], needs: Needs) -> tuple[str, ...]:
    """For each demand that, given up alone, makes something fit: by how much."""
    found = []
    for demand in ("engine", "memory", "speed", "loss"):
        alone = [option for option, why in failed if why == (demand,)]
        if not alone:
            continue
        if demand == "engine":
            option = min(alone, key=lambda o: (o.loss, o.bits, o.name))
            names = ", ".join(option.engines)
            found.append(f"the engine: {option.name} runs in {names}")
        elif demand == "memory":
            option = min(alone, key=lambda o: (o.bits, o.loss, o.name))
            total = weight_bytes(option.bits, needs.size) + cache_bytes(needs.size, needs.task)
            found.append(
                f"the memory: {total / USABLE / 1e9:.3g} GB in place of "
                f"{needs.device.memory / 1e9:.3g}, for {option.name}"
            )
        elif demand == "speed":
            option = min(alone, key=lambda o: (o.bits, o.loss, o.name))
            found.append(
                f"the speed: {speed_ceiling(option.bits, needs):.3g} tokens/s in place of "
                f"{needs.speed:.3g}, with {option.name}"
            )
        else:
            option = min(alone, key=lambda o: (o.loss, o.bits, o.name))
            found.append(
                f"the loss: {option.loss:.3g} nats in place of {needs.loss:.3g}, with {option.name}"
            )
    if not found:
        fewest = min(failed, key=lambda pair: (len(pair[1]), pair[0].loss, pair[0].name))
        found.append(f"more than one demand at once: {' and '.join(fewest[1])}")
    if cache_bytes(needs.size, needs.task) > USABLE * needs.device.memory:
        found.append("the task: its caches alone do not fit; fewer or shorter texts")
    return tuple(found)
