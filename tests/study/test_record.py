"""The record of the case study is of these weights, of lines of the file, and says what it must."""

import math

import pytest

import qlab
from qlab.study import compare_rows, front, make, read_lines, read_record, weights_hash
from qlab.study.rows import MEASURES

ABOUT, ROWS = read_record()
BY_NAME = {row.name: row for row in ROWS}


@pytest.fixture(scope="module")
def story():
    return qlab.story.load()


def test_the_record_is_of_these_weights(story):
    assert ABOUT["weights"] == weights_hash(story.model), "run tools/case_study.py"


def test_rows_are_lines_of_the_file():
    lines = {line.name: line for line in read_lines()}
    for row in ROWS:
        assert row.name in lines, f"{row.name} is no line any more: run tools/case_study.py"
        line = lines[row.name]
        for key in ("method", "scheme", "activations", "importance", "budget", "steps", "lr"):
            assert row.line[key] == getattr(line, key), (row.name, key, "run tools/case_study.py")


def test_every_mix_has_a_row_with_all_its_measures():
    from qlab.gguf.mixes import MIXES

    found = {r.line["scheme"] for r in ROWS if r.family == "GGUF"}
    assert found == set(MIXES) - {"f32"}, "run tools/case_study.py"
    for row in ROWS:
        # A destroyed model tells nothing that a fact could be checked in.
        assert set(MEASURES) - set(row.measures) <= {"consistency"}, row.name
        for value, low, high in row.measures.values():
            assert math.isfinite(value) and low <= value <= high, row.name
        assert row.file_bytes > 0 and len(row.nll) == len(row.kl) == len(row.tokens)
        assert row.value("kl") >= -1e-6 and 0 <= row.value("agreement") <= 1


def test_what_holds_on_any_weights():
    kl = {row.name: row.value("kl") for row in ROWS}
    widths = [kl[f"RTN, {b} bits, rows"] for b in (8, 6, 4, 3, 2)]
    assert widths == sorted(widths)
    for better, worse in (
        ("GPTQ, 3 bits, rows", "RTN, 3 bits, rows"),
        ("GPTQ, 3 bits, groups of 128", "RTN, 3 bits, groups of 128"),
        ("QAF, 2 bits, rows", "RTN, 2 bits, rows"),
        ("GGUF q8_0", "GGUF q4_k_m"),
        ("GGUF q4_k_m", "GGUF q2_k"),
        ("GGUF iq3_s", "GGUF iq1_s"),
    ):
        assert kl[better] < kl[worse], (better, worse)
    assert compare_rows(BY_NAME["RTN, 3 bits, rows"], BY_NAME["float32"]).low > 1
    best = front(ROWS)
    assert len(best) > 3 and best == sorted(best, key=lambda row: row.file_bytes)


@pytest.mark.parametrize("name", ["RTN, 3 bits, groups of 32", "GGUF iq4_xs", "MXFP4"])
def test_a_row_made_again_has_its_scores(story, name):
    line = next(line for line in read_lines() if line.name == name)
    made = make(story, line, ABOUT["settings"]["calibration"])
    row = BY_NAME[name]
    scores = qlab.evaluate.score_texts(made.model, story.tokenizer, story.validation()[:2])
    # Another processor adds in another order, which can move a code to its neighbor.
    assert [s.nll for s in scores] == pytest.approx(row.nll[:2], rel=2e-3)
    assert made.bits_per_weight == pytest.approx(row.bits_per_weight)
    assert made.file_bytes == row.file_bytes
