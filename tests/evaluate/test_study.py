"""The case study: rows are measured once, and again when what they depend on changes."""

import json

import pytest

import qlab
from qlab.evaluate import study
from qlab.evaluate.study import Configuration, continue_greedily, run_study, split_opening
from qlab.story.model import Storyteller

TEXTS = [
    "Once there was a fox. The fox was cold. Then the moon came up and the fox was glad.",
    'A cat said "No!" loudly. The cat ran. The cat fell asleep under the moon.',
    "The moon was round. Nobody saw it. It did not mind at all.",
]
LIST = [Configuration("whole"), Configuration("int4", "rtn", "int4-channel")]


@pytest.fixture
def source(tiny):
    return Storyteller(*tiny, "tiny")


@pytest.fixture
def counted(monkeypatch):
    """The names of the configurations that were really measured."""
    names = []
    measure = study._measure

    def count(source, configuration, *rest):
        names.append(configuration.name)
        return measure(source, configuration, *rest)

    monkeypatch.setattr(study, "_measure", count)
    return names


def study_of(source, cache, configurations=LIST, texts=TEXTS, **options):
    options = {"openings": 2, "max_tokens": 8, **options}
    return run_study(source, configurations, texts, cache=cache, **options)


def test_the_baseline_agrees_with_itself(source, tmp_path):
    whole, small = study_of(source, tmp_path)
    assert (whole.kl, whole.bits_per_weight, whole.scheme) == (None, None, None)
    assert whole.rougeL_baseline == 1 and whole.bleu_baseline == pytest.approx(100)
    assert small.kl > 0
    assert small.memory_bytes < whole.memory_bytes and small.disk_bytes < whole.disk_bytes
    assert len(small.continuations) == 2
    assert whole.perplexity == pytest.approx(
        qlab.perplexity(source.model, source.tokenizer, TEXTS), rel=1e-6
    )
    model, _ = qlab.quantize_model(source.model, "rtn", "int4-channel")
    # The study takes text by text and perplexity eight at once: float32 adds in another order.
    expected = qlab.perplexity(model, source.tokenizer, TEXTS)
    assert small.perplexity == pytest.approx(expected, rel=1e-6)
    kl = qlab.evaluate.divergence(source.model, model, source.tokenizer, TEXTS).kl
    assert small.kl == pytest.approx(kl, rel=1e-4)  # differences of nearly equal numbers


def test_a_new_line_computes_one_row(source, tmp_path, counted):
    first = study_of(source, tmp_path)
    assert counted == ["whole", "int4"]
    again = study_of(source, tmp_path, [*LIST, Configuration("int3", "rtn", "int3-channel")])
    assert counted == ["whole", "int4", "int3"]
    assert again[:2] == first
    # The new row is compared with the same baseline, which was not measured again.
    assert again[2].rougeL_baseline <= 1


@pytest.mark.parametrize("change", ["texts", "weights", "length", "openings", "code"])
def test_what_a_row_depends_on_computes_it_again(source, tmp_path, counted, change, monkeypatch):
    study_of(source, tmp_path)
    counted.clear()
    if change == "texts":
        study_of(
            source, tmp_path, texts=[*TEXTS[:2], "The moon was gone. It was dark. Good night."]
        )
    elif change == "length":
        study_of(source, tmp_path, max_tokens=9)
    elif change == "openings":
        study_of(source, tmp_path, openings=3)
    elif change == "code":
        monkeypatch.setattr(study, "_source_hash", lambda: "other code")
        study_of(source, tmp_path)
    else:
        import copy

        import torch

        model = copy.deepcopy(source.model)
        with torch.no_grad():
            model.model.norm.weight.mul_(1.001)
        study_of(Storyteller(model, source.tokenizer, "other"), tmp_path)
    assert counted == ["whole", "int4"]


@pytest.mark.parametrize("damage", ['{"name": "int4"', "[]", '{"name": "int4"}', ""])
def test_a_damaged_row_is_computed_again(source, tmp_path, counted, damage):
    rows = study_of(source, tmp_path)
    for file in tmp_path.glob("*.json"):
        if json.loads(file.read_text())["name"] == "int4":
            file.write_text(damage)
    counted.clear()
    again = study_of(source, tmp_path)
    assert counted == ["int4"]
    assert again[1].perplexity == rows[1].perplexity


def test_a_bad_scheme_leaves_no_row(source, tmp_path):
    with pytest.raises(qlab.QlabError, match="int17"):
        study_of(source, tmp_path, [Configuration("bad", "rtn", "int17-channel")])
    assert list(tmp_path.iterdir()) == []


def test_an_opening_is_cut_after_its_sentences():
    assert split_opening(TEXTS[0]) == (
        "Once there was a fox. The fox was cold.",
        "Then the moon came up and the fox was glad.",
    )
    assert split_opening(TEXTS[1], 1)[0] == 'A cat said "No!"'
    assert split_opening("No end") == ("No end", "")


def test_a_batch_continues_as_single_openings_do(source):
    model, tokenizer = source.model, source.tokenizer
    openings = ["once upon a time the fox", "the moon", "fox and moon and the fox"]
    together = continue_greedily(model, tokenizer, openings, 12)
    alone = [continue_greedily(model, tokenizer, [o], 12)[0] for o in openings]
    assert together == alone
