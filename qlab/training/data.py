"""Rows to train on: a function of the step alone.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from qlab.errors import QlabError


def story_batches(
    tokenizer: Any,
    batch: int = 8,
    length: int = 256,
    seed: int = 0,
    *,
    texts: Sequence[str] | None = None,
    world: float = 0.0,
) -> Callable[[int], torch.Tensor]:
    """step -> token ids, int64 (batch, length), drawn from stories.

    Args:
        tokenizer: of the model.
        batch: rows a step.
        length: tokens a row; stories follow one another, each between BOS and EOS.
        seed: of the draws.
        texts: what to draw from; by default the project's training stories.
        world: share of rows from the story world instead, whose stories never repeat.

    Raises: QlabError without texts, or for a batch without tokens.

    Chapter: Quantization-aware training.
    """
    # The stories lie above training in the order of imports, so they are fetched when asked for.
    from qlab.story.batches import Batches, Stories, World
    from qlab.story.stories import texts as project_texts

    if batch < 1 or length < 2:
        raise QlabError(
            f"batch {batch} of length {length}: take 1 row or more, of 2 tokens or more"
        )
    found = list(project_texts("train") if texts is None else texts)
    if not found:
        raise QlabError("no texts to train on: give at least one")
    sources = {"stories": Stories(found, tokenizer), "world": World(tokenizer)}
    draw = Batches(sources, {"stories": 1 - world, "world": world}, seed, batch, length)
    return lambda step: torch.from_numpy(draw(step))
