"""The consistency score: the true rest keeps every fact, a corrupted one does not."""

import re

import pytest

from qlab.errors import QlabError
from qlab.story import consistency, consistency_of
from qlab.story.consistency import Consistency
from qlab.story.world import Facts, generate, opening
from qlab.story.worldparts import words

ASPECTS = list(Consistency.__dataclass_fields__)
STORIES = [generate(seed) for seed in range(600)]
CUTS = [(story, *opening(story, 3 + story.seed % 3)) for story in STORIES]
SWAPPED = {"he": "she", "she": "he", "his": "her", "her": "his", "him": "her"}


def replaced(text, old, new):
    return re.sub(rf"\b{re.escape(old)}\b", new, text)


def lowered(corrupt, aspect):
    """(how many corruptions lowered the score, how many broke the aspect, how many there were)."""
    fewer = broken = tried = 0
    for story, start, rest in CUTS:
        wrong = corrupt(story.facts, start, rest)
        if wrong is None or wrong == rest:
            continue
        tried += 1
        result = consistency(wrong, story, start)
        fewer += result.score is not None and result.score < 1
        broken += getattr(result, aspect) is False
    return fewer, broken, tried


def test_the_true_rest_keeps_every_fact():
    for story, start, rest in CUTS:
        result = consistency(rest, story, start)
        assert result.score == 1.0, (story.seed, result)


def test_the_whole_story_keeps_its_facts():
    for story in STORIES:
        result = consistency(story.text, story)
        assert result.score == 1.0, (story.seed, result)


def test_every_aspect_finds_evidence():
    found = dict.fromkeys(ASPECTS, 0)
    for story, start, rest in CUTS:
        result = consistency(rest, story, start)
        for aspect in ASPECTS:
            found[aspect] += getattr(result, aspect) is not None
    assert found["hero"] == len(CUTS)
    # Only one plot in eighty has a promise of the list.
    assert min(found.values()) >= 3, found


def test_facts_alone_will_do():
    story, start, rest = CUTS[0]
    assert consistency(rest, story.facts, start) == consistency(rest, story, start)


def test_another_hero_breaks_it():
    fewer, broken, tried = lowered(lambda f, start, rest: replaced(rest, f.hero, "Bertram"), "hero")
    assert tried == len(CUTS)
    # A name that only ever begins sentences may be missed.
    assert fewer > 0.99 * tried
    assert broken > 0.97 * tried


def test_another_color_breaks_it():
    def every(f, start, rest):
        if f.object and f"{f.attribute} {f.object}" in start:
            color = next(c for c in words.COLORS if c != f.attribute)
            return rest.replace(f"{f.attribute} {f.object}", f"{color} {f.object}")
        return None

    def last(f, start, rest):
        phrase = f"{f.attribute} {f.object}"
        if f.object and rest.count(phrase) > 1:
            color = next(c for c in reversed(words.COLORS) if c != f.attribute)
            return f"{color} {f.object}".join(rest.rsplit(phrase, 1))
        return None

    for corrupt in (every, last):
        fewer, broken, tried = lowered(corrupt, "attribute")
        assert tried > 50
        assert fewer == broken == tried


def test_another_object_breaks_it():
    def corrupt(f, start, rest):
        if f.object and re.search(rf"\b{f.object}\b", start):
            other = next(o for o in words.OBJECTS if o != f.object)
            return replaced(rest, f.object, other)
        return None

    fewer, _, tried = lowered(corrupt, "object")
    assert tried > 50
    assert fewer > 0.95 * tried


def test_another_pronoun_breaks_it():
    def corrupt(f, start, rest):
        def swap(m):
            word = SWAPPED[m[0].lower()]
            return word.capitalize() if m[0][0].isupper() else word

        # Only where there is evidence in the true rest: else nothing can be seen.
        if consistency(rest, f, start).pronoun is None:
            return None
        return re.sub(r"\b(he|she|his|her|him)\b", swap, rest, flags=re.IGNORECASE)

    fewer, broken, tried = lowered(corrupt, "pronoun")
    assert tried > 200
    assert fewer > 0.9 * tried
    assert broken > 0.9 * tried


