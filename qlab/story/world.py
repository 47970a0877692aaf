"""The story world: a seeded generator of stories whose facts are known.

``generate(seed)`` tells a story and says what is true in it: who, where, what was lost, who found
it, what was promised, how it felt. It gives the storyteller endless training text, and gives
evaluation what no public corpus has: a continuation can be checked against the facts (see
``qlab.story.consistency``).

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qlab.errors import QlabError
from qlab.story.worldparts import words as w
from qlab.story.worldparts.grammar import expand, polish
from qlab.story.worldparts.patterns import plots, shared

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Facts:
    """What is true in a story; None where its plot does not say.

    Attributes:
        hero, hero_kind, pronoun: name, "girl", "she".
        others: (name, kind, pronoun) of each other character that appears.
        place: where it happens, without the preposition: "garden".
        other_place: where the hero has to go, if another place has a part.
        object, attribute: "kite", "red" (a color or a material).
        found_at, found_by: the spot and the character, if something was lost or hidden.
        promise: "water the flowers".
        number, number_left: how many there were (steps, weeks, cakes ...), and how many were left
            where the plot takes some away; as words.
        feeling_before, feeling_after: how the hero felt.
    """

    hero: str
    hero_kind: str
    pronoun: str
    others: tuple[tuple[str, str, str], ...]
    place: str | None
    other_place: str | None
    object: str | None
    attribute: str | None
    found_at: str | None
    found_by: str | None
    promise: str | None
    number: str | None
    number_left: str | None
    feeling_before: str | None
    feeling_after: str | None


@dataclass(frozen=True)
class WorldStory:
    """A story of the world; the same seed always gives the same one."""

    seed: int
    plot: str
    text: str
    facts: Facts


@dataclass(frozen=True)
class _Character:
    name: str
    kind: str  # "girl", "fox", "old baker"
    about: str  # "little girl", "kind fox", "old baker"
    pronoun: str


PRONOUNS = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}
# Plots that need the open air.
OUTDOORS = set(
    """journey grow rivals contest storm stranger rescue echo errand seat build found
    mistaken kite umbrella parade medal wagon stall feast prank thief tower""".split()
)
# Plots in which the hero does not feel bad: the friend does, or nobody.
CHEERFUL = {"gift", "stranger", "trade"}
# What a shared line may not hold, and the plots that it does not fit.
UNFIT = {
    "best friend": set(
        """stranger storm wish trade guest found mistaken share moving newcomer goodbye
        rumor""".split()
    ),
    # Food or time is short, or the mouth is not free.
    "<food>": set(
        """trade guest share rescue errand hide costume tooth stall picnic fog boat""".split()
    ),
    # The hero is there already (alone in "guest"), or has just left it.
    " home": {"mess", "guest", "sibling", "moving", "goodbye"},
    # The hero has lost the voice, or may not use it.
    "{hummed|sang}": {"bet", "cold", "costume"},
    "{Good day|Hello}": {"bet", "cold", "costume"},
    "felt so <down>": CHEERFUL,
}
# What is hidden or lost is found at the spot; by the hero, the friend (or not as a fact).
FOUND_BY = {"lost": "friend", "hide": "friend", "letter": "hero", "collection": "hero"}
SPOTS = FOUND_BY.keys() | {"gift", "secret"}
# Plots that make their own weather.
WEATHER = set("snow flood picnic kite umbrella fog swim sleepless camp pet".split())
# Plots in which somebody hides.
HIDDEN = {"hide", "hiccups", "haircut", "prank"}
# Some are taken away, or given.
LESS = {"lie", "share", "collection"}


def plot_names() -> list[str]:
    """Names of all plots."""
    return sorted(plots())


def generate(seed: int, plot: str | None = None, hero: tuple[str, str] | None = None) -> WorldStory:
    """Tell the story of a seed.

    Args:
        seed: any integer.
        plot: a name from ``plot_names()``; None lets the seed choose.
        hero: (name, "he" or "she") of somebody who has been introduced already, in an opening
            that is not part of the story: it begins with what happens.

    Raises: QlabError for an unknown plot.
    """
    # A string seeds Python's generator the same way in every process; a tuple's hash would not.
    rng = random.Random(f"qlab world {seed}")
    chosen = rng.choice(plot_names())
    if plot is not None:
        if plot not in plots():
            raise QlabError(f"no plot '{plot}': choose from {', '.join(plot_names())}")
        chosen = plot
    cast = _cast(rng, hero)
    context, drawn = _context(rng, chosen, *cast)
    outdoors = drawn["place"] not in w.INDOORS
    text = _tell(rng, chosen, context, outdoors, introduced=hero is not None)
    # Who was introduced has been told, whatever other words a name may be ("Will", "Honey").
    told = [c for c, key in zip(cast[1:], ("f_known", "g_known"), strict=True) if key in context]
    return WorldStory(seed, chosen, text, _facts(text, drawn, *cast[:2], told))


def stream(seed: int = 0, split: str = "train") -> Iterator[WorldStory]:
    """Stories without end. Streams of different splits never share a story's seed.

    Raises: QlabError for an unknown split.
    """
    if split not in SPLITS:
        raise QlabError(f"no split '{split}': choose from {', '.join(SPLITS)}")
    index = random.Random(f"qlab stream {seed}").getrandbits(48)
    while True:
        yield generate(index * len(SPLITS) + SPLITS.index(split))
        index += 1


def split_sentences(text: str) -> list[str]:
    """Sentences of a story; a quotation keeps its closing mark and what follows it ("..." said)."""
    return re.findall(r"\S.*?[.!?]\"?(?=\s+[\"A-Z]|\s*$)", text, re.DOTALL)


def opening(story: WorldStory, sentences: int = 3) -> tuple[str, str]:
    """(the first sentences, the rest) of a story."""
    first = split_sentences(story.text)[:sentences]
    cut = story.text.index(first[-1], sum(map(len, first[:-1]))) + len(first[-1])
    return story.text[:cut], story.text[cut:].strip()


def _cast(
    rng: random.Random, hero: tuple[str, str] | None = None
) -> tuple[_Character, _Character, _Character]:
    names: set[str] = set()
    cast = []
    for index in range(3):
        kind, about, pronoun, pool = _kind(rng, hero=index == 0)
        if index == 0 and hero is not None:
            names.add(hero[0])
            # What the hero is was said by the opening; no beat says it again.
            cast.append(_Character(hero[0], "hero", "hero", hero[1]))
            continue
        name = rng.choice([n for n in pool if n not in names])
        names.add(name)
        cast.append(_Character(name, kind, about, pronoun))
    return cast[0], cast[1], cast[2]


def _kind(rng: random.Random, hero: bool) -> tuple[str, str, str, list[str]]:
    roll = rng.random()
    if roll < 0.5:
        kind = rng.choice(sorted(w.CHILDREN))
        pronoun = w.CHILDREN[kind]
        adjective = rng.choice([*w.TEMPERS, "little", "little", "young", "small", "tall"])
        return kind, f"{adjective} {kind}", pronoun, w.GIRLS if pronoun == "she" else w.BOYS
    pronoun = rng.choice(["he", "she"])
    if roll < 0.88 or hero:
        kind = rng.choice(w.ANIMALS if roll < 0.94 else w.OTHERS)
        # "A tiny giant" would be a joke, not a fact.
        adjective = rng.choice(w.TEMPERS + (w.SIZES if kind in w.ANIMALS else []))
        pool = w.ANIMAL_NAMES + (w.GIRLS if pronoun == "she" else w.BOYS)
        return kind, f"{adjective} {kind}", pronoun, pool
    about, fixed = rng.choice(w.GROWN_UPS)
    pronoun = fixed or pronoun
    return about, about, pronoun, w.GIRLS if pronoun == "she" else w.BOYS


def _context(
    rng: random.Random, plot: str, hero: _Character, friend: _Character, third: _Character
) -> tuple[dict[str, str], dict[str, str]]:
    """Values of every slot, and the raw draws that the facts are made of."""
    places = [p for p in w.PLACES if plot not in OUTDOORS or p not in w.INDOORS]
    place, place2 = rng.sample(places, 2)
    thing = rng.choice(w.OBJECTS_OF_PLOT.get(plot, w.OBJECTS))
    thing2 = rng.choice([o for o in w.OBJECTS if o != thing])
    number = rng.randint(5, 9)
    given = 2 if plot == "lie" else rng.randint(2, number - 2)
    counted = rng.choice(w.COUNTED)
    promise = rng.choice(sorted(w.PROMISES))
    fear = rng.choice(sorted(w.FEARS))
    wish = rng.choice(sorted(w.WISHES))
    weather = rng.choice(w.WEATHER[rng.choice(sorted(w.WEATHER))])
    own = hero.about.split()[0]
    fitting = [t for t in w.TEMPERS if t != own and t != w.OPPOSITES.get(own)]
    temper, temper2, temper3 = rng.sample(fitting, 3)
    if temper3 == w.OPPOSITES.get(temper):
        temper, temper2 = temper2, temper
    baby = rng.choice(sorted(w.BABIES))
    skill = rng.choice(sorted(w.SKILLS))
    song = rng.choice(sorted(w.SONGS))
    drawn = {
        "place": place,
        "place2": place2,
        "object": thing,
        "color": rng.choice(w.COLORS),
        "material": rng.choice(w.MATERIALS),
        "spot": rng.choice(w.HIDING if plot in HIDDEN else w.PLACES[place][1]),
        "promise": promise,
        "number": w.NUMBERS[number],
        "left": w.NUMBERS[number - given],
        "down": rng.choice(w.FEELINGS_DOWN + w.FEELINGS_OF_PLOT.get(plot, [])),
        "up": rng.choice(w.FEELINGS_UP),
        "plot": plot,
    }
    context = {
        "where": w.PLACES[place][0],
        "place": f"the {place}",
        "where2": w.PLACES[place2][0],
        "place2": f"the {place2}",
        "spot": drawn["spot"],
        "on": thing,
        "on2": thing2,
        "oc": drawn["color"],
        "mat": drawn["material"],
        "food": rng.choice(w.FOODS),
        "down": drawn["down"],
        "up": drawn["up"],
        "weather": weather,
        "temper": temper,
        "temper2": temper2,
        "temper3": temper3,
        "n1": drawn["number"],
        "ng": w.NUMBERS[given],
        "nless": drawn["left"],
        "things": w.PLURALS.get(counted, counted + "s"),
        "promise": promise,
        "promised": w.PROMISES[promise][0],
        "pobj": w.PROMISES[promise][1],
        "fear": fear,
        "face": w.FEARS[fear],
        "wish": wish,
        "catch": w.WISHES[wish][0],
        "back": w.WISHES[wish][1],
        "plant": rng.choice(w.PLANTS),
        "game": rng.choice(w.GAMES),
        "call": rng.choice(w.CALLS),
        "baby": baby,
        "skill": skill,
        "did": w.SKILLS[skill],
        "built": rng.choice(w.BUILDINGS),
        "cub": rng.choice(w.CUBS),
        "job": rng.choice(w.JOBS),
        "kept": rng.choice(w.KEPT),
        "song1": song,
        "song2": w.SONGS[song],
        "fi2": rng.choice(["an old woman", "an old man", "a neighbor", "a man with a cart"]),
    }
    people = (("", hero.pronoun), ("f", friend.pronoun), ("g", third.pronoun))
    for prefix, pronoun in (*people, ("b", w.BABIES[baby])):
        for key, word in zip(("he", "him", "his", "himself"), PRONOUNS[pronoun], strict=True):
            context[prefix + key] = word
    for letter, who in (("h", hero), ("f", friend), ("g", third)):
        context |= {letter: who.name, f"{letter}k": f"a {who.about}"}
        context[f"{letter}i"] = f"a {who.about} named {who.name}"
    return context, drawn


def _tell(
    rng: random.Random, plot: str, context: dict[str, str], outdoors: bool, introduced: bool
) -> str:
    """Choose a line of every beat, with small scenes between, and join them to paragraphs."""
    parts = shared()
    weather = outdoors and plot not in WEATHER
    openings = [p for p in parts["openings"] if weather or "<Weather>" not in p]
    lines = [] if introduced else [rng.choice(openings)]
    if rng.random() < (0.3 if introduced else 0.6):
        lines.append(rng.choice(_fitting(parts["traits"], plot)))
    if weather and not any("<Weather>" in x for x in lines) and rng.random() < 0.35:
        lines.append(rng.choice(parts["weather_beats"]))
    scenes = rng.sample(_fitting(parts["scenes"], plot), 2)
    for i, beat in enumerate(plots()[plot]):
        if i > 0 and plot != "contest" and scenes and rng.random() < 0.16:
            lines.append(scenes.pop())
        lines.append(rng.choice(beat))
    lines.append(rng.choice(_fitting(parts["endings"], plot)))
    out = []
    for line in lines:
        out.append(polish(expand(_introduce(line, context), context, rng)))
    breaks = set(rng.sample(range(1, len(out)), k=min(len(out) - 1, rng.randint(1, 3))))
    text = "".join(("\n" if i in breaks else " " if i else "") + s for i, s in enumerate(out))
    return text


def _fitting(lines: list[str], plot: str) -> list[str]:
    marks = [mark for mark, unfit in UNFIT.items() if plot in unfit]
    return [line for line in lines if not any(mark in line for mark in marks)]


def _introduce(line: str, context: dict[str, str]) -> str:
    """A character is introduced once: "a small fox named Pip" first, then "Pip"."""
    for letter in "fg":
        name, key = f"<{letter}>", f"{letter}_known"
        first = re.search(f"<(?:{letter}|{letter.upper()})i?>", line)
        if first is None:
            continue
        if context.get(key) == context[letter]:
            line = re.sub(f"(<[{letter}{letter.upper()}]>), <{letter}k>,", r"\1", line)
            line = re.sub(f", <{letter}k>\\.", ".", line)
            line = line.replace(f"<{letter}i>", name)
            line = line.replace(f"<{letter.upper()}i>", name.upper())
            line = line.replace(f"<{letter.upper()}> was <{letter}k> who", f"<{letter.upper()}>")
        context[key] = context[letter]
    return line


def _facts(
    text: str,
    drawn: dict[str, str],
    hero: _Character,
    friend: _Character,
    told: list[_Character],
) -> Facts:
    """Only what the text says: a value that does not occur in it is None."""

    def said(value: str) -> str | None:
        return value if re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE) else None

    plot = drawn["plot"]
    attribute = drawn["material"] if plot == "broken" else drawn["color"]
    whole = said(f"{attribute} {drawn['object']}") is not None
    spot = said(drawn["spot"]) if plot in SPOTS else None
    finder = {"hero": hero.name, "friend": friend.name}.get(FOUND_BY.get(plot, ""))
    return Facts(
        hero=hero.name,
        hero_kind=hero.kind,
        pronoun=hero.pronoun,
        others=tuple((c.name, c.kind, c.pronoun) for c in told),
        place=_place(drawn["place"], text),
        other_place=_place(drawn["place2"], text),
        object=drawn["object"] if whole else None,
        attribute=attribute if whole else None,
        found_at=spot,
        found_by=finder if spot else None,
        promise=drawn["promise"] if plot == "promise" else None,
        number=said(drawn["number"]),
        number_left=said(drawn["left"]) if plot in LESS else None,
        feeling_before=None if plot in CHEERFUL else drawn["down"],
        feeling_after=drawn["up"],
    )


def _place(place: str, text: str) -> str | None:
    """The place if the text says it, as in "in the garden" or "near the garden"."""
    return place if re.search(rf"\bthe (?:old )?{place}\b(?! pond)", text, re.I) else None
