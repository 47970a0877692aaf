"""Detours: where the storyteller goes in circles in training, and the way back to a story.

In training a model only ever reads what others wrote. When it tells a story, it reads what it has
written itself, and where that is unlike anything that it was trained on, it repeats it. So it has
to be shown its own sentences, and what to do after them: let it tell, stop it before it says
something again, and let the story world go on from there. This is the idea of DAgger (Ross, Gordon
and Bagnell 2011, arXiv:1011.0686): collect where the model itself arrives, learn what to do there.

Its own sentences are read, not learned: their pieces have no part in the loss. Without that the
model learns to say what it says anyway, and its favourite sentence comes after every opening.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from qlab.story.bridges import Bridges, Opening, cuts_of
from qlab.story.world import split_sentences

# As many words in a row, said before, are a repetition.
RUN = 6
# Own sentences before the bridge at most. A model that has told more is in the middle of a plot.
OWN = 5


def before_circle(told: str) -> list[str] | None:
    """The sentences of a continuation before the first that says something again.

    A sentence of three words or more says something again if it was there before, or if six of its
    words in a row were.

    Args:
        told: a continuation, without its opening.

    Returns: these sentences, perhaps none; None if nothing is said again.
    """
    sentences = split_sentences(told)
    end = told.rindex(sentences[-1]) + len(sentences[-1]) if sentences else 0
    # What comes after the last full stop counts too: a circle need not end.
    if unfinished := told[end:].strip():
        sentences = [*sentences, unfinished]
    seen: set[tuple[str, ...]] = set()
    for index, sentence in enumerate(sentences):
        words = tuple(re.findall(r"[a-z']+", sentence.lower()))
        runs = [words[i : i + RUN] for i in range(len(words) - RUN + 1)]
        again = len(runs) > len(set(runs)) or any(run in seen for run in runs)
        if again or (len(words) >= 3 and words in seen):
            return sentences[:index]
        seen |= {words, *runs}
    return None


def unlearned(ids: list[int]) -> list[int]:
    """Token ids that are read and not learned, as a row carries them: -1 - id."""
    return [-1 - i for i in ids]


class Detours:
    """Rows that begin with an opening and the storyteller's own sentences, and go on in the world.

    Until ``renew`` has found some, and where nothing goes in circles, its rows are bridges.
    """

    def __init__(self, bridges: Bridges, tokenizer: Any) -> None:
        self.bridges, self.tokenizer = bridges, tokenizer
        self.found: list[tuple[Opening, tuple[str, ...]]] = []

    def renew(self, model: Any, rng: np.random.Generator, starts: int = 600) -> float:
        """Let the model go on with new openings, and keep those where it soon goes in circles.

        Args:
            model: a transformers causal language model; it goes on greedily.
            rng: chooses the openings.
            starts: how many.

        Returns: the share of the openings that are kept.
        """
        chosen = [self.bridges.opening(rng) for _ in range(starts)]
        told = _continue(model, self.tokenizer, [" ".join(o.sentences) for o in chosen])
        self.found = []
        for opening, text in zip(chosen, told, strict=True):
            own = before_circle(text)
            if own is not None and len(own) <= OWN:
                # No bridge begins within a quotation.
                longer = replace(opening, sentences=(*opening.sentences, *own))
                end = cuts_of(longer)[-1]
                self.found.append((opening, longer.sentences[len(opening.sentences) : end]))
        return len(self.found) / starts

    def __call__(self, rng: np.random.Generator, length: int) -> list[int]:
        row: list[int] = []
        while len(row) < length:
            opening, own, told = self.parts(rng)
            # Each part begins with a space or a new line, where the tokenizer cuts anyway.
            row += self.tokenizer(opening)["input_ids"]
            row += unlearned(self.tokenizer(own, add_special_tokens=False)["input_ids"])
            row += self.tokenizer(told, add_special_tokens=False)["input_ids"]
            row.append(self.tokenizer.eos_token_id)
        return row[:length]

    def parts(self, rng: np.random.Generator) -> tuple[str, str, str]:
        """One detour, with other names: (opening, the storyteller's own sentences, the rest)."""
        if not self.found:
            return self.bridges.parts(self.bridges.opening(rng), (), rng)
        return self.bridges.parts(*self.found[rng.integers(len(self.found))], rng)


def _continue(
    model: Any, tokenizer: Any, starts: list[str], pieces: int = 100, batch: int = 50
) -> list[str]:
    """The likeliest continuation of each start."""
    import torch

    told: list[str] = []
    was = model.training
    model.eval()
    for first in range(0, len(starts), batch):
        rows = tokenizer(
            starts[first : first + batch], return_tensors="pt", padding=True, padding_side="left"
        ).to(model.device)
        with torch.no_grad():
            out = model.generate(
                **rows,
                do_sample=False,
                max_length=None,
                max_new_tokens=pieces,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = out[:, rows.input_ids.shape[1] :]
        told += tokenizer.batch_decode(new, skip_special_tokens=True)
    model.train(was)
    return told
