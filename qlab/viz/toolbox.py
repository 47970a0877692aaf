"""Figures of the toolbox: the parts that a tool quantizes, and the threshold of LLM.int8()."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture
from qlab.viz.toolbox_bytes import KINDS

WHOLE = 16.0  # bits of a weight that a tool leaves alone, in the files that models come in


@dataclass(frozen=True)
class Sizes:
    """A model to compute the size of: weights of each kind, and whether the head is the embedding.

    Chapter: transformers and bitsandbytes.
    """

    weights: Mapping[str, int]
    tied: bool


def llama(
    hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, tied: bool
) -> Sizes:
    """Sizes of a Llama by its configuration; ``keys`` is the number of key and value heads.

    Chapter: transformers and bitsandbytes.
    """
    attention = 2 * hidden * hidden + 2 * hidden * (hidden // heads) * keys
    table_ = vocabulary * hidden
    return Sizes(
        {
            "embedding": table_,
            "attention": layers * attention,
            "feed-forward": layers * 3 * hidden * inner,
            "head": table_,
        },
        tied,
    )


# From the models' published configurations (config.json on the Hugging Face hub).
MODELS = {
    "the storyteller": llama(256, 768, 4, 4, 4, 4096, True),
    "SmolLM2-135M": llama(576, 1536, 30, 9, 3, 49152, True),
    "Llama-2-7B": llama(4096, 11008, 32, 32, 32, 32000, False),
    "Llama-3.1-8B": llama(4096, 14336, 32, 32, 8, 128256, False),
    "Llama-3.1-70B": llama(8192, 28672, 80, 64, 8, 128256, False),
}


def size_of(bits: Mapping[str, float | None], model: Sizes) -> dict[str, float]:
    """Bytes of each part. None: left alone, 16 bits; a head that is left alone and tied costs
    nothing, since it is the embedding.

    Chapter: transformers and bitsandbytes.
    """
    found = {}
    for kind in KINDS:
        own = bits[kind]
        if own is None and kind == "head" and model.tied:
            found[kind] = 0.0
        else:
            found[kind] = (WHOLE if own is None else own) * model.weights[kind] / 8
    return found


def module_map(
    tools: Mapping[str, Mapping[str, float | None]], models: Mapping[str, Sizes] | None = None
) -> Picture:
    """Which parts of a model each tool quantizes, and what remains of models of other sizes.

    Args:
        tools: name -> kind of part (``KINDS``) -> bits a weight with all scales, None where the
            tool leaves the part as it was.
        models: name -> Sizes; ``MODELS`` by default.

    Raises: QlabError for a tool without one of the kinds, or bits that are not above 0.

    Chapter: transformers and bitsandbytes.
    """
    if not tools:
        raise QlabError("module_map needs at least one tool: name -> kind -> bits or None")
    for name, bits in tools.items():
        for kind in KINDS:
            if kind not in bits:
                raise QlabError(f"module_map: tool '{name}' says nothing of the {kind}")
            value = bits[kind]
            if value is not None and not (math.isfinite(value) and value > 0):
                raise QlabError(f"module_map: {value} bits for the {kind} of '{name}'")
    models = MODELS if models is None else models
    first = next(iter(models.values()))
    rows = []
    for name, bits in tools.items():
        cells = ["as it was" if bits[k] is None else f"{bits[k]:.2f} bits" for k in KINDS]
        rows.append((name, *cells, f"{sum(size_of(bits, first).values()) / 1e6:.2f} MB"))
    return figure(
        "toolboxmodules",
        {
            "kinds": list(KINDS),
            "whole": WHOLE,
            "tools": [
                {
                    "name": name,
                    "bits": [
                        None if bits[k] is None else round(float(bits[k] or 0), 4) for k in KINDS
                    ],
                }
                for name, bits in tools.items()
            ],
            "models": [
                {"name": name, "weights": [m.weights[k] for k in KINDS], "tied": m.tied}
                for name, m in models.items()
            ],
        },
        alt="For a chosen tool and model: a bar for the embedding, the attention, the feed-forward "
        "network and the head, as long as the bytes that the part takes.",
        caption="What does the tool leave alone, and does that matter for a larger model? Choose a "
        "tool and a model. Pale: 16 bits a weight. Parts that are left alone count with 16 bits.",
        fallback=table(("tool", *KINDS, next(iter(models))), rows),
    )


def threshold_dial(
    curves: Mapping[str, Sequence[tuple[float, float, float]]], whole: Mapping[str, float]
) -> Picture:
    """LLM.int8()'s threshold against perplexity and the share of columns that stay in float.

    Args:
        curves: model -> (threshold, perplexity, share of outlier columns from 0 to 1), by rising
            threshold; the same thresholds in all; threshold infinity is not possible, 0 neither.
        whole: model -> perplexity without quantization.

    Raises: QlabError for curves with other thresholds, fewer than two, or values out of range.

    Chapter: transformers and bitsandbytes.
    """
    if not curves:
        raise QlabError("threshold_dial needs at least one model")
    grid = [t for t, _, _ in next(iter(curves.values()))]
    for name, points in curves.items():
        if [t for t, _, _ in points] != grid or len(grid) < 2 or sorted(set(grid)) != grid:
            raise QlabError(f"threshold_dial: '{name}' needs two or more rising thresholds, as all")
        for t, p, share in points:
            if not (0 < t < math.inf and 0 < p < math.inf and 0 <= share <= 1):
                raise QlabError(
                    f"threshold_dial: '{name}' has threshold {t}, perplexity {p}, share {share}"
                )
    rows = [
        (name, f"{t:g}", f"{p:.2f}", f"{share:.1%}", f"{whole[name]:.2f}")
        for name, points in curves.items()
        for t, p, share in points
    ]
    return figure(
        "toolboxthreshold",
        {
            "thresholds": grid,
            "models": [
                {
                    "name": name,
                    "whole": round(whole[name], 4),
                    "perplexity": [round(p, 4) for _, p, _ in points],
                    "share": [round(s, 5) for _, _, s in points],
                }
                for name, points in curves.items()
            ],
        },
        alt="Two curves over the threshold: the perplexity of the model, and the share of the "
        "columns of the layers' inputs that are multiplied in floating point.",
        caption="How much must stay in floating point? Move the threshold. Dashed: the perplexity "
        "without quantization.",
        fallback=table(("model", "threshold", "perplexity", "columns apart", "unquantized"), rows),
    )
