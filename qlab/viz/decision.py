"""Figure: the decision map, from what a reader has to the family that fits and its chapters.

``decide`` holds the rules. The figure embeds its answer to every combination, so there is one set
of rules only.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# Question, and its answers: (word, text).
QUESTIONS = {
    "hardware": (
        "Where will it run?",
        (
            ("cpu", "a CPU: a laptop, a phone, a server"),
            ("gpu", "a GPU"),
            ("integer", "a chip that computes with integers only"),
        ),
    ),
    "batch": (
        "How many texts at once?",
        (("one", "one or a few, as they are written"), ("many", "many, or long prompts to read")),
    ),
    "data": (
        "What is there besides the weights?",
        (
            ("none", "nothing"),
            ("texts", "some texts like those it will see"),
            ("training", "many texts, and time to train"),
        ),
    ),
    "bits": (
        "How small shall the weights be?",
        (
            ("8", "8 bits: no loss that is easily measured"),
            ("4", "4 bits: a small loss"),
            ("3", "3 bits or fewer"),
        ),
    ),
}

# Subject -> the page that teaches it, None for chapters of later parts.
PAGES = {
    "families of methods": "families",
    "number formats": "number-formats",
    "granularity": "granularity",
    "codebooks": "beyond-the-straight-line",
    "clipping and rounding": "mathematics",
    "memory and speed": "why-quantize",
    "GPTQ": "gptq",
    "AWQ": "awq",
    "HQQ": "without-data",
    "SmoothQuant": "outliers",
    "rotations": "rotations",
    "quantization-aware training": "qat",
    "quantization-aware fine-tuning": "qlora",
}


@dataclass(frozen=True)
class Advice:
    """What ``decide`` says.

    Attributes:
        family: in the words of the chapter.
        call: the arguments of ``qlab.quantize_model`` to begin with.
        why: one or two sentences.
        read: subjects, keys of ``PAGES``.
    """

    family: str
    call: str
    why: str
    read: tuple[str, ...]


def decide(hardware: str, batch: str, data: str, bits: str) -> Advice:
    """The family to try first.

    Args: one word each of ``QUESTIONS``.

    Raises: QlabError for another word.

    Chapter: Static, dynamic, mixed: the families of methods.
    """
    given = dict(zip(QUESTIONS, (hardware, batch, data, bits), strict=True))
    for question, word in given.items():
        words = [w for w, _ in QUESTIONS[question][1]]
        if word not in words:
            raise QlabError(f"{question} '{word}': choose one of {', '.join(words)}")
    inputs, when, why, read = _activations(hardware, batch, data, bits)
    scheme = _scheme(hardware, bits)
    method, because, learn = _weights(data, bits)
    family = f"{method}, {'weights and activations' if inputs else 'weights only'}"
    family += f", {when}" if inputs else ""
    call = f'scheme="{scheme}"'
    if inputs:
        call += f', activations="{inputs}"'
        if when == "static":
            call += ", calibration=texts"
    subjects = ("families of methods", *read, *learn)
    return Advice(family, call, f"{why} {because}", tuple(dict.fromkeys(subjects)))


def _activations(
    hardware: str, batch: str, data: str, bits: str
) -> tuple[str, str, str, tuple[str, ...]]:
    """(scheme or "", dynamic or static, why, subjects)"""
    if hardware == "integer":
        why = (
            "Such a chip has no time or no unit to look for a range while it runs, so the ranges "
            "are fixed beforehand."
        )
        if data == "none":
            why += " That needs some data: take any text, or even random tokens, and measure."
        return "int8-asym-tensor", "static", why, ("clipping and rounding",)
    if batch == "one":
        why = (
            "Writing for a few waits for the weights to be read, so their bytes are the speed. "
            "Activations are few, and may stay in floating point."
        )
        return "", "", why, ("memory and speed",)
    if hardware == "gpu":
        if bits == "8":
            why = (
                "With many texts the arithmetic is the limit, and 8-bit units double it. A range a "
                "token costs little. On a GPU that has it, fp8_e4m3-token is the other choice."
            )
            return "int8-token", "dynamic", why, ("SmoothQuant", "number formats")
        why = (
            "With many texts the arithmetic is the limit. 8-bit activations let small weights be "
            "multiplied as integers; 4-bit ones need rotations first."
        )
        return "int8-token", "dynamic", why, ("SmoothQuant", "rotations")
    why = (
        "Reading much at once is limited by arithmetic, and a CPU multiplies bytes several times "
        "as fast as floating-point numbers. A range a token costs little."
    )
    return "int8-token", "dynamic", why, ("SmoothQuant",)


def _scheme(hardware: str, bits: str) -> str:
    """Of the weights."""
    if bits == "8":
        return "int8-channel"
    if hardware == "integer":
        return f"int{bits}-channel"
    return f"int{bits}-asym-g{'64' if bits == '4' else '32'}-sfp16"


def _weights(data: str, bits: str) -> tuple[str, str, tuple[str, ...]]:
    """(kind of training, why, subjects)"""
    if bits == "8":
        return "post-training", "At 8 bits rounding to nearest is enough.", ("granularity",)
    if data == "none":
        if bits == "4":
            because = "Without data, small groups and a good range are what there is."
            return "post-training", because, ("granularity", "HQQ", "codebooks")
        because = "Below 4 bits without data expect a clear loss; levels that fit help a little."
        return "post-training", because, ("HQQ", "codebooks")
    if data == "texts":
        because = "Some texts tell which weights matter: methods that look at the inputs lose less."
        return "post-training", because, ("granularity", "GPTQ", "AWQ")
    if bits == "4":
        because = "A short fine-tuning with rounding in the loop wins back a part of what is lost."
        return (
            "quantization-aware fine-tuning",
            because,
            ("GPTQ", "quantization-aware fine-tuning"),
        )
    because = "Below 4 bits training with rounding in the loop is the strongest remedy known."
    return "quantization-aware training", because, ("quantization-aware training",)


def decision_map() -> Picture:
    """Answer four questions; read which family fits, how it is called, and where it is taught.

    Chapter: Static, dynamic, mixed: the families of methods.
    """
    words = [[w for w, _ in answers] for _, answers in QUESTIONS.values()]
    advice = {"/".join(given): asdict(decide(*given)) for given in itertools.product(*words)}
    shown = (
        ("gpu", "one", "none", "8"),
        ("cpu", "one", "texts", "4"),
        ("gpu", "many", "texts", "8"),
        ("gpu", "many", "texts", "4"),
        ("integer", "one", "texts", "8"),
        ("gpu", "one", "training", "4"),
        ("cpu", "one", "training", "3"),
    )
    texts = {w: text for _, answers in QUESTIONS.values() for w, text in answers}
    rows = [
        (*(texts[w] for w in given), decide(*given).family, decide(*given).call) for given in shown
    ]
    return figure(
        "decision",
        {
            "questions": [
                {"text": text, "words": [w for w, _ in answers], "answers": [a for _, a in answers]}
                for text, answers in QUESTIONS.values()
            ],
            "advice": advice,
            "pages": PAGES,
        },
        alt="Decision map: four questions about hardware, number of texts, data and bits; below "
        "them the family of methods to try first, and the chapters that teach it.",
        caption="Which family first? Answer four questions. The advice is where to begin; what "
        "decides is what you measure.",
        fallback=table((*(q for q, _ in QUESTIONS.values()), "try first", "begin with"), rows),
    )
