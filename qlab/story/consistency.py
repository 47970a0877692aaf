"""Does a continuation keep the facts of its story?

A story of the world has known facts (``qlab.story.world``), so what a model adds to its opening can
be checked: is the hero still called the same, is the kite still red, was the right thing done to
keep the promise? Only what the opening has told counts, and what the continuation itself has said
before; a model cannot know more.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.story.telling import tell
from qlab.story.world import PRONOUNS, Facts, WorldStory
from qlab.story.world import opening as cut_opening
from qlab.story.worldparts import words as w


@dataclass(frozen=True)
class Consistency:
    """What a continuation kept: True or False, None where it gives no evidence.

    Attributes:
        hero: the hero's name is still used; False if a new name, never introduced, took its place.
        pronoun: the hero is called by the same pronoun.
        names: whoever is named besides the hero was introduced first ("a fox named Pip").
        object: the object of the story still plays its part; False if another one took it.
        attribute: no other color or material is given to the object.
        promise: what was promised was done, and not another thing.
        number: what was counted is still as many, or fewer by as many as were taken.
        place: the place is the same; stories in which the hero travels may name one more.
    """

    hero: bool | None
    pronoun: bool | None
    names: bool | None
    object: bool | None
    attribute: bool | None
    promise: bool | None
    number: bool | None
    place: bool | None

    @property
    def score(self) -> float | None:
        """Share of the aspects with evidence that were kept, in [0, 1]; None without evidence."""
        found = [v for v in self._values() if v is not None]
        return sum(found) / len(found) if found else None

    def __str__(self) -> str:
        said = {True: "kept", False: "broken", None: "-"}
        names = (f.name for f in fields(self))
        aspects = ", ".join(f"{n} {said[v]}" for n, v in zip(names, self._values(), strict=True))
        return f"score {'-' if self.score is None else format(self.score, '.2f')}: {aspects}"

    def _values(self) -> list[bool | None]:
        return [getattr(self, f.name) for f in fields(self)]


@dataclass(frozen=True)
class Mean:
    """Mean consistency score over stories.

    Attributes:
        mean: of the scores.
        low, high: bounds of the 95% confidence interval (bootstrap over stories).
        count: how many stories had a score.
    """

    mean: float
    low: float
    high: float
    count: int


def consistency(
    continuation: str, story: WorldStory | Facts, opening: str | None = None
) -> Consistency:
    """Check a continuation against the facts of the story that it continues.

    Args:
        continuation: what follows the opening; may be empty.
        story: the story of the world, or its facts.
        opening: what came before. Only facts that it tells are held against the continuation.
            None: the continuation may be held to all facts.

    Raises: QlabError if ``story`` is neither.
    """
    facts = story.facts if isinstance(story, WorldStory) else story
    if not isinstance(facts, Facts):
        raise QlabError(
            f"no facts in a {type(story).__name__}: give a story of qlab.story.world, or its facts"
        )
    before = " ".join((opening or "").split())
    start = len(before) + bool(before)
    text = f"{before} {' '.join(continuation.split())}".strip()
    known = opening is None
    hero, names = _people(text, start, facts, known)
    thing, attribute = _object(text, start, facts, known)
    return Consistency(
        hero=hero,
        pronoun=_pronoun(text, start, facts, known),
        names=names,
        object=thing,
        attribute=attribute,
        promise=_promise(text, start, facts, known),
        number=_number(text, start, facts, known),
        place=_place(text, start, facts, known),
    )


def consistency_of(
    model: Any,
    tokenizer: Any,
    stories: Sequence[WorldStory],
    *,
    sentences: int = 5,
    max_tokens: int = 90,
    continue_all: Callable[[Sequence[str]], Sequence[str]] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Mean:
    """Mean consistency score of a model's greedy continuations, with its 95% interval.

    Args:
        model: a transformers causal language model, quantized by qlab or not.
        tokenizer: its tokenizer.
        stories: of the world, from a split that the model was not trained on.
        sentences: length of each opening; three are often over before the plot begins.
        max_tokens: length of each continuation, in pieces.
        continue_all: continues openings in another way; takes their list and returns the list of
            continuations, without the openings. ``model`` and ``tokenizer`` are not used then.
        resamples: of the bootstrap.
        seed: of the bootstrap, so that the interval is always the same.

    Raises: QlabError without stories, or if no continuation speaks of any fact.
    """
    if not stories:
        raise QlabError("no stories to continue: give some of qlab.story.world.stream")
    cuts = [cut_opening(s, sentences)[0] for s in stories]
    told = continue_all(cuts) if continue_all else _continue(model, tokenizer, cuts, max_tokens)
    found = [consistency(t, s, o).score for t, s, o in zip(told, stories, cuts, strict=True)]
    scores = np.array([f for f in found if f is not None])
    if not len(scores):
        raise QlabError("no continuation speaks of any fact: allow more tokens")
    rng = np.random.default_rng(seed)
    means = scores[rng.integers(len(scores), size=(resamples, len(scores)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(float(scores.mean()), float(low), float(high), len(scores))


def _continue(model: Any, tokenizer: Any, openings: Sequence[str], max_tokens: int) -> list[str]:
    from qlab.nn import dequantize_model

    plain = dequantize_model(model)
    told = []
    for text in openings:
        again = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        told.append(tell(plain, tokenizer, text, max_tokens)[len(again) :])
    return told


# --- who ---------------------------------------------------------------------------------------

_NO_NAMES = set(
    """Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May
    June July August September October November December Christmas God Mr Mrs Miss Mom Mommy Mum
    Mother Dad Daddy Father Mama Papa Grandma Grandpa Granny Grandmother Grandfather Aunt Uncle
    King Queen Prince Princess""".split()
)
_START = re.compile(r"(?:^|[.!?:;]['\"]?\s+['\"]?|['\"(]|-\s)$")
# Who does this again and again is somebody, also at the start of a sentence.
_DOES = re.compile(
    r"\b([A-Z][a-z]+) (?:felt|said|went|ran|took|saw|looked|smiled|laughed|agreed|thought|knew|"
    r"sat|gave|cried|wanted|told|asked|met|came|held|picked|pushed|pulled|stopped|could not)\b"
)
_PRONOUNS = set(
    """He She It They We You Who Nobody Everybody Everyone Somebody Someone People Others All Both
    Then Not This That Time Children Only Some None Two One""".split()
)
_SAYS = r"(?:said|asked|called|cried|whispered|shouted|told|thought|answered|promised|sang|went on)"
_PEOPLE = re.compile(
    r"\b(?:man|woman|mother|father|grandmother|grandfather|baby|brother|sister|neighbor|friend|"
    r"postman|king|queen|somebody|someone|nobody|everyone|everybody)\b",
    re.I,
)


def _names(text: str) -> list[tuple[int, str]]:
    """(position, name) of every personal name in the text, in order."""
    found = [(m.start(), m[0]) for m in re.finditer(r"\b[A-Z][a-z]+\b", text)]
    found = [(at, name) for at, name in found if name not in _NO_NAMES]
    first = {at for at, _ in found if _START.search(text[max(0, at - 4) : at])}
    # A capital letter within a sentence makes a name, and so does our list.
    sure = {name for at, name in found if at not in first}
    sure |= set(w.NAMES) - w.ALSO_WORDS
    does = [m[1] for m in _DOES.finditer(text)]
    sure |= {name for name in does if does.count(name) > 1} - w.ALSO_WORDS - _PRONOUNS
    return [(at, name) for at, name in found if name in sure]


def _introduced(text: str, at: int, name: str) -> bool:
    """Whether the name at this position is given to somebody there."""
    if re.search(
        r"\b(?:named|(?:an?|the) (?:\w+ ){1,3}called|name (?:is|was)|I am) $",
        text[max(0, at - 40) : at],
    ):
        return True
    after = text[at + len(name) : at + len(name) + 12]
    return bool(re.match(r", (?:an?|the|his|her|their)\b| (?:was|is) an? ", after))


def _people(text: str, start: int, facts: Facts, known: bool) -> tuple[bool | None, bool | None]:
    met = {facts.hero} | ({name for name, _, _ in facts.others} if known else set())
    said, strangers, others = False, False, False
    for at, name in _names(text):
        if at >= start:
            said |= name == facts.hero
            others |= name != facts.hero
            strangers |= name not in met and not _introduced(text, at, name)
        met.add(name)
    hero = True if said else False if strangers else None
    return hero, (not strangers) if others else None


def _pronoun(text: str, start: int, facts: Facts, known: bool) -> bool | None:
    """Looks at sentences that speak of the hero alone, and at the one after each."""
    people = {name for _, name in _names(text)}
    before = _told(text[:start])
    called: list[str] = []
    alone = False
    for i, sentence in enumerate(before + _told(text[start:])):
        words = [x.lower() for x in re.findall(r"[A-Za-z]+", sentence)]
        found = [words[0]] if alone and words[0] in PRONOUNS else []
        names = people.intersection(re.findall(r"[A-Z][a-z]+", sentence))
        alone = names == {facts.hero} and not _PEOPLE.search(sentence)
        alone = alone and not re.search(rf"\b{_SAYS} {facts.hero}\b", sentence)
        if alone:
            after = " ".join(re.split(rf"\b{facts.hero}\b", sentence)[1:])
            said = set(re.findall(r"[a-z]+", after.lower()))
            found += sorted(said.intersection(PRONOUNS))
            # With two kinds of pronouns, the next sentence may speak of somebody else.
            alone = sum(not said.isdisjoint(forms) for forms in PRONOUNS.values()) < 2
        if i >= len(before):
            called += found
    if known or _has_any(text[:start], (*PRONOUNS[facts.pronoun], *w.CHILDREN)):
        return set(called) <= {facts.pronoun} if called else None
    return len(set(called)) == 1 if len(called) > 1 else None


def _has_any(text: str, words: tuple[str, ...]) -> bool:
    return any(_has(text, word) for word in words)


def _told(text: str) -> list[str]:
    """Sentences without what is said in them."""
    plain = re.sub(r"\"[^\"]*\"?", " ", text)
    return [s.strip() for s in re.findall(r"[^.!?]+", plain) if re.search("[A-Za-z]", s)]


# --- what --------------------------------------------------------------------------------------

_LOOKS = "|".join(dict.fromkeys(w.COLORS + w.MATERIALS))


def _object(text: str, start: int, facts: Facts, known: bool) -> tuple[bool | None, bool | None]:
    thing = facts.object
    if thing is None or facts.attribute is None:
        return None, None
    before, told = text[:start], text[start:]
    part: bool | None = None
    if known or _has(before, thing):
        part = True if _has(told, thing) else False if _replaced(told, thing) else None
    looks = _looks(told, thing)
    if known:
        allowed = {facts.attribute}
    elif _looks(before, thing):
        allowed = set(_looks(before, thing))
    else:  # the first look is the one to keep, and shows nothing yet
        allowed, looks = set(looks[:1]), looks[1:]
    return part, set(looks) <= allowed if looks else None


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.I) is not None


def _looks(text: str, thing: str) -> list[str]:
    """Colors and materials that the text gives to a thing, in order."""
    return [m[1].lower() for m in re.finditer(rf"\b({_LOOKS}) {thing}\b", text, re.I)]


def _replaced(text: str, thing: str) -> bool:
    """Whether another object has a color, or is spoken of as a known one again and again."""
    for other in w.OBJECTS:
        if other != thing:
            again = re.findall(rf"\b(?:the|his|her) {other}\b", text, re.I)
            if _looks(text, other) or len(again) > 1:
                return True
    return False


def _promise(text: str, start: int, facts: Facts, known: bool) -> bool | None:
    promises = {p: text.find(p) for p in w.PROMISES if p in text}
    first = min(promises, key=promises.__getitem__, default=None)
    given = facts.promise if known and facts.promise else first
    if facts.promise is None or given is None:
        return None
    told = text[start:]
    done = w.PROMISES[given][0]
    if _has(told, done):
        return True
    if any(_has(told, d) for d, _ in w.PROMISES.values()):
        return False
    # "Fed the horse" instead of "fed the hens".
    verb = done.split()[0]
    return False if re.search(rf"\b{verb} (?:the|an?) \w+", told) else None


# --- how many, where ----------------------------------------------------------------------------

_NUMBERS = {word: n for n, word in enumerate(w.NUMBERS) if n > 1}
_N = f"({'|'.join(_NUMBERS)})"
# Number and what it counts; the middle words may stand between.
_COUNTS = re.compile(rf"\b{_N}(?= (?:(?:small|little|new|more) )?([a-z']+)\b)", re.I)
_CLOCK = re.compile(rf"\bclock (?:struck|showed) {_N}\b", re.I)
_STEP = re.compile(rf"\bstep number {_N}\b", re.I)
_COUNTED = re.compile(rf"\b[Cc]ount(?:ed)? (?:up )?to {_N}\b|\"{_N}! I am coming")
# "Only four were left": a number with nothing behind it.
_BARE = re.compile(rf"(?<!to )\b{_N}(?=[.,!?]| (?:were|was|of them|of the|once|are|left)\b)", re.I)


def _number(text: str, start: int, facts: Facts, known: bool) -> bool | None:
    """Everything that is counted twice must be counted alike."""
    if facts.number is None:
        return None
    if facts.number_left is not None:
        return _less(text, start, facts, known)
    counted: dict[str, int] = {}
    if known:
        counted = {c: _NUMBERS[facts.number] for c, n, _ in _pairs(text) if n == facts.number}
    evidence: set[bool] = set()
    for what, number, at in _pairs(text):
        if at >= start and what in counted:
            evidence.add(counted[what] == _NUMBERS[number])
        counted.setdefault(what, _NUMBERS[number])
        # The world counts from five on; smaller numbers are said in passing.
        if known and at >= start and _NUMBERS[number] > 4:
            evidence.add(number == facts.number)
    return None if not evidence else evidence == {True}


def _pairs(text: str) -> list[tuple[str, str, int]]:
    """(what is counted, number word, position), in order."""
    found = [(m[2].lower(), m[1].lower(), m.start()) for m in _COUNTS.finditer(text)]
    found = [x for x in found if x[0].endswith("s") or x[0] in ("o'clock", "people")]
    found += [("o'clock", m[1].lower(), m.start()) for m in _CLOCK.finditer(text)]
    found += [("steps", m[1].lower(), m.start()) for m in _STEP.finditer(text)]
    found += [("to", (m[1] or m[2]).lower(), m.start()) for m in _COUNTED.finditer(text)]
    return sorted(found, key=lambda x: x[2])


def _less(text: str, start: int, facts: Facts, known: bool) -> bool | None:
    """Some are taken away: what was taken and what is left make up the whole."""
    pairs = _pairs(text)
    thing = next((what for what, n, _ in pairs if n == facts.number), None)
    said = [(at, _NUMBERS[n]) for what, n, at in pairs if what == thing]
    said += [(m.start(), _NUMBERS[m[1].lower()]) for m in _BARE.finditer(text)]
    numbers = [n for _, n in sorted(said)]
    later = {n for at, n in said if at >= start}
    if not later:
        return None
    whole = _NUMBERS[facts.number or ""] if known else numbers[0]
    parts = set(numbers) - {whole}
    if any(n > whole for n in parts) or len(parts) > 2:
        return False
    if len(parts) == 2:
        return sum(parts) == whole
    if known and facts.number_left and parts:
        left = _NUMBERS[facts.number_left]
        return parts <= {left, whole - left}
    return True if whole in later and len(numbers) > 1 else None


def _place(text: str, start: int, facts: Facts, known: bool) -> bool | None:
    before = _places(text[:start])
    found = _places(text[start:])
    allowed = set(before)
    if known:
        allowed |= {p for p in (facts.place, facts.other_place) if p}
    fresh = [p for p in found if p not in allowed]
    # Room for the story's own place, and for the one to go to, as far as they are still untold.
    room = 0 if known else (not before) + (facts.other_place is not None and len(set(before)) < 2)
    return None if not found else len(set(fresh)) <= room


def _places(text: str) -> list[str]:
    pattern = rf"\bthe (?:old )?({'|'.join(w.PLACES)})\b(?! pond)"
    return [m[1].lower() for m in re.finditer(pattern, text, re.I)]
