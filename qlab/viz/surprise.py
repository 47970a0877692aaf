"""Figure: which pieces of a text surprised a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture


def surprise(
    pieces: Sequence[str], losses: Sequence[float], guesses: Sequence[Sequence[str]] | None = None
) -> Picture:
    """The pieces of a text, colored by the model's loss; point at one to read it.

    Args:
        pieces: tokens as text, spaces included.
        losses: negative log-probability of each, in nats.
        guesses: for each piece, what the model found likeliest there, first the best (optional).

    Raises: ValueError if the lengths differ.
    """
    guesses = guesses or [[] for _ in pieces]
    if not len(pieces) == len(losses) == len(guesses):
        raise ValueError(
            f"{len(pieces)} pieces, {len(losses)} losses and {len(guesses)} guesses: "
            "give one of each for every piece"
        )
    rows = sorted(zip(losses, pieces, strict=True), reverse=True)[:8]
    return figure(
        "surprise",
        {
            "pieces": list(pieces),
            "losses": [round(float(x), 4) for x in losses],
            "guesses": [list(g) for g in guesses],
        },
        alt="A text whose pieces are colored the stronger, the more they surprised the model.",
        caption="Where is a text hard to predict? Point at a piece, or move with the arrow keys, "
        "to read the probability that the model gave it and what it expected.",
        fallback=table(
            ("piece", "loss (nats)", "probability"),
            [(p, f"{x:.2f}", f"{math.exp(-x):.1%}") for x, p in rows],
        ),
    )
