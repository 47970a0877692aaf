"""Training rows, drawn from several sources; row r of step s is a function of the seed alone.

So an interrupted run resumes on exactly the rows that it would have seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.story.names import Names
from qlab.story.stories import next_stories, texts
from qlab.story.worldparts import words

Rows = Callable[[np.random.Generator, int], list[int]]


def read_corpus(path: str | Path) -> tuple[str, list[str]]:
    """Read a corpus file: its source name and its documents.

    ``.txt``: the source ``tinystories``; its stories are separated by ``<|endoftext|>``, or, in a
    file without that mark, by a single newline (with empty lines between paragraphs).
    ``.jsonl``: an object with the key ``text`` a line, the source ``fairy``.
    """
    path = Path(path)
    if not path.is_file():
        raise QlabError(f"no corpus file at {path}")
    if path.suffix not in (".txt", ".jsonl"):
        raise QlabError(f"corpus {path}: expected .txt or .jsonl")
    try:
        raw = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QlabError(f"corpus {path} is not UTF-8 text ({error}): convert it first") from None
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(raw.splitlines(), 1) if line.strip()]
        documents, name = [_text_of(path, i, line) for i, line in lines], "fairy"
    else:
        mark = r"<\|endoftext\|>" if "<|endoftext|>" in raw else r"(?<!\n)\n(?!\n)"
        documents, name = re.split(mark, raw), "tinystories"
    documents = [plain(d) for d in documents]
    # The head of a larger file may end in the middle of a story.
    return name, [d for d in documents if len(d) > 200 and d[-1] in ".!?\"'"]


def _text_of(path: Path, number: int, line: str) -> str:
    """The text of one line of a .jsonl corpus."""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise QlabError(
            f'corpus {path}, line {number}: expected an object with a string "text"; '
            "mend or remove the line"
        )
    return text


def plain(text: str) -> str:
    """Straight quotes and hyphens, one newline between paragraphs, no lines of asterisks."""
    table = {"“": '"', "”": '"', "‘": "'", "’": "'", "—": " - ", "–": "-", "…": "...", "_": ""}
    for old, new in table.items():
        text = text.replace(old, new)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "\n".join(line for line in lines if line.strip("*- "))


class Documents:
    """Rows from a fixed list of documents, each encoded once as BOS ... EOS."""

    def __init__(self, documents: Iterable[str], tokenizer: Any) -> None:
        encoded = tokenizer(list(documents))["input_ids"]
        self.encoded = [np.array([*ids, tokenizer.eos_token_id], np.int32) for ids in encoded]

    def __call__(self, rng: np.random.Generator, length: int) -> list[int]:
        row: list[int] = []
        while len(row) < length:
            ids = self.encoded[rng.integers(len(self.encoded))]
            # A document longer than a row is entered anywhere, so that its end is learned too.
            if len(ids) > length and not row:
                ids = ids[max(0, rng.integers(-length // 2, len(ids) - length // 2)) :]
            row += ids[: length - len(row)].tolist()
        return row


class Stories:
    """Rows from a fixed list of short stories, in which the names are others each time."""

    def __init__(self, stories: Iterable[str], tokenizer: Any) -> None:
        self.stories, self.tokenizer = list(stories), tokenizer
        self.names = Names(self.stories)

    def __call__(self, rng: np.random.Generator, length: int) -> list[int]:
        row: list[int] = []
        while len(row) < length:
            text = self.names.exchange(self.stories[rng.integers(len(self.stories))], rng)
            row += [*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id]
        return row[:length]


class World:
    """Rows from the story world: stories that were never used before, generated on the fly."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rng: np.random.Generator, length: int) -> list[int]:
        from qlab.story.world import stream

        stories = stream(int(rng.integers(2**40)), split="train")
        row: list[int] = []
        while len(row) < length:
            row += [*self.tokenizer(next(stories).text)["input_ids"], self.tokenizer.eos_token_id]
        return row[:length]


class Echo:
    """Rows of random pieces that are repeated to the end of the row.

    Nothing but looking back predicts them. They are there to teach the model to copy from its
    context, which it needs to keep the names of a story.
    """

    def __init__(self, tokenizer: Any) -> None:
        named = [*words.NAMES, *words.OBJECTS, *words.COLORS, *words.ANIMALS]
        pieces = tokenizer([f" {word}" for word in named], add_special_tokens=False)["input_ids"]
        whole = np.array(sorted({ids[0] for ids in pieces if len(ids) == 1}), np.int64)
        every = np.arange(len(tokenizer.all_special_ids), len(tokenizer), dtype=np.int64)
        # Half of the rows from what stories are about, if the tokenizer has pieces for it.
        self.pools = [whole if len(whole) >= 20 else every, every]
        self.bos = tokenizer.bos_token_id

    def __call__(self, rng: np.random.Generator, length: int) -> list[int]:
        pool = self.pools[rng.integers(2)]
        unit = rng.choice(pool, size=min(len(pool), rng.integers(4, 49)), replace=False)
        return [self.bos, *np.resize(unit, length - 1).tolist()]


class Batches:
    """``batches(step)`` -> int64 (batch, sequence) token ids."""

    def __init__(
        self, sources: dict[str, Rows], shares: dict[str, float], seed: int, batch: int, length: int
    ) -> None:
        self.names = [n for n in shares if n in sources and shares[n] > 0]
        if not self.names:
            raise QlabError(f"no training data: [data] names {', '.join(shares)}, none is present")
        weights = np.array([shares[n] for n in self.names])
        self.weights = weights / weights.sum()
        self.sources, self.seed, self.batch, self.length = sources, seed, batch, length

    def __call__(self, step: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, step])
        # Systematic sampling: each source has its share of every batch, to within a row.
        marks = (np.arange(self.batch) + rng.random()) / self.batch
        picks = np.searchsorted(np.cumsum(self.weights)[:-1], marks)
        rows = [self.sources[self.names[i]](rng, self.length) for i in picks]
        return np.array(rows, np.int64)


def tokenizer_texts(documents: dict[str, list[str]]) -> Iterable[str]:
    """What the tokenizer is trained on: all given texts and a sample of the world."""
    from itertools import islice

    from qlab.story.world import stream

    for name in sorted(documents):
        # Long prose would crowd out the simple words; a fifth of it is plenty.
        yield from documents[name][:: 5 if name == "fairy" else 1]
    yield from (s.text for s in islice(stream(0, split="train"), 4000))


def project_documents() -> dict[str, list[str]]:
    """The project's stories to train on, by source name: the training split and newer ones."""
    stories = [*texts("train"), *(s.text for s in next_stories())]
    return {"stories": stories, "stories_zh": texts("train", "zh")}
