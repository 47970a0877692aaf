"""The patterns of the story world, read from ``data/world/*.txt``."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def plots() -> dict[str, list[list[str]]]:
    """Plot name -> beats in order; a beat is a list of paraphrases."""
    found: dict[str, list[list[str]]] = {}
    for name, lines in _sections("plots.txt"):
        beats: list[list[str]] = [[]]
        for line in lines:
            if line:
                beats[-1].append(line)
            elif beats[-1]:
                beats.append([])
        found[name] = [b for b in beats if b]
    return found


@cache
def shared() -> dict[str, list[str]]:
    """Kind (openings, traits, weather_beats, scenes, endings) -> patterns."""
    return {name: [x for x in lines if x] for name, lines in _sections("shared.txt")}


def _sections(file: str) -> list[tuple[str, list[str]]]:
    text = resources.files("qlab.story").joinpath("data", "world", file).read_text("utf-8")
    sections: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("== "):
            sections.append((line[3:].strip(), []))
        elif sections and not line.startswith("#"):
            sections[-1][1].append(line.strip())
    return sections
