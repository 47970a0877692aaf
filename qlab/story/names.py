"""Other names in the same story, so that a name has to be looked up and cannot be learned by heart.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from qlab.story.worldparts import words

# Words with a capital letter that name nobody, or somebody by a title that says who it is.
NO_NAMES = frozenset(
    """The A An He She It They His Her Their Its One Once Then When But And So Every All In On At
    There Long Mom Mommy Mum Mama Dad Daddy Papa Mother Father Grandma Grandpa Granny Grandmother
    Grandfather Nana Mrs Mr Miss Old Little Far Do This That What Who Where Why How You I We My Our
    Your If As After Before Now Today No Yes Not Oh Up Down For From With To Of By Two Three Four
    Some Most Many Each Nobody Nothing Everybody Everyone King Queen Princess Prince Captain Sir
    Lady Uncle Aunt Auntie Doctor God Lord Master Mister
    Madam Madame Professor Dr Frau Signor Sunday Monday Tuesday Wednesday Thursday Friday Saturday
    January February March April May June July August September October November December Christmas
    Spring Summer Autumn Winter English French Spanish""".split()
)
# A capital letter within a sentence.
_INSIDE = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+\b")
# The share of names for which one is made up that no story has.
MADE_UP = 0.15


def pronoun_of(text: str) -> str | None:
    """The pronoun of a story's hero, "he" or "she", or None where it is not plain."""
    he = len(re.findall(r"\b(?:he|him|his)\b", text, re.IGNORECASE))
    she = len(re.findall(r"\b(?:she|her|hers)\b", text, re.IGNORECASE))
    if max(he, she) < 2 or max(he, she) < 3 * min(he, she):
        return None
    return "he" if he > she else "she"


def made_up_name(rng: np.random.Generator) -> str:
    """A name that no list holds, of two or three syllables, so that names have to be copied."""
    ends = ["", "", "n", "l", "s", "r", "k", "m"]
    syllables = [
        rng.choice(list("bcdfghjklmnprstvwz")) + rng.choice(list("aeiou"))
        for _ in range(rng.integers(2, 4))
    ]
    return "".join([*syllables, rng.choice(ends)]).capitalize()


class Names:
    """The names of a set of stories, each with the pronoun of its bearers.

    Args:
        stories: their heroes' names are known afterwards, beside those of the story world.
    """

    def __init__(self, stories: Iterable[str]) -> None:
        stories = list(stories)
        # What is written with a small letter anywhere is a word, also at the start of a sentence.
        self.words = {word for text in stories for word in re.findall(r"\b[a-z]+\b", text)}
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        for text in stories:
            names, pronoun = self.of(text), pronoun_of(text)
            if names and pronoun:
                votes[max(names, key=lambda n: (names[n], n))][pronoun] += 1
        self.kind = {
            name: count.most_common(1)[0][0]
            for name, count in votes.items()
            if max(count.values()) > 2 * (count.total() - max(count.values()))
        }
        self.kind |= dict.fromkeys(words.GIRLS, "she") | dict.fromkeys(words.BOYS, "he")
        self.kind |= dict.fromkeys(words.ANIMAL_NAMES, "any")
        given = {n: k for n, k in self.kind.items() if n in words.NAMES or not self._word(n)}
        self.pools = {
            kind: sorted(n for n, k in given.items() if k == kind) for kind in ("he", "she", "any")
        }

    def of(self, text: str) -> Counter[str]:
        """The names in a text that occur twice or more, and how often each does."""
        counts = Counter(re.findall(r"\b[A-Z][a-z]+\b", text))
        inside = set(_INSIDE.findall(text))
        return Counter(
            {
                name: count
                for name, count in counts.items()
                if count > 1 and name not in NO_NAMES and (name in inside or not self._word(name))
            }
        )

    def _word(self, name: str) -> bool:
        return name.lower() in self.words

    def exchange(self, text: str, rng: np.random.Generator, also: Iterable[str] = ()) -> str:
        """The text with other names, each the same wherever it occurs.

        A name gives way to one with the same pronoun. A few are made up. Where nothing is known
        of a name, a made-up one takes its place every other time.

        Args:
            text: a story or its beginning.
            rng: the source of chance.
            also: words that are known to be names in this text.
        """
        said = sorted({*self.of(text), *self._known(text), *also})
        taken, fresh = set(said), {}
        for name in said:
            kind = self.kind.get(name)
            if rng.random() < (MADE_UP if kind else 0.5):
                other = made_up_name(rng)
            elif kind:
                pool = self.pools[kind]
                other = pool[rng.integers(len(pool))]
            else:
                continue
            if other not in taken:
                fresh[name] = other
                taken.add(other)
        if not fresh:
            return text
        return re.sub(rf"\b({'|'.join(fresh)})\b", lambda m: fresh[m[0]], text)

    def _known(self, text: str) -> set[str]:
        """Names whose bearers' pronoun is known, also where they occur once."""
        sure = set(re.findall(r"\b[A-Z][a-z]+\b", text)) & (set(words.NAMES) - words.ALSO_WORDS)
        return sure | {name for name in _INSIDE.findall(text) if name in self.kind}
