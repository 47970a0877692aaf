"""Bridges: openings of written stories that go on as a story of the world, with the same hero.

A few hundred stories are too few to learn how any opening may go on. The story world knows how to
go on for as long as one likes, but begins in its own few ways. A bridge joins the two: the first
sentences of a written story, and what happens to its hero in the world.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qlab.story.names import NO_NAMES, Names, made_up_name, pronoun_of
from qlab.story.world import generate, split_sentences
from qlab.story.worldparts import words
from qlab.story.worldparts.grammar import expand, polish
from qlab.story.worldparts.patterns import shared

# Sentences of a written story that come before its bridge at most. A storyteller that has seen
# bridges after the first ones alone does not find back to a plot once it has told a few of its own.
LONGEST = 7
# After each of these sentences a bridge begins with this probability, if none has begun before. So
# the likeliest thing to come after a sentence is the world, however far an opening has got.
BEGINS = 0.6
# Stories of the world among which a bridge chooses.
CANDIDATES = 6


@dataclass(frozen=True)
class Opening:
    """The first sentences of a story and who it is about.

    Attributes:
        sentences: one to ``LONGEST`` of them.
        hero: a name, or "the clock".
        pronoun: "he" or "she".
    """

    sentences: tuple[str, ...]
    hero: str
    pronoun: str


def opening_of(text: str) -> Opening | None:
    """The opening of a story, or None where its hero or the hero's pronoun is not plain."""
    sentences = split_sentences(text)[:LONGEST]
    hero = _hero(text, " ".join(sentences[:2]))
    pronoun = pronoun_of(text)
    two = sentences and re.search(r"\b[A-Z][a-z]+ and (?:[a-z]+ ){0,2}[A-Z]", sentences[0])
    if hero is None or pronoun is None or two:
        return None
    whole = Opening(tuple(sentences), hero, pronoun)
    cuts = cuts_of(whole)
    return replace(whole, sentences=whole.sentences[: cuts[-1]]) if cuts else None


def _hero(text: str, first: str) -> str | None:
    """Who is introduced as "named X", else the name that occurs most, else "the NOUN".

    Of several words with capitals in a row the last is the name: Nib of "Captain Nib".
    """
    if named := re.search(r"\b(?:named|called) (?:[A-Z][a-z]+ )*([A-Z][a-z]+)\b", first):
        return named[1]
    names = re.findall(r"\b[A-Z][a-z]+\b(?! [A-Z][a-z]+\b)", text)
    names = [n for n in names if n not in NO_NAMES]
    ranked = sorted({n for n in names if n in first}, key=lambda n: (-names.count(n), n))
    if ranked and names.count(ranked[0]) >= 3:
        return ranked[0]
    pattern = r"^[^.A-Z]*?(?:[A-Z][a-z]+)?[^.A-Z]*?\b[Aa]n? (?:[a-z]+ ){0,2}?([a-z]+)"
    noun = re.search(pattern + r"(?= (?:who|that|lived|was|had|sat)\b|[.,])", first)
    if not ranked and noun and len(re.findall(rf"\b[Tt]he {noun[1]}\b", text)) >= 3:
        return f"the {noun[1]}"
    return None


def cuts_of(opening: Opening) -> list[int]:
    """After how many sentences an opening may end: its hero has a name, no quotation is open."""
    counts = range(1, len(opening.sentences) + 1)
    return [i for i in counts if _closed(" ".join(opening.sentences[:i]), opening.hero)]


def _closed(text: str, hero: str) -> bool:
    """The hero has been named and no quotation is open."""
    said = hero.removeprefix("the ")
    return re.search(rf"\b{said}\b", text) is not None and text.count('"') % 2 == 0


