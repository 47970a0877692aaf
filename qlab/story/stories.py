"""The project's own stories: short, simple, and split once and for all.

``data/stories.jsonl`` (English) and ``data/stories_zh.jsonl`` (Chinese) hold one JSON object a
line: ``id``, ``split`` (train, calibration, validation or test), ``tags`` (hero, place, problem,
feeling, ending) and ``text``. ``data/stories_unread.jsonl`` holds more English ones in the same
form, whose split is ``unread``: no weights were trained on them. ``data/stories_next.jsonl`` holds
those that came after the shipped weights, whose split is ``next``: training reads them beside the
training split, and they join it when its weights are released. License: CC BY 4.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from qlab.errors import QlabError
from qlab.story.hub import hub_answers

SPLITS = ("train", "calibration", "validation", "test")
FILES = {"en": "stories.jsonl", "zh": "stories_zh.jsonl"}
UNREAD = "stories_unread.jsonl"
NEXT = "stories_next.jsonl"


@dataclass(frozen=True)
class Story:
    """One story of the project."""

    id: str
    split: str
    tags: dict[str, str]
    text: str


def read_stories(language: str = "en") -> list[Story]:
    """All stories of a language (``en`` or ``zh``), in a fixed order."""
    if language not in FILES:
        raise QlabError(f"no stories in '{language}': choose from {', '.join(FILES)}")
    return _read(FILES[language])


def unread_stories() -> list[Story]:
    """English stories that the shipped weights have not read, in a fixed order.

    They are from the same hands as the last stories that went into training: to measure on.
    """
    return _read(UNREAD)


def next_stories() -> list[Story]:
    """English stories for the next training, in a fixed order: newer than the shipped weights."""
    return _read(NEXT)


def _read(name: str) -> list[Story]:
    text = resources.files("qlab.story").joinpath("data", name).read_text("utf-8")
    return [Story(**json.loads(line)) for line in text.splitlines()]


def texts(split: str, language: str = "en") -> list[str]:
    """The texts of one split.

    Raises: QlabError for an unknown split or language.
    """
    if split not in SPLITS:
        raise QlabError(f"no split '{split}': choose from {', '.join(SPLITS)}")
    return [s.text for s in read_stories(language) if s.split == split]


def corpus(name: str = "tinystories", split: str = "train") -> Iterator[str]:
    """Stream a public corpus from the Hugging Face hub through ``datasets`` (needs a network).

    Args:
        name: ``tinystories`` (roneneldan/TinyStories, CDLA-Sharing-1.0).
        split: the corpus's own split, ``train`` or ``validation``.

    Raises: QlabError, in one sentence, without a network.
    """
    if name != "tinystories":
        raise QlabError(f"no corpus '{name}': choose 'tinystories'")
    try:
        from datasets import load_dataset
    except ImportError:
        raise QlabError("streaming a corpus needs 'datasets': pip install 'qlab[online]'") from None

    try:
        if not hub_answers("roneneldan/TinyStories", "dataset"):
            raise ConnectionError
        rows = load_dataset("roneneldan/TinyStories", split=split, streaming=True)
        first = next(iter(rows))
    except Exception as error:  # many kinds, none of which helps a reader
        raise QlabError(
            "the TinyStories corpus could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}): go online, or use qlab.story.texts('train')"
        ) from None

    def generate() -> Iterator[str]:
        yield str(first["text"])
        for i, row in enumerate(rows):
            if i:
                yield str(row["text"])

    return generate()
