"""The record behind the page on coverage is that of the tests as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlab.coverage import case_study_rows, coverage, method_coverage, read_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_record_holds_what_the_tests_claim(tmp_path):
    out = tmp_path / "claims.json"
    command = [sys.executable, "-m", "pytest", "tests", "-q", "-m", "oracle or engine"]
    subprocess.run(
        [*command, "-p", "no:cacheprovider", "--coverage-claims", str(out)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    claims = {tuple(claim) for claim in json.loads(out.read_text(encoding="utf-8"))}
    recorded = {tuple(row[:4]) for row in read_record()["rows"]}
    assert len(claims) > 50
    assert claims == recorded, "run tools/record_coverage.py: the tests claim something else"


def test_a_cell_without_a_passing_check_is_empty():
    (one,) = coverage("method", ["no such method"])
    assert one.oracles == () and one.engines == ()
    for _, one in method_coverage():
        assert all(n > 0 for _, _, n in one.oracles)


def test_a_failing_or_skipped_test_takes_its_claim_away(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.oracle('method a', 'tool', 'equal')\n"
        "def test_passes(): pass\n"
        "@pytest.mark.oracle('method b', 'tool', 'equal')\n"
        "@pytest.mark.parametrize('ok', [True, False])\n"
        "def test_half(ok): assert ok\n"
        "@pytest.mark.engine('method {word}', 'tool')\n"
        "@pytest.mark.parametrize('word', ['c', 'd'])\n"
        "def test_words(word):\n"
        "    if word == 'd': pytest.skip('not here')\n"
    )
    out = tmp_path / "rows.json"
    plugin = [sys.executable, "-m", "pytest", "-q", "-p", "tests.coverage_plugin", str(tmp_path)]
    subprocess.run(
        [*plugin, "-c", "/dev/null", "--rootdir", str(tmp_path), "--coverage-record", str(out)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert json.loads(out.read_text(encoding="utf-8")) == [
        ["engine", "method c", "tool", "", 1],
        ["oracle", "method a", "tool", "equal", 1],
    ]


def test_rows_of_the_case_study_are_read_from_its_chapters(tmp_path):
    chapter = tmp_path / "c.md"
    chapter.write_text('Configuration("float32"),\n Configuration("A, 4 bits", "a", "int4"),\n')
    assert case_study_rows([chapter, tmp_path / "missing.md"]) == {"a": ["A, 4 bits"]}
    assert "gptq" in case_study_rows([ROOT / "book" / "comparison.md"])