def test_a_broken_promise_breaks_it():
    promised = [generate(seed, "promise") for seed in range(200)]
    kept = 0
    for story in promised:
        start, rest = opening(story, 4)
        done = words.PROMISES[story.facts.promise][0]
        assert consistency(rest, story, start).promise in (True, None)
        kept += consistency(rest, story, start).promise is True
        other = next(d for p, (d, _) in words.PROMISES.items() if p != story.facts.promise)
        for wrong in (other, f"{done.split()[0]} the horse"):
            result = consistency(rest.replace(done, wrong), story, start)
            assert result.promise is False, (story.seed, result)
            assert result.score < 1
    assert kept > 150


@pytest.mark.parametrize("plot", ["collection", "lie", "share"])
def test_another_count_breaks_it(plot):
    caught = tried = 0
    for seed in range(200):
        story = generate(seed, plot)
        start, rest = opening(story, 5)
        left = words.NUMBERS.index(story.facts.number_left)
        wrong = re.sub(
            rf"\b{words.NUMBERS[left]}\b", words.NUMBERS[left + 1], rest, flags=re.IGNORECASE
        )
        assert consistency(rest, story, start).number is not False, story.seed
        if wrong != rest and consistency(rest, story, start).number:
            tried += 1
            caught += consistency(wrong, story, start).number is False
    assert tried > 40
    # Where as many were taken as are left, or where the text says one of the two only, the wrong
    # number may still be possible.
    assert caught > 0.7 * tried


@pytest.mark.parametrize("plot", ["rescue", "build", "hide", "mess", "guest", "song"])
def test_what_is_counted_twice_is_counted_alike(plot):
    caught = tried = 0
    for seed in range(150):
        story = generate(seed, plot)
        number = story.facts.number
        first = re.search(rf"\b{number}\b[^.!?]*[.!?]\"?", story.text, re.IGNORECASE)
        if first is None:
            continue
        start, rest = story.text[: first.end()], story.text[first.end() :]
        assert consistency(rest, story, start).number is not False, story.seed
        if consistency(rest, story, start).number:
            tried += 1
            other = "nine" if number != "nine" else "seven"
            wrong = re.sub(rf"\b{number}\b", other, rest, flags=re.IGNORECASE)
            caught += consistency(wrong, story, start).number is False
    assert tried > 20
    assert caught == tried


def test_another_place_breaks_it():
    def corrupt(f, start, rest):
        if f.place and re.search(rf"\bthe (?:old )?{f.place}\b", start):
            other = next(p for p in words.PLACES if p not in (f.place, f.other_place))
            return re.sub(rf"\bthe (?:old )?{f.place}\b(?! pond)", f"the {other}", rest)
        return None

    fewer, _, tried = lowered(corrupt, "place")
    assert tried > 50
    assert fewer == tried


def test_somebody_who_was_never_introduced_breaks_it():
    def corrupt(f, start, rest):
        if not f.others or re.search(rf"\b{f.others[0][0]}\b", start):
            return None
        name = f.others[0][0]
        rest = re.sub(rf"\b[Aa]n? [a-z ]+ named {name}\b", name, rest)
        return re.sub(rf"\b{name}, an? [a-z ]+,", name, rest)

    fewer, broken, tried = lowered(corrupt, "names")
    assert tried > 200
    assert fewer > 0.95 * tried
    assert broken > 0.95 * tried


