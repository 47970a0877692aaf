"""Settings name what is wrong; batches are a function of the seed and the step."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from qlab.errors import QlabError
from qlab.story import batches, settings
from qlab.story.batches import Batches, Documents, Echo, Stories, World, plain, read_corpus
from qlab.story.settings import DEFAULT, read_settings
from qlab.story.stories import next_stories, texts
from qlab.story.tokenizer import BOS, EOS


def changed(tmp_path, old, new):
    """The default configuration with one change."""
    text = DEFAULT.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "config.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


# --- settings -----------------------------------------------------------------------------------


def test_the_default_settings_are_whole():
    found = read_settings()
    assert found == read_settings(DEFAULT)
    assert found.model.hidden_size % found.model.num_attention_heads == 0
    for size in (found.model.hidden_size, found.model.intermediate_size, found.vocab_size):
        assert size % 256 == 0
    assert sum(found.shares.values()) == pytest.approx(1, abs=0.02)
    assert found.training.sequence <= found.model.context
    assert isinstance(found.training.muon_lr, float)


def test_a_change_arrives(tmp_path):
    default = settings.read_settings().training.steps
    path = changed(tmp_path, f"steps = {default}", "steps = 77")
    assert read_settings(path).training.steps == 77


def test_a_missing_file(tmp_path):
    with pytest.raises(QlabError, match=r"no configuration file at .*gone.toml: start from"):
        read_settings(tmp_path / "gone.toml")


def test_no_toml(tmp_path):
    path = changed(tmp_path, "[model]", "[model")
    with pytest.raises(QlabError, match=r"config.toml is not valid TOML: .*line"):
        read_settings(path)


def test_an_unknown_key(tmp_path):
    path = changed(tmp_path, "warmup =", "warm_up =")
    with pytest.raises(QlabError, match=r"\[training\] has unknown keys: warm_up"):
        read_settings(path)


def test_a_missing_key(tmp_path):
    path = changed(tmp_path, "hidden_size", "# hidden_size")
    with pytest.raises(QlabError, match=r"\[model\] lacks: hidden_size"):
        read_settings(path)


@pytest.mark.parametrize("section", ["model", "tokenizer", "data", "training"])
def test_a_missing_section(tmp_path, section):
    path = changed(tmp_path, f"[{section}]", "[other]")
    with pytest.raises(QlabError, match=f"'{section}' is missing; see"):
        read_settings(path)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (r"vocab_size = \d+", 'vocab_size = "large"', "vocab_size"),
        (r"steps = \d+", 'steps = "many"', "steps"),
        (r"muon_lr = [\d.]+", 'muon_lr = "fast"', "muon_lr"),
        (r"world = [\d.]+", 'world = "all"', "world"),
    ],
)
def test_a_word_for_a_number(tmp_path, old, new, key):
    text = DEFAULT.read_text(encoding="utf-8")
    path = tmp_path / "config.toml"
    path.write_text(re.sub(old, new, text, count=1), encoding="utf-8")
    with pytest.raises(QlabError, match=key):
        read_settings(path)


# --- corpora ------------------------------------------------------------------------------------

LONG = "Once there was a fox who lived near a river and looked at the moon. " * 4


def test_a_text_corpus_is_cut_at_its_marks(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text(f"{LONG}\n\nThe end.\n<|endoftext|>\n{LONG} Again.\n<|endoftext|>\n")
    name, found = read_corpus(path)
    assert name == "tinystories"
    assert [d.split("\n") for d in found] == [
        [LONG.strip(), "The end."],
        [f"{LONG} Again.".replace("  ", " ")],
    ]


def test_a_text_corpus_without_marks_has_a_story_a_line(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text(f"{LONG}\n\nThe end of it.\n{LONG}\n")
    assert len(read_corpus(path)[1]) == 2


def test_a_story_cut_in_the_middle_is_left_out(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text(f"{LONG}<|endoftext|>{LONG} And then the fox went to")
    assert len(read_corpus(path)[1]) == 1


def test_a_corpus_of_tales(tmp_path):
    path = tmp_path / "tales.jsonl"
    path.write_text("".join(json.dumps({"text": LONG, "title": "x"}) + "\n" for _ in range(3)))
    assert read_corpus(path) == ("fairy", [LONG.strip()] * 3)


def test_a_missing_corpus_and_one_of_another_kind(tmp_path):
    with pytest.raises(QlabError, match=r"no corpus file at .*gone.txt"):
        read_corpus(tmp_path / "gone.txt")
    path = tmp_path / "tales.csv"
    path.write_text(LONG)
    with pytest.raises(QlabError, match=r"tales.csv: expected .txt or .jsonl"):
        read_corpus(path)


@pytest.mark.parametrize(
    "line", ['{"text": "Once upon a time the f', '{"story": "no text"}', '"only a string"']
)
def test_a_corpus_of_tales_that_is_cut_or_of_another_form(tmp_path, line):
    path = tmp_path / "tales.jsonl"
    path.write_text(json.dumps({"text": LONG}) + "\n" + line)
    with pytest.raises(QlabError, match=r"tales.jsonl"):
        read_corpus(path)


def test_a_corpus_that_is_no_text(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_bytes(b"\xff\xfe\x00\x81" * 100)
    with pytest.raises(QlabError, match=r"tiny.txt"):
        read_corpus(path)


def test_plain_text_has_straight_quotes_and_single_newlines():
    raw = "“Well—no,” said  the fox…\n\n* * *\n\n‘Yes’ – he _did_."
    assert plain(raw) == "\"Well - no,\" said the fox...\n'Yes' - he did."


# --- rows and batches ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return tiny[1]


class Constant:
    """A source whose rows say where they come from."""

    def __init__(self, value):
        self.value = value

    def __call__(self, rng, length):
        return [self.value] * length


def of(shares, batch, seed=3, length=4):
    sources = {name: Constant(i) for i, name in enumerate(shares)}
    return Batches(sources, shares, seed, batch, length)


@pytest.fixture(scope="module")
def real(tokenizer):
    def build(seed):
        sources = {
            "stories": Stories(texts("train")[:20], tokenizer),
            "fairy": Documents([LONG * 20] * 3, tokenizer),
            "world": World(tokenizer),
        }
        return Batches(sources, {"stories": 0.3, "fairy": 0.3, "world": 0.4}, seed, 6, 64)

    return build


def test_a_batch_is_a_function_of_seed_and_step(real):
    one, again, other = real(5), real(5), real(6)
    # In any order, as after an interruption.
    late = again(7)
    for step in (0, 3, 7):
        assert np.array_equal(one(step), real(5)(step))
    assert np.array_equal(one(7), late)
    assert not np.array_equal(one(0), one(1))
    assert not np.array_equal(one(0), other(0))


def test_a_batch_has_its_shape_and_only_known_pieces(real, tokenizer):
    found = real(0)(0)
    assert found.shape == (6, 64) and found.dtype == np.int64
    assert found.min() >= 0 and found.max() < len(tokenizer)


@pytest.mark.parametrize("batch", [4, 10, 64])
def test_each_batch_respects_the_shares_to_within_a_row(batch):
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    batches_of = of(shares, batch)
    for step in range(30):
        rows = Counter(batches_of(step)[:, 0].tolist())
        for i, share in enumerate(shares.values()):
            assert abs(rows[i] - share * batch) <= 1


def test_shares_are_met_in_the_long_run():
    shares = {"a": 0.55, "b": 0.35, "c": 0.1}
    batches_of = of(shares, 3)
    rows = Counter(int(x) for step in range(3000) for x in batches_of(step)[:, 0])
    for i, share in enumerate(shares.values()):
        assert rows[i] / 9000 == pytest.approx(share, abs=0.01)


def test_an_absent_source_gives_its_share_to_the_others():
    sources = {"a": Constant(0), "c": Constant(2)}
    batches_of = Batches(sources, {"a": 0.2, "b": 0.6, "c": 0.2}, 0, 10, 4)
    rows = Counter(int(x) for step in range(100) for x in batches_of(step)[:, 0])
    assert rows[0] == pytest.approx(500, abs=20) and rows[2] == pytest.approx(500, abs=20)


def test_a_source_with_share_zero_is_never_used():
    rows = {int(x) for step in range(50) for x in of({"a": 1.0, "b": 0.0}, 5)(step)[:, 0]}
    assert rows == {0}


def test_no_source_at_all():
    with pytest.raises(QlabError, match=r"no training data: \[data\] names a, b, none is present"):
        Batches({"c": Constant(0)}, {"a": 0.5, "b": 0.5}, 0, 4, 4)


def test_a_row_begins_with_bos_and_stories_end_with_eos(tokenizer):
    bos, eos = tokenizer.convert_tokens_to_ids([BOS, EOS])
    rng = np.random.default_rng(0)
    for source in (World(tokenizer), Stories(texts("train")[:5], tokenizer)):
        row = source(rng, 4000)
        assert len(row) == 4000 and row[0] == bos
        ends = [i for i, piece in enumerate(row[:-1]) if piece == eos]
        assert ends and all(row[i + 1] == bos for i in ends)


def test_a_document_longer_than_a_row_is_entered_anywhere(tokenizer):
    """So that the model reads its beginning, its middle and its end."""
    document = " ".join(f"the moon and the fox {i}" for i in range(20))
    source = Documents([document], tokenizer)
    bos, eos = tokenizer.convert_tokens_to_ids([BOS, EOS])
    assert len(source.encoded[0]) > 2 * 64
    rows = [source(np.random.default_rng(seed), 64) for seed in range(300)]
    assert all(len(row) == 64 for row in rows)
    assert 0.05 < np.mean([row[0] == bos for row in rows]) < 0.6
    assert len({tuple(row) for row in rows}) > 50
    assert np.mean([eos in row for row in rows]) > 0.05


def test_the_world_never_tells_a_story_twice_in_training(tokenizer):
    source = World(tokenizer)
    rng = np.random.default_rng(0)
    rows = [tuple(source(rng, 60)) for _ in range(100)]
    assert len(set(rows)) == 100


def test_the_tokenizer_reads_every_source():
    given = {"stories": ["A.", "B."], "fairy": [f"tale {i}" for i in range(10)]}
    found = list(batches.tokenizer_texts(given))
    assert {"A.", "B.", "tale 0", "tale 5"} <= set(found)
    assert "tale 1" not in found  # a fifth of the long prose
    assert len(found) > 3000


def test_project_documents_are_the_training_split_and_newer_stories():
    found = batches.project_documents()
    assert found["stories_zh"] == texts("train", "zh")
    assert found["stories"] == [*texts("train"), *(s.text for s in next_stories())]
    held_out = {t for split in ("calibration", "validation", "test") for t in texts(split)}
    assert not held_out & set(found["stories"])


# --- rows that teach to copy ----------------------------------------------------------------------


def test_an_echo_repeats_its_pieces_to_the_end_of_the_row(tokenizer):
    echo = Echo(tokenizer)
    for seed in range(30):
        row = echo(np.random.default_rng(seed), 200)
        assert len(row) == 200 and row[0] == tokenizer.bos_token_id
        rest = row[1:]
        unit = rest[: rest.index(rest[0], 1)]
        assert 4 <= len(unit) <= 48 and len(set(unit)) == len(unit)
        assert rest == (unit * 50)[:199]
        assert not set(unit) & set(tokenizer.all_special_ids)
