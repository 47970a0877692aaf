"""The project's own stories: enough of them, well formed, split once, none like another."""

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from qlab.errors import QlabError
from qlab.story.batches import project_documents
from qlab.story.stories import (
    FILES,
    NEXT,
    SPLITS,
    UNREAD,
    next_stories,
    read_stories,
    texts,
    unread_stories,
)
from tools.release_storyteller import join_next

LANGUAGES = ["en", "zh"]
TAGS = {"hero", "place", "problem", "feeling", "ending"}
# No two stories share more of their shingles than this (Jaccard): five words, or in Chinese five
# characters.
SHARED = 0.2


def shingles(text, language):
    found = re.findall(r"[a-z']+", text.lower()) if language == "en" else re.findall(r"\w", text)
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}


def most_similar(every):
    """The largest share of shingles (Jaccard) that two sets have in common, and which two."""
    known, rows, columns = {}, [], []
    for i, found in enumerate(every):
        rows += [i] * len(found)
        columns += [known.setdefault(s, len(known)) for s in found]
    shape = (len(every), len(known))
    matrix = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    sizes = np.asarray(matrix.sum(1)).ravel()
    common = (matrix @ matrix.T).tocoo()  # only pairs that share something
    a, b = common.row, common.col
    similar = np.where(a < b, common.data / (sizes[a] + sizes[b] - common.data), 0)
    at = int(similar.argmax())
    return float(similar[at]), int(a[at]), int(b[at])


@pytest.mark.parametrize(("language", "least"), [("en", 600), ("zh", 60)])
def test_there_are_enough(language, least):
    assert len(read_stories(language)) >= least


@pytest.mark.parametrize("language", LANGUAGES)
def test_ids_are_unique_and_texts_too(language):
    stories = read_stories(language)
    assert len({s.id for s in stories}) == len(stories)
    assert len({" ".join(s.text.split()).lower() for s in stories}) == len(stories)


def test_no_id_is_in_both_languages():
    assert not {s.id for s in read_stories("en")} & {s.id for s in read_stories("zh")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_story_is_in_one_split_and_every_split_has_some(language):
    stories = read_stories(language)
    assert set(Counter(s.split for s in stories)) == set(SPLITS)
    parts = [texts(split, language) for split in SPLITS]
    assert all(parts)
    assert sum(map(len, parts)) == len(stories)
    assert len(set().union(*parts)) == len(stories)
    # Most are for training, and the others are enough to measure with.
    assert len(texts("train", language)) > 0.6 * len(stories)
    assert min(map(len, parts)) >= (30 if language == "en" else 5)


def english():
    return [*read_stories("en"), *unread_stories(), *next_stories()]


def test_unread_stories_are_in_no_other_split():
    unread = unread_stories()
    assert len(unread) >= 200 and {s.split for s in unread} == {"unread"}
    assert len({s.id for s in english()} | {s.id for s in read_stories("zh")}) == len(
        english()
    ) + len(read_stories("zh"))
    begins = Counter(" ".join(s.text.split()[:3]).lower() for s in unread)
    assert begins.most_common(1)[0][1] <= len(unread) / 12


def test_training_reads_the_next_stories_too_and_nothing_that_is_held_out():
    assert {s.split for s in next_stories()} <= {"next"}
    read = set(project_documents()["stories"])
    held_out = [*texts("validation"), *texts("test"), *(s.text for s in unread_stories())]
    assert not read & set(held_out)


def test_english_stories_have_100_to_250_words():
    for story in english():
        assert 100 <= len(story.text.split()) <= 250, story.id


def test_chinese_stories_have_120_to_400_characters():
    for story in read_stories("zh"):
        count = len(re.findall(r"[\u4e00-\u9fff]", story.text))
        assert 120 <= count <= 400, story.id
        assert count > 0.7 * len(story.text), story.id


def test_english_stories_are_plain_ascii():
    for story in english():
        assert story.text.isascii(), story.id
        assert not re.search(r"[*_#<>\\\t]|  | \n|\n |\n\n", story.text), story.id
        assert story.text.count('"') % 2 == 0, story.id
        assert story.text == story.text.strip() and story.text[-1] in '.!?"', story.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_story_has_its_five_tags(language):
    for story in english() if language == "en" else read_stories(language):
        assert set(story.tags) == TAGS, story.id
        assert all(v == v.strip() and v for v in story.tags.values()), story.id


@pytest.mark.parametrize("name", [*FILES.values(), UNREAD, NEXT])
def test_lines_hold_an_object_each_with_the_same_keys(name):
    file = resources.files("qlab.story").joinpath("data", name)
    lines = file.read_text("utf-8").splitlines()
    assert all(list(json.loads(line)) == ["id", "split", "tags", "text"] for line in lines)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_story_is_like_another(language):
    stories = english() if language == "en" else read_stories(language)
    share, a, b = most_similar([shingles(s.text, language) for s in stories])
    assert share < SHARED, (stories[a].id, stories[b].id)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_measure_sees_a_story_with_other_names(language):
    one, *rest = read_stories(language)
    if language == "en":
        names = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", one.text))
        other = one.text.replace(names.most_common(1)[0][0], "Bertram")
    else:
        other = one.text[: len(one.text) // 2] + rest[0].text
    assert other != one.text
    assert most_similar([shingles(t, language) for t in (one.text, other)])[0] > SHARED


def test_openings_vary():
    """One beginning of three words for at most a twelfth of the stories: those with which readers
    like to begin ("There was once") are common on purpose. All others are rare."""
    stories = [*read_stories("en"), *next_stories()]
    begins = Counter(" ".join(s.text.split()[:3]).lower() for s in stories)
    count = len(stories)
    assert begins.most_common(1)[0][1] <= count / 12, begins.most_common(3)
    assert begins.most_common(9)[-1][1] <= 0.02 * count, begins.most_common(9)
    assert len(begins) > 0.4 * count


def test_what_is_not_there_is_refused_with_a_remedy():
    with pytest.raises(QlabError, match="no stories in 'de': choose from en, zh"):
        read_stories("de")
    with pytest.raises(QlabError, match="no split 'dev': choose from train"):
        texts("dev")


def test_the_changelog_counts_the_stories():
    root = Path(__file__).resolve().parents[2]
    counts = {language: len(read_stories(language)) for language in LANGUAGES}
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"{counts['en']:,} stories and {counts['zh']} in Chinese" in changelog


def test_a_release_moves_the_next_stories_into_the_training_split(tmp_path):
    tags = dict.fromkeys(sorted(TAGS), "x")
    old = {"id": "a", "split": "validation", "tags": tags, "text": "Old."}
    new = {"id": "b", "split": "next", "tags": tags, "text": "New."}
    (tmp_path / FILES["en"]).write_text(json.dumps(old) + "\n")
    (tmp_path / NEXT).write_text(json.dumps(new) + "\n")
    assert join_next(tmp_path) == 1
    lines = (tmp_path / FILES["en"]).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [old, {**new, "split": "train"}]
    assert (tmp_path / NEXT).read_text() == ""
    assert join_next(tmp_path) == 0 and len(list(tmp_path.iterdir())) == 2