def test_a_hand_made_case():
    story = generate(0, "lost")
    facts = Facts(
        **{
            **vars(story.facts),
            "hero": "Pip",
            "pronoun": "he",
            "others": (),
            "place": "garden",
            "other_place": None,
            "object": "kite",
            "attribute": "red",
            "promise": None,
            "number": "five",
            "number_left": None,
        }
    )
    start = "In the garden, there was a fox named Pip. He had a red kite with five bells."
    good = "Pip lost his kite. He met a boy named Tom. Tom found the red kite with its five bells."
    assert consistency(good, facts, start) == Consistency(
        hero=True,
        pronoun=True,
        names=True,
        object=True,
        attribute=True,
        promise=None,
        number=True,
        place=None,
    )
    for aspect, bad in {
        "hero": "Zog flew away. Then everybody asked Zog about it.",
        "pronoun": "Pip was sad. She cried.",
        "names": "Pip asked Tom for help.",
        "object": "Pip ran home with a blue ball.",
        "attribute": "Pip saw the green kite.",
        "number": "Pip counted the six bells.",
        "place": "Pip swam in the lake.",
    }.items():
        result = consistency(bad, facts, start)
        assert getattr(result, aspect) is False, (aspect, result)
        assert result.score < 1


def test_no_evidence_is_no_score():
    result = consistency("", STORIES[0], CUTS[0][1])
    assert result.score is None
    assert all(getattr(result, aspect) is None for aspect in ASPECTS)
    assert "score -" in str(result)


def test_the_score_is_the_share_of_aspects_with_evidence():
    result = Consistency(True, False, None, None, True, None, None, True)
    assert result.score == 0.75
    assert str(result).startswith("score 0.75: hero kept, pronoun broken, names -")


def test_something_without_facts_is_refused():
    with pytest.raises(QlabError, match="no facts in a str: give a story"):
        consistency("Pip ran.", "Pip was a fox.")


def test_the_mean_of_true_and_of_wrong_continuations():
    stories = STORIES[:60]
    rests = {opening(s, 5)[0]: opening(s, 5)[1] for s in stories}
    true = consistency_of(None, None, stories, continue_all=lambda cuts: [rests[c] for c in cuts])
    assert (true.mean, true.low, true.high, true.count) == (1.0, 1.0, 1.0, 60)

    def wrong(cuts):
        return [
            replaced(rests[c], s.facts.hero, "Bertram") if i % 2 else rests[c]
            for i, (c, s) in enumerate(zip(cuts, stories, strict=True))
        ]

    half = consistency_of(None, None, stories, continue_all=wrong)
    assert half.low < half.mean < half.high < 1
    assert half == consistency_of(None, None, stories, continue_all=wrong)
    again = consistency_of(None, None, stories, continue_all=wrong, seed=1)
    assert again.mean == half.mean and again.low != half.low


def test_the_interval_covers_the_mean_of_all():
    """Over many samples of 40 stories, about 95% of the intervals hold the mean of all."""
    rests = {opening(s, 5)[0]: opening(s, 5)[1] for s in STORIES}
    heroes = {opening(s, 5)[0]: s.facts.hero for s in STORIES}

    def wrong(cuts):
        return [
            replaced(rests[c], heroes[c], "Bertram") if len(c) % 3 == 0 else rests[c] for c in cuts
        ]

    whole = consistency_of(None, None, STORIES, continue_all=wrong).mean
    samples = [STORIES[i : i + 40] for i in range(0, 600, 40)]
    found = [consistency_of(None, None, s, continue_all=wrong, resamples=500) for s in samples]
    assert sum(f.low <= whole <= f.high for f in found) >= 12


def test_a_model_is_asked_for_continuations(tiny):
    """A model without training says nothing of the facts, or breaks them."""
    model, tokenizer = tiny
    stories = STORIES[:3]
    calls = []
    forward = model.forward
    try:
        model.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
        with pytest.raises(QlabError, match="no continuation speaks of any fact"):
            consistency_of(model, tokenizer, stories, sentences=1, max_tokens=4)
    finally:
        model.forward = forward
    assert len(calls) >= 3


def test_no_stories_are_refused(tiny):
    with pytest.raises(QlabError, match=r"no stories to continue: give some of qlab.story.world"):
        consistency_of(*tiny, [])
