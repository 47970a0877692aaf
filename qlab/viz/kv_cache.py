"""Figure: how many bytes the keys and values take, beside the weights."""

from __future__ import annotations

from qlab.viz.interactive import figure, table
from qlab.viz.memory import MODELS
from qlab.viz.style import Picture

# name, bits of a number with metadata
CACHES = (
    ("16 bits", 16.0),
    ("int8, a 16-bit scale for 32 (q8_0)", 8.5),
    ("8-bit floats (fp8)", 8.0),
    ("int4, 16-bit scale and minimum for 32", 5.0),
    ("int4, a 16-bit scale for 32 (q4_0)", 4.5),
    ("int2, 16-bit scale and minimum for 32", 3.0),
)
WEIGHTS = (("16 bits", 16.0), ("int8", 8.0), ("int4, a 16-bit scale for 128", 4.125))
# 2^10 to 2^20 tokens, half a power of two apart, rounded to whole hundreds.
TOKENS = tuple(1024 if i == 0 else round(2 ** (10 + i / 2) / 100) * 100 for i in range(21))


def gigabytes(layers: int, numbers: int, tokens: int, bits: float) -> float:
    """Of the cache of one sequence; ``numbers``: kept for each token and layer. 10^9 bytes."""
    return layers * numbers * tokens * bits / 8 / 1e9


def cache_sizes() -> Picture:
    """Weights and cache of several models, with the length of the context and the bits to choose.

    Chapter: The KV cache.
    """
    rows = [
        (
            name,
            f"{billions * 2:.1f} GB",
            *(f"{gigabytes(layers, numbers, 131072, bits):.2f} GB" for bits in (16, 5, 3)),
        )
        for name, billions, layers, numbers in MODELS
    ]
    return figure(
        "kvcache",
        {
            "models": MODELS,
            "caches": CACHES,
            "weights": WEIGHTS,
            "tokens": TOKENS,
            "start": [TOKENS.index(2**15 // 100 * 100 + 100), 5],
        },
        alt="Bars of the gigabytes that the weights and the cache of one sequence take, for models "
        "from 0.1 to 671 billion weights, at a chosen length and chosen bits.",
        caption="When does the cache outgrow the weights? Move the length of the context, and "
        "choose the bits of either. Each line of the axis is ten times the one before. "
        "One sequence; ten readers at once need ten caches and one set of weights.",
        fallback=table(
            ("model", "weights, 16 bits", "cache of 131,072 tokens, 16 bits", "5 bits", "3 bits"),
            rows,
        ),
    )
