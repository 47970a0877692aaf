"""Rows are measured once, and again when what they are of changes."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.evaluate import divergence, overlap
from qlab.evaluate.study import split_opening
from qlab.story.model import Storyteller
from qlab.study import Judge, Settings, compare_rows, front, read_record, record_of, run
from qlab.study import run as run_function
from qlab.study.lines import lines_of
from qlab.study.quality import openings_of
from qlab.study.rows import MEASURES, mean_interval
from qlab.study.running import layout_of

TEXTS = [
    "Once there was a fox. The fox was cold. Then the moon came up and the fox was glad.",
    'A cat said "No!" loudly. The cat ran. The cat fell asleep under the moon.',
    "The moon was round. Nobody saw it. It did not mind at all.",
]
LINES = lines_of(
    [
        {"name": "whole"},
        {"name": "int8", "method": "rtn", "scheme": "int8-channel"},
        {"name": "int2", "method": "rtn", "scheme": "int2-channel"},
    ]
)
FEW = Settings(texts=3, openings=3, world=2, tokens=8, calibration=2)


@pytest.fixture(scope="module")
def source(tiny):
    return Storyteller(*tiny, "tiny")


@pytest.fixture
def counted(monkeypatch):
    """The lines that were really made."""
    import sys

    module = sys.modules["qlab.study.run"]
    names, make = [], module.make

    def count(source, line, *rest):
        names.append(line.name)
        return make(source, line, *rest)

    monkeypatch.setattr(module, "make", count)
    return names


def study_of(source, cache, lines=LINES, texts=TEXTS, few=FEW, **options):
    return run(source, lines, texts, few, cache=cache, running=False, **options)


def test_each_measure_is_that_of_its_function(source, tmp_path):
    whole, _, small = study_of(source, tmp_path)
    model, _ = qlab.quantize_model(source.model, "rtn", "int2-channel")
    # float32 adds in another order where texts are read together.
    expected = qlab.perplexity(model, source.tokenizer, TEXTS)
    assert small.value("perplexity") == pytest.approx(expected, rel=1e-5)
    found = divergence(source.model, model, source.tokenizer, TEXTS)
    assert small.value("kl") == pytest.approx(found.kl, rel=1e-4)
    assert small.value("agreement") == pytest.approx(found.agreement, abs=1e-6)
    assert small.value("ratio") == pytest.approx(
        small.value("perplexity") / whole.value("perplexity"), rel=1e-5
    )
    near = overlap(small.told, whole.told)
    human = overlap(small.told, [split_opening(t)[1] for t in TEXTS])
    for key in ("rouge1", "rouge2", "rougeL", "bleu"):
        # Corpus BLEU from summed counts is sacrebleu's own.
        assert small.value(key) == pytest.approx(getattr(near, key), rel=1e-5, abs=1e-9), key
    assert small.value("bleu_human") == pytest.approx(human.bleu, rel=1e-5, abs=1e-9)
    assert small.value("rougeL_human") == pytest.approx(human.rougeL, rel=1e-5)
    for row in (whole, small):
        for key, (value, low, high) in row.measures.items():
            assert key in MEASURES and low <= value <= high, (row.name, key)


def test_the_model_as_it_is_agrees_with_itself(source, tmp_path):
    whole, fine, coarse = study_of(source, tmp_path)
    assert whole.measures["ratio"] == [1, 1, 1] and whole.value("agreement") == 1
    assert whole.value("kl") == pytest.approx(0, abs=1e-6)
    # Not 1 where a random model tells something without a word.
    assert whole.value("rougeL") == pytest.approx(overlap(whole.told, whole.told).rougeL, rel=1e-5)
    assert whole.bits_per_weight is None
    assert fine.value("kl") < coarse.value("kl")
    assert coarse.file_bytes < fine.file_bytes < whole.file_bytes
    assert compare_rows(coarse, whole).value == pytest.approx(coarse.value("ratio"), rel=1e-5)


def test_a_new_line_makes_one_model_and_another_name_none(source, tmp_path, counted):
    first = study_of(source, tmp_path)
    assert sorted(counted) == ["int2", "int8", "the model as it is"]  # whole: once
    counted.clear()
    more = lines_of([{"name": "int3", "method": "rtn", "scheme": "int3-channel"}])
    renamed = dataclasses.replace(LINES[1], name="eight")
    again = study_of(source, tmp_path, [LINES[0], renamed, LINES[2], *more])
    assert counted == ["int3"]
    assert [r.measures for r in again[:3]] == [r.measures for r in first]
    assert again[1].name == "eight"


@pytest.mark.parametrize("change", ["texts", "weights", "settings", "code"])
def test_what_a_row_is_of_makes_it_again(source, tmp_path, counted, change, monkeypatch):
    import copy
    import sys

    import torch

    study_of(source, tmp_path)
    counted.clear()
    if change == "texts":
        study_of(source, tmp_path, texts=[*TEXTS[:2], "It was dark. Good night. Sleep well."])
    elif change == "settings":
        study_of(source, tmp_path, few=dataclasses.replace(FEW, tokens=9))
    elif change == "code":
        monkeypatch.setattr(sys.modules["qlab.study.run"], "code_hash", lambda parts: "other")
        study_of(source, tmp_path)
    else:
        model = copy.deepcopy(source.model)
        with torch.no_grad():
            model.model.norm.weight.mul_(1.001)
        study_of(Storyteller(model, source.tokenizer, "other"), tmp_path)
    assert len(counted) == 3


def test_an_interrupted_study_goes_on(source, tmp_path, counted, monkeypatch):
    def stop(name):
        if name == "int8":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_of(source, tmp_path, tell=stop)
    have = study_of(source, tmp_path, cached=True)
    assert [r.name for r in have] == ["whole", "int8"]
    counted.clear()
    assert len(study_of(source, tmp_path)) == 3 and counted == ["int2"]
    for file in tmp_path.glob("*.json"):  # a row that is cut is made again
        if json.loads(file.read_text())["made"][1] == have[1].file_bytes:
            file.write_text(file.read_text()[:40])
    counted.clear()
    study_of(source, tmp_path)
    assert counted == ["int8"]


def test_mixed_precision_spends_its_budget(source, tmp_path):
    among = ["int2-g32-sfp16", "int4-g32-sfp16", "int8-g32-sfp16"]
    tables = [
        {"name": f"{b}", "method": "rtn", "among": among, "budget": b} for b in (2.6, 4.0, 8.5)
    ]
    rows = study_of(source, tmp_path, lines_of(tables))
    kls = [r.value("kl") for r in rows]
    assert kls == sorted(kls, reverse=True)
    for row, table in zip(rows, tables, strict=True):
        assert row.bits_per_weight <= table["budget"] and set(row.schemes.values()) <= set(among)
    assert len(set(rows[1].schemes.values())) > 1
    with pytest.raises(qlab.QlabError, match="line 'none': a budget"):
        study_of(source, tmp_path, lines_of([{**tables[0], "name": "none", "budget": 1.0}]))


def test_one_text_is_taken_apart(source):
    one = Judge(source, [" ".join(TEXTS * 4)], Settings(openings=3, world=0, tokens=4))
    scores = one.measure(source.model)
    assert len(scores.tokens) > 1 and len(one.openings) == 3
    assert sum(scores.nll) / sum(scores.tokens) == pytest.approx(
        np.log(qlab.perplexity(source.model, source.tokenizer, " ".join(TEXTS * 4))), rel=1e-5
    )
    assert openings_of(["A b. C d. E f.\n\nG h. I j. K l. M n."], 5) == [
        ("A b. C d.", "E f."),
        ("G h. I j.", "K l. M n."),
    ]
    assert openings_of(["no end"], 5) == [("no end", "")]
    with pytest.raises(qlab.QlabError, match="too few tokens"):
        Judge(source, [], FEW)


points = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(points=points)
def test_no_row_beats_one_on_the_front(points):
    from qlab.study import Row

    line = {"family": "A", "scheme": "int4", "among": []}
    rows = [
        Row({**line, "name": str(i)}, 4.0, size, {}, {"ratio": [v, v, v]})
        for i, (size, v) in enumerate(points)
    ]
    best = front(rows)
    pairs = [(r.file_bytes, r.value("ratio")) for r in rows]
    for row in rows:
        c, v = row.file_bytes, row.value("ratio")
        beaten = any(a <= c and b <= v and (a, b) != (c, v) for a, b in pairs)
        assert not (row in best and beaten)
        assert beaten or any((r.file_bytes, r.value("ratio")) == (c, v) for r in best)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0, 10), min_size=2, max_size=20))
def test_an_interval_lies_within_what_was_seen(values):
    mean, low, high = mean_interval(values, [1] * len(values))
    # Means of resamples lie between the least and the largest; rounding may pass them a little.
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert mean == pytest.approx(np.mean(values))


def test_the_layout_is_all_that_speed_depends_on():
    a, b, c, d = lines_of(
        [
            {"name": "a", "method": "rtn", "scheme": "int4-g32"},
            {"name": "b", "method": "gptq", "scheme": "int4-g32"},
            {"name": "c", "method": "rtn", "scheme": "int4-g64"},
            {"name": "d", "scheme": "q4_0"},
        ]
    )
    assert layout_of(a, {}) == layout_of(b, {})
    assert len({layout_of(x, {}) for x in (a, c, d)}) == 3


def test_a_record_reads_back(source, tmp_path):
    rows = study_of(source, tmp_path)
    record = record_of(source, rows, FEW, TEXTS)
    (tmp_path / "record.json").write_text(json.dumps(record))
    about, again = read_record(tmp_path / "record.json")
    assert about["settings"]["texts"] == 3 and about["versions"]["torch"]
    assert [r.measures for r in again] == [r.measures for r in rows]
    assert about["openings"] == [split_opening(t)[0] for t in TEXTS]
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(qlab.QlabError, match="make case-study"):
        read_record(tmp_path / "record.json")
    assert run_function is run
