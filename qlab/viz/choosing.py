"""Figure: the decision aid. Five answers in; what fits, computed from what was measured.

The rules are ``qlab.study.choosing``. The figure embeds their answer to every combination.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from qlab.study.choosing import (
    Choice,
    Device,
    Needs,
    Option,
    Size,
    Task,
    cache_bytes,
    choose,
    speed_ceiling,
    weight_bytes,
)
from qlab.viz.interactive import figure, table
from qlab.viz.memory import MODELS
from qlab.viz.style import Picture

SIZES = tuple(
    Size(name, billions * 1e9, layers, numbers)
    for name, billions, layers, numbers in MODELS
    if name in ("SmolLM2-135M", "Llama-3.2-3B", "Mistral-7B", "Llama-3.1-70B", "Qwen2.5-32B")
)
# qlab's own engine is left out: nobody has run it at these sizes.
_CPU = ("llama.cpp", "transformers")
_GPU = ("transformers", "vLLM", "bitsandbytes", "llama.cpp")
# Transfers a second, times the bytes of a transfer: 32 bits of LPDDR4X-4267 (Raspberry Pi 5), 64 of
# LPDDR5X-8533, two channels of 64 bits of DDR5-5600, twelve of DDR5-4800 (a server's socket). GPUs:
# NVIDIA's data sheets and, of the RTX 4090, its Ada white paper.
DEVICES = (
    Device("single-board computer, 8 GB", 8e9, 4267e6 * 4, _CPU),
    Device("phone, 12 GB", 12e9, 8533e6 * 8, ("llama.cpp",)),
    Device("laptop, 16 GB", 16e9, 2 * 5600e6 * 8, _CPU),
    Device("server with a CPU, 384 GB", 384e9, 12 * 4800e6 * 8, (*_CPU, "vLLM")),
    Device("RTX 4090, 24 GB", 24e9, 1008e9, _GPU),
    Device("A100, 80 GB", 80e9, 2039e9, _GPU),
    Device("H100 SXM, 80 GB", 80e9, 3.35e12, _GPU),
)
TASKS = (
    Task("one reader, 4,096 tokens", 1, 4096),
    Task("one reader, 65,536 tokens", 1, 65536),
    Task("16 readers, 4,096 tokens each", 16, 4096),
)
SPEEDS = (0.0, 5.0, 10.0, 20.0, 50.0)
LOSSES = (0.01, 0.03, 0.1, 0.3, math.inf)
QUESTIONS = (
    "Which model?",
    "Where?",
    "What for?",
    "How fast, for each reader?",
    "Which loss is accepted?",
)


def words() -> tuple[list[str], ...]:
    """The answers to each of ``QUESTIONS``, as a reader sees them."""
    return (
        [s.name for s in SIZES],
        [d.name for d in DEVICES],
        [t.name for t in TASKS],
        [f"{s:g} tokens/s" if s else "any speed" for s in SPEEDS],
        ["any loss" if math.isinf(x) else f"{x:g} nats a token" for x in LOSSES],
    )


def needs_of(i: int, j: int, k: int, m: int, n: int) -> Needs:
    """The demands of one combination, by the places of its answers."""
    return Needs(SIZES[i], DEVICES[j], TASKS[k], SPEEDS[m], LOSSES[n])


def decision_aid(options: Sequence[Option]) -> Picture:
    """Model, device, task, speed and loss to choose; the configurations that fit.

    Args:
        options: of ``qlab.study.choosing.read_options``.

    Raises: QlabError without options.

    Chapter: Choosing a strategy.
    """
    places = {option: i for i, option in enumerate(options)}
    said: dict[str, int] = {}

    def packed(found: Choice, needs: Needs) -> list[Any]:
        if found.best is None:
            return [0, [said.setdefault(line, len(said)) for line in found.relax]]
        three = []
        for option in (found.best, found.smallest, found.fastest):
            assert option is not None
            total = weight_bytes(option.bits, needs.size) + cache_bytes(needs.size, needs.task)
            speed = speed_ceiling(option.bits, needs)
            three.append([places[option], float(f"{total / 1e9:.3g}"), float(f"{speed:.3g}")])
        return [found.fits, three]

    every = itertools.product(*(range(len(w)) for w in words()))
    answers = {
        "/".join(map(str, one)): packed(choose(options, needs_of(*one)), needs_of(*one))
        for one in every
    }
    rows = []
    for one in ((2, 2, 0, 2, 2), (2, 4, 2, 3, 1), (4, 5, 0, 2, 2), (4, 2, 0, 0, 4)):
        found = choose(options, needs_of(*one))
        text = found.best.name if found.best else "nothing fits; relax " + "; or ".join(found.relax)
        rows.append((*(w[i] for w, i in zip(words(), one, strict=True)), text))
    return figure(
        "choosing",
        {
            "questions": QUESTIONS,
            "words": words(),
            "options": [[o.name, o.bits, o.loss, o.ratio, o.engines] for o in options],
            "devices": [d.engines for d in DEVICES],
            "answers": answers,
            "said": list(said),
            "start": [2, 2, 0, 2, 2],
        },
        alt="Decision aid: five questions about model, device, task, speed and loss; below them "
        "the configuration with the least loss that fits, the smallest and the fastest one, or "
        "what to relax.",
        caption="What shall I use? Losses are measured on the storyteller, bytes are counted, and "
        "speeds are ceilings from the device's memory bandwidth. Another model loses another "
        "amount at the same bits, but mostly in the same order: choose here, and measure yours.",
        fallback=table((*QUESTIONS, "take"), rows),
    )
