"""Other names in the same story: everywhere, of the same kind, and nothing that is a word."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.story import texts
from qlab.story.names import MADE_UP, NO_NAMES, Names, made_up_name, pronoun_of
from qlab.story.worldparts import words

HORACE = (
    "Horace was a tall clock who could not wait. He hurried. He said five at three.\n"
    '"He needs a rest," said Mama to Suri. Horace looked at Suri. He was sorry. '
    "Horace took a breath."
)


@pytest.fixture(scope="module")
def names():
    return Names([*texts("train")[:600], HORACE])


class Unlucky:
    """A source of chance that makes up no name and takes the first of a pool."""

    def random(self):
        return 0.99

    def integers(self, high):
        return 0


def test_names_are_exchanged_within_their_list_and_everywhere(names):
    rng = np.random.default_rng(0)
    text = 'Lily and Tom saw a fox named Pip. "Pip!" said Lily. Lily\'s hat fell. Tom ran.'
    seen = set()
    for _ in range(100):
        other = names.exchange(text, rng)
        girl, boy = re.match(r"(\w+) and (\w+) saw", other).groups()
        animal = re.search(r"named (\w+)", other)[1]
        for name, kind in ((girl, "she"), (boy, "he"), (animal, "any")):
            # A made-up name may be any; all others are of the same kind.
            assert names.kind.get(name, kind) == kind, other
        assert len({girl, boy, animal}) == 3
        back = re.sub(rf"\b{girl}\b", "Lily", other)
        back = re.sub(rf"\b{boy}\b", "Tom", back)
        assert re.sub(rf"\b{animal}\b", "Pip", back) == text
        seen.add(girl)
    assert len(seen) > 50


def test_a_hero_who_only_begins_sentences_is_found(names):
    assert names.of(HORACE)["Horace"] == 3
    assert names.kind["Horace"] == "he"
    other = names.exchange(HORACE, Unlucky())
    assert "Horace" not in other and other.count(names.pools["he"][0]) == 3


def test_nearly_every_story_gets_another_hero():
    """Lists of names alone would exchange the names of one story in five."""
    stories = texts("train")
    all_names, rng = Names(stories), np.random.default_rng(0)
    with_names = [text for text in stories if all_names.of(text)]
    assert len(with_names) > 0.7 * len(stories)
    changed = sum(all_names.exchange(text, rng) != text for text in with_names)
    assert changed > 0.9 * len(with_names)


def test_some_names_are_made_up(names):
    rng = np.random.default_rng(2)
    text = "They called Lily. Lily came, and Lily sang."
    found = [names.exchange(text, rng).split()[2].strip(".") for _ in range(2000)]
    share = np.mean([name not in names.kind for name in found])
    assert share == pytest.approx(MADE_UP, abs=0.035)  # four standard deviations


def test_two_names_never_become_one(names):
    rng = np.random.default_rng(1)
    text = " ".join(words.GIRLS[:20] + words.BOYS[:20])
    for _ in range(20):
        assert len(set(names.exchange(text, rng).split())) == 40


@pytest.mark.parametrize(
    "text",
    [
        "Once there was a fox. It was red. Once it ran. Once it slept.",
        # "Will" is a name of the list, and a word.
        '"Will you come with me?" asked the fox. "Will it rain?"',
        "On a Monday, the King met Grandmother. Grandmother laughed. The King and Grandmother ate.",
        "Honey dripped from the spoon. Honey dripped from the cup.",
    ],
)
def test_words_keep_their_place(names, text):
    for seed in range(20):
        assert names.exchange(text, np.random.default_rng(seed)) == text


def test_a_word_that_is_said_to_be_a_name_is_one(names):
    text = "Comet was a wooden horse."
    for seed in range(40):
        if (other := names.exchange(text, np.random.default_rng(seed), also=["Comet"])) != text:
            break
    assert re.fullmatch(r"[A-Z][a-z]+ was a wooden horse\.", other)


@given(st.integers(0, 2**32), st.integers(0, 599))
def test_a_story_keeps_everything_but_its_names(names, seed, which):
    text = texts("train")[which]
    other = names.exchange(text, np.random.default_rng(seed))
    old, new = (re.findall(r"\w+|\W", t) for t in (text, other))
    assert len(old) == len(new)
    fresh = {a: b for a, b in zip(old, new, strict=True) if a != b}
    assert all(a[0].isupper() and b[0].isupper() and a not in NO_NAMES for a, b in fresh.items())
    assert [fresh.get(a, a) for a in old] == new  # each the same wherever it occurs
    assert len(set(fresh.values())) == len(fresh)


def test_made_up_names_are_many():
    rng = np.random.default_rng(0)
    found = {made_up_name(rng) for _ in range(200)}
    assert len(found) > 190 and all(re.fullmatch(r"[A-Z][a-z]{3,8}", name) for name in found)


@pytest.mark.parametrize(
    ("text", "pronoun"),
    [
        ("She ran. Her hat fell.", "she"),
        ("He ran. His hat fell.", "he"),
        ("He saw her. He ran.", None),
        ("It ran.", None),
    ],
)
def test_the_pronoun_of_a_hero(text, pronoun):
    assert pronoun_of(text) == pronoun
