"""Figure: what a rotation does to a token with one far feature."""

from __future__ import annotations

import math

import numpy as np
import torch

from qlab.core import Scheme, quantize
from qlab.errors import QlabError
from qlab.methods.hadamard import hadamard
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# How far the outlier reaches, in units of the largest of the other features.
SIZES = tuple(float(f"{2 ** (i / 2):.3g}") for i in range(17))


def far_tokens(size: float, features: int = 256, tokens: int = 64, seed: int = 0) -> torch.Tensor:
    """Normal numbers (tokens, features), float32, whose feature 37 reaches ``size`` times as far as
    the largest of the others, with the sign that it has."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, features, generator=g)
    others = x.clone()
    others[:, 37] = 0
    x[:, 37] = size * others.abs().amax(1) * x[:, 37].sign()
    return x


def signal_to_noise(x: torch.Tensor, back: torch.Tensor) -> float:
    """The power of a usual feature (1 for ``far_tokens``) over the error of a feature, in dB."""
    # + 0.0 makes 0 of -0
    return round(-10 * math.log10(float((x - back).double().square().mean())), 1) + 0.0


def level_use(x: torch.Tensor, scheme: Scheme) -> tuple[list[float], float]:
    """The share of each code, and ``signal_to_noise``."""
    q = quantize(x, scheme)
    low, high = scheme.integer.range(scheme.symmetric)
    codes = (q.codes.long() - low).flatten()
    counts = torch.bincount(codes, minlength=high - low + 1).double() / codes.numel()
    return [round(v, 5) for v in counts.tolist()], signal_to_noise(x, q.dequantize())


def rotated_levels(scheme: str = "int4-token", features: int = 256) -> Picture:
    """How often each code is used, with and without a Hadamard rotation; the outlier to choose.

    Args:
        scheme: symmetric integers of at most 6 bits, a scale a token.
        features: an order that ``hadamard`` knows, at least 64.

    Raises: QlabError for another scheme or too few features.

    Chapter: Rotations.
    """
    parsed = Scheme.parse(scheme)
    if not parsed.symmetric or parsed.granularity.kind != "token" or parsed.integer.bits > 6:
        raise QlabError(f"rotated_levels draws symmetric int2 to int6 a token, not '{scheme}'")
    if features < 64:
        raise QlabError(f"rotated_levels: {features} features are too few, take 64 or more")
    turn = hadamard(features).float()
    low, high = parsed.integer.range(True)
    data, rows = [], []
    for size in SIZES:
        x = far_tokens(size, features)
        before, noise = level_use(x, parsed)
        after, less = level_use(x @ turn, parsed)
        data.append({"before": before, "after": after, "snr": [noise, less]})
        rows.append((f"{size:g}", f"{noise:.1f} dB", f"{less:.1f} dB"))
    return figure(
        "rotatedlevels",
        {
            "sizes": list(SIZES),
            "codes": list(range(low, high + 1)),
            "steps": data,
            "start": int(np.searchsorted(SIZES, 16)),
        },
        alt="Two bar charts: how often each code is used for tokens with one outlier, as they are "
        "and after a Hadamard rotation.",
        caption=f"How many of the {high - low + 1} codes are used? Move the outlier. "
        f"Tokens of {features} normal features, one of which reaches so many times as far as the "
        "largest of the others; signal to noise is the power of a usual feature over the error.",
        fallback=table(("the outlier reaches (times)", "as they are", "rotated"), rows),
    )
