"""A small text grammar: patterns with choices, options and slots become sentences.

{a|b|c}   one of the choices, which may hold patterns themselves
[a]       present or absent, with equal chance
<name>    the slot's value in the context; ``<Name>`` with a capital letter
"""

from __future__ import annotations

import random
import re
from functools import cache

Node = str | tuple[str, list["Node"]]

_SLOT = re.compile(r"<([A-Za-z0-9_]+)>")


@cache
def _parse(pattern: str) -> list[Node]:
    """The pattern as a tree: text, ("choice", branches) and ("option", parts)."""
    parts, at = _sequence(pattern, 0, "")
    if at != len(pattern):
        raise ValueError(f"unbalanced bracket in pattern: {pattern!r}")
    return parts


def _sequence(text: str, at: int, closing: str) -> tuple[list[Node], int]:
    parts: list[Node] = []
    branches: list[Node] = []
    plain = ""
    while at < len(text) and text[at] not in (closing or "\0"):
        c = text[at]
        if c in "{[":
            if plain:
                parts.append(plain)
                plain = ""
            inner, at = _sequence(text, at + 1, "}" if c == "{" else "]")
            if at >= len(text):
                raise ValueError(f"unbalanced bracket in pattern: {text!r}")
            parts.append(("choice" if c == "{" else "option", inner))
        elif c == "|" and closing == "}":
            parts.append(plain)
            branches.append(("all", parts))
            parts, plain = [], ""
        else:
            plain += c
        at += 1
    if plain:
        parts.append(plain)
    if closing == "}":
        return [*branches, ("all", parts)], at
    return parts, at


def expand(pattern: str, context: dict[str, str], rng: random.Random) -> str:
    """Choose, then fill the slots.

    Raises: KeyError for a slot that the context lacks.
    """
    return _SLOT.sub(lambda m: _slot(m[1], context), _choose(_parse(pattern), rng))


def _choose(parts: list[Node], rng: random.Random) -> str:
    out = []
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        elif part[0] == "option":
            if rng.random() < 0.5:
                out.append(_choose(part[1], rng))
        elif part[0] == "choice":
            out.append(_choose([rng.choice(part[1])], rng))
        else:
            out.append(_choose(part[1], rng))
    return "".join(out)


def _slot(name: str, context: dict[str, str]) -> str:
    if name in context:
        return context[name]
    value = context[name[0].lower() + name[1:]]
    return value[0].upper() + value[1:]


# Words whose first letter misleads about their sound.
_CONSONANT_SOUND = ("uni", "one", "use", "eu")
_VOWEL_SOUND = ("hour", "honest")


def polish(text: str) -> str:
    """a/an by sound, single spaces, a capital letter at the start of each sentence."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,!?])", r"\1", text)

    def article(m: re.Match[str]) -> str:
        word = m[2].lower()
        vowel = word[0] in "aeiou" and not word.startswith(_CONSONANT_SOUND)
        vowel = vowel or word.startswith(_VOWEL_SOUND)
        return f"{m[1]}{'n' if vowel else ''} {m[2]}"

    text = re.sub(r"\b([Aa])n? (\w+)", article, text)
    # Not after ?" and !": there the sentence may go on, as in: "Who?" asked the owl.
    return re.sub(r"(^|[.!?] |\.\" |[.!?] \"|^\")([a-z])", lambda m: m[1] + m[2].upper(), text)
