"""`pytest --nbval` on MyST text notebooks: what the hook in conftest.py collects and reports."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.project.conftest import HEADER, ROOT

CELLS = {
    "Cell 0": ("", "x = 1\nprint(x)\nx"),
    "Cell 1": (":tags: [raises-exception]", "raise ValueError('on purpose')"),
    "Cell 2": (":tags: [raises-exception]", "x"),
    "Cell 3": (":tags: [skip-execution]", "raise ValueError('never run')"),
    "Cell 4": (
        "---\ntags: [hide-input]\nmystnb:\n  figure:\n    caption: Text\n---",
        "assert x == 2, 'x is not two'",
    ),
    "Cell 5": ("", "import os; assert os.path.basename(os.getcwd()) == 'book'"),
    "Cell 6": ("", "import shutil; assert shutil.which('qlab')"),
}
EXPECTED = {
    "Cell 0": "passed",
    "Cell 1": "passed",
    "Cell 2": "failed",
    "Cell 3": "skipped",
    "Cell 4": "failed",
    "Cell 5": "passed",
    "Cell 6": "passed",
}


def run_pytest(folder: Path, *arguments: str) -> tuple[int, str, dict[str, str]]:
    """Exit code, output, and the outcome of each item by its name."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
    env = dict(os.environ, PATH="/usr/bin:/bin", NO_COLOR="1")
    env.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        outcomes[case.get("name", "")] = "skipped" if "skipped" in kinds else outcome
    return done.returncode, done.stdout, outcomes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with one chapter, one page without code, and this project's hook."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "conftest.py").read_bytes())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  chapter\n  site\n")
    book = tmp_path / "book"
    book.mkdir()
    cells = [
        f"```{{code-cell}} python3\n{options}\n{source}\n```" for options, source in CELLS.values()
    ]
    (book / "chapter.md").write_text(HEADER + "\n# A chapter\n\n" + "\n\n".join(cells) + "\n")
    (book / "page.md").write_text("# A page\n\n```python\n1 / 0\n```\n")
    return tmp_path


def test_each_cell_is_a_test(folder: Path) -> None:
    code, output, outcomes = run_pytest(folder, "--nbval", "book")
    assert code == 1
    assert outcomes == EXPECTED
    assert "book/chapter.md::Cell 2" in output
    assert "tagged raises-exception, but it raised nothing" in output
    assert "x is not two" in output
    assert "book/page.md" not in output


def test_one_cell_may_be_chosen_and_marked(folder: Path) -> None:
    code, _, outcomes = run_pytest(folder, "--nbval", "book", "-m", "chapter", "-k", "Cell and 0")
    assert code == 0
    assert outcomes == {"Cell 0": "passed"}


def test_without_nbval_a_chapter_is_no_test(folder: Path) -> None:
    code, _, outcomes = run_pytest(folder, "book")
    assert code == 5  # nothing was collected
    assert outcomes == {}
