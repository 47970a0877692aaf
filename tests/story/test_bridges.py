"""Openings of written stories that go on in the story world."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.story.bridges import LONGEST, Bridges, introduction, opening_of
from qlab.story.stories import texts
from qlab.story.world import generate, split_sentences

COMMON = {"the", "a", "he", "she", "his", "her", "it", "but", "so", "then", "and", "one", "day"}


class Words:
    """A tokenizer of whole words."""

    eos_token_id = 0

    def __call__(self, text):
        return {"input_ids": [1 + hash(w) % 1000 for w in text.split()]}


@pytest.fixture(scope="module")
def bridges():
    return Bridges(texts("train"), Words())


def test_a_hero_is_found_by_name():
    text = (
        "Once there was a small crab named Beep. He lived under a stone. He liked it there. "
        "One day the sea took his stone away."
    )
    found = opening_of(text)
    assert (found.hero, found.pronoun) == ("Beep", "he")
    assert found.sentences == tuple(split_sentences(text))
    longer = opening_of(text + " Beep ran after it." * 8)
    assert len(longer.sentences) == LONGEST


def test_a_hero_without_a_name():
    text = (
        "Once there was a tired clock. The clock looked at her hands. She was late again. "
        "The clock sighed. Her spring was old, and the clock knew it."
    )
    found = opening_of(text)
    assert (found.hero, found.pronoun) == ("the clock", "she")


@pytest.mark.parametrize(
    ("first", "hero"),
    [
        ("A dog was named Captain Nib. ", "Nib"),
        ("Tall Einar told a story. ", "Einar"),
        ("Baby Moog was as tall as a church. ", "Moog"),
        ("Then King Rollo got up. ", "Rollo"),
    ],
)
def test_of_a_title_and_a_name_the_name_is_the_hero(first, hero):
    whole = re.search(r"(Captain|Tall|Baby|King) [A-Z][a-z]+", first)[0]
    text = f"{first}He had a boat. {whole} sat in it. His boat was red. Then {whole} sang."
    assert opening_of(text).hero == hero


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The rain fell. It fell all day. Nobody was there.",
        "Ben and Lily played. She ran. Her hat flew off. Lily laughed. She fell. Lily cried.",
        "Tom met Ann named Ann. He ran and she ran. He saw her. She saw him.",
    ],
)
def test_an_opening_without_a_plain_hero_is_left_out(text):
    assert opening_of(text) is None


def test_an_open_quotation_is_not_cut(bridges):
    for opening in bridges.openings:
        assert " ".join(opening.sentences).count('"') % 2 == 0


def test_most_written_stories_lend_their_opening(bridges):
    assert len(bridges.openings) > len(texts("train")) / 2


@given(seed=st.integers(0, 2**32))
def test_the_hero_of_a_bridge_goes_on_with_name_and_pronoun(bridges, seed):
    story = bridges.story(np.random.default_rng(seed))
    sentences = split_sentences(story)
    assert len(sentences) >= 8
    assert not re.search(r"[<>{}\[\]|]", story)
    # Somebody who is named (or is "the clock") in the rest was there before the bridge's end.
    first, rest = " ".join(sentences[:LONGEST]), " ".join(sentences[LONGEST:])
    known = re.findall(r"\b[A-Z][a-z]+\b|(?<=\b[Tt]he )[a-z]+\b", rest)
    known = [name for name in known if name.lower() not in COMMON]
    assert any(re.search(rf"\b{name}\b", first) for name in known)


def test_a_hero_who_was_introduced_is_not_introduced_again():
    for seed in range(200):
        text = generate(seed, hero=("Zubo", "she")).text
        assert "Zubo" in text
        assert not re.search(r"\ban? [a-z ]*named Zubo|Zubo was an? \w+ \w+[.,] and|\bhero\b", text)
        facts = generate(seed, hero=("Zubo", "she")).facts
        assert (facts.hero, facts.pronoun) == ("Zubo", "she")


def test_without_a_hero_the_world_is_as_before():
    assert generate(7).text == generate(7, hero=None).text != generate(7, hero=("A", "he")).text


def test_patterns_name_their_hero():
    for seed in range(300):
        opening = introduction(random.Random(seed))
        text = " ".join(opening.sentences)
        assert re.search(rf"\b{opening.hero.removeprefix('the ')}\b", text), text
        assert text[0].isupper() or text[0] == '"'
        assert not re.search(r"[<>{}\[\]|]| [.,]|\ba [aeiou]", text), text


def test_a_row_is_a_function_of_its_generator(bridges):
    one, two = (bridges(np.random.default_rng(5), 300) for _ in range(2))
    assert one == two and len(one) == 300
    assert bridges(np.random.default_rng(6), 300) != one
    assert 0 in one  # a story ends within a row


def test_without_documents_there_are_still_patterns():
    assert Bridges([], Words()).story(np.random.default_rng(0))


def test_the_world_tells_what_an_opening_is_about(bridges):
    """Among the stories that it chooses from, more of those with the rare words of the opening."""
    shared = {"bell": 0, "map": 0}
    for word in shared:
        text = f"Zubo had a {word}. He liked the {word}."
        opening = opening_of(
            f"{text} Zubo went out with his {word}. He sang. Zubo fell. He got up."
        )
        rng = np.random.default_rng(11)
        told = [bridges.parts(opening, (), rng)[2] for _ in range(60)]
        shared[word] = sum(f" {word}" in t for t in told)
        rng = np.random.default_rng(11)
        other = [
            generate(3 * int(rng.integers(2**40)), hero=("Zubo", "he")).text for _ in range(60)
        ]
        assert shared[word] > 2 * sum(f" {word}" in t for t in other)


def test_after_a_sentence_of_an_opening_the_world_is_likely(bridges):
    rng = np.random.default_rng(0)
    counts = [len(bridges.opening(rng).sentences) for _ in range(400)]
    assert max(counts) > 4
    assert sum(c <= 2 for c in counts) > 0.7 * len(counts)