def introduction(rng: random.Random) -> Opening:
    """An opening by pattern, with heroes that the story world does not have: things and people."""
    kind = rng.choice(words.THINGS + words.PEOPLE)
    pronoun = rng.choice(["he", "she"])
    pronoun = words.PEOPLE_PRONOUNS.get(kind, pronoun)
    pool = words.ANIMAL_NAMES if kind in words.THINGS else []
    name = rng.choice(pool + (words.GIRLS if pronoun == "she" else words.BOYS))
    named = rng.random() < 0.7
    place = rng.choice(sorted(words.PLACES))
    context = {
        "who": f"a {rng.choice(words.TEMPERS + words.SIZES)} {kind}",
        "h": name if named else f"the {kind}",
        "named": f" named {name}" if named else "",
        "where": words.PLACES[place][0],
        "place": f"the {place}",
        "temper": rng.choice(words.TEMPERS),
        "food": rng.choice(words.FOODS),
        "he": pronoun,
        "him": "her" if pronoun == "she" else "him",
        "his": "her" if pronoun == "she" else "his",
    }
    count = rng.randint(1, 2)
    lines = [rng.choice(shared()["introductions"]), rng.choice(shared()["further"])][:count]
    return Opening(
        tuple(polish(expand(line, context, rng)) for line in lines), context["h"], pronoun
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


class Bridges:
    """Rows of openings that go on as stories of the world."""

    def __init__(self, documents: Iterable[str], tokenizer: Any) -> None:
        documents = list(documents)
        self.names = Names(documents)
        found = [opening_of(text) for text in documents]
        self.openings = [opening for opening in found if opening is not None]
        self.tokenizer = tokenizer
        # How rarely a word is used: what two texts share says more the rarer it is.
        used = Counter(word for text in documents for word in _words(text))
        self.rarity = {word: np.log(len(documents) / n) for word, n in used.items()}

    def __call__(self, rng: np.random.Generator, length: int) -> list[int]:
        row: list[int] = []
        while len(row) < length:
            row += [*self.tokenizer(self.story(rng))["input_ids"], self.tokenizer.eos_token_id]
        return row[:length]

    def story(self, rng: np.random.Generator) -> str:
        """One bridge: an opening and a story of the world."""
        return "".join(self.parts(self.opening(rng), (), rng))

    def opening(self, rng: np.random.Generator) -> Opening:
        """The opening of a written story, cut after a sentence, or one by pattern (a third)."""
        if not self.openings or rng.random() < 1 / 3:
            chosen = introduction(random.Random(int(rng.integers(2**40))))
        else:
            chosen = self.openings[rng.integers(len(self.openings))]
        cuts = cuts_of(chosen)
        cut = next((c for c in cuts[:-1] if rng.random() < BEGINS), cuts[-1])
        return replace(chosen, sentences=chosen.sentences[:cut])

    def parts(
        self, opening: Opening, own: tuple[str, ...], rng: np.random.Generator
    ) -> tuple[str, str, str]:
        """A bridge in its parts, with other names.

        Args:
            opening: what begins the story.
            own: further sentences, between the opening and the world.
            rng: the source of chance.

        Returns: (the opening, the further sentences, what the world tells); joined they are it.
        """
        first, further = " ".join(opening.sentences), "".join(f" {s}" for s in own)
        # The same exchange of names in all parts: the hero's name rides along behind a mark.
        mark = "\n\n"
        also = [] if opening.hero.startswith("the ") else [opening.hero]
        all_of_it = self.names.exchange(mark.join((first, further, opening.hero)), rng, also)
        first, further, hero = all_of_it.split(mark)
        if not hero.startswith("the ") and rng.random() < 0.3:
            fresh = made_up_name(rng)
            first, further = (re.sub(rf"\b{hero}\b", fresh, part) for part in (first, further))
            hero = fresh
        told = self._fitting(first + further, (hero, opening.pronoun), rng)
        return first, further, f"{' ' if rng.random() < 0.6 else chr(10)}{told}"

    def _fitting(self, first: str, hero: tuple[str, str], rng: np.random.Generator) -> str:
        """Of some stories of the world, the one that shares most with what comes before it.

        So an opening says something of its plot. Were all plots as likely after any opening, the
        likeliest continuation of all of them would be one and the same.
        """
        # Seeds of the world's training split (see ``stream``).
        seeds = 3 * rng.integers(2**40, size=CANDIDATES)
        told = [generate(int(seed), hero=hero).text for seed in seeds]
        words = _words(first) - {hero[0].lower()}
        shared = [sum(self.rarity.get(w, 0.0) for w in words & _words(text)) for text in told]
        return told[int(np.argmax(shared))]
