"""The builder executes what changed, and nothing else; a failure stays a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.build_book import build, fingerprints, prune_caches, write_config
from tools.chapters import ROOT
from tools.run_chapters import run_chapters


def runs(root: Path) -> Counter[str]:
    """How often each chapter was executed so far."""
    return Counter((root / "runs.txt").read_text().split())


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@pytest.mark.slow
def test_only_what_changed_is_executed(minibook: Path, capfd: pytest.CaptureFixture) -> None:
    index = minibook / "_build" / "html" / "index.html"
    assert build(minibook) == 0
    assert str(index) in capfd.readouterr().out
    assert index.is_file()
    assert (minibook / "_build/html/book/second.html").is_file()
    assert runs(minibook) == {"First": 1, "Second": 1}

    started = time.monotonic()
    assert build(minibook) == 0
    assert time.monotonic() - started < 5
    assert str(index) in capfd.readouterr().out
    assert runs(minibook) == {"First": 1, "Second": 1}

    append(minibook / "book/second.md", "\n```{code-cell} python3\nx = 1\n```\n")
    assert build(minibook) == 0
    assert runs(minibook) == {"First": 1, "Second": 2}

    append(minibook / "qlab/__init__.py", "VALUE = 2\n")
    assert build(minibook) == 0
    assert runs(minibook) == {"First": 2, "Second": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("```{code-cell} python3\nraise KeyError('lo' + 'st')\n```", "lost"),
        ("{ref}`nowhere`", "nowhere"),
    ],
)
def test_a_failure_fails_again(
    minibook: Path, capfd: pytest.CaptureFixture, mistake: str, message: str
) -> None:
    append(minibook / "book/first.md", f"\n{mistake}\n")
    for _ in range(2):
        assert build(minibook) != 0
        assert message in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qlab/data/story.jsonl", "library"),
        ("qlab/__init__.py", "library"),
        ("requirements.lock", "library"),
        ("_config.yml", "frame"),
        ("_toc.yml", "frame"),
        ("pyproject.toml", "frame"),
        ("book/references.bib", "frame"),
        ("book/_assets/style.css", "frame"),
        ("book/_ext/thing.py", "frame"),
        ("book/first.md", "chapters"),
    ],
)
def test_each_input_changes_one_fingerprint(minibook: Path, name: str, part: str) -> None:
    before = fingerprints(minibook)
    path = minibook / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n# changed\n")
    after = fingerprints(minibook)
    assert {key for key in after if after[key] != before[key]} == {part}


def test_a_new_notebook_redraws_the_pages_and_a_changed_one_is_copied(minibook: Path) -> None:
    notebook = minibook / "notebooks" / "first.ipynb"
    notebook.parent.mkdir()
    before = fingerprints(minibook)
    notebook.write_text("{}")
    between = fingerprints(minibook)
    notebook.write_text("{ }")
    after = fingerprints(minibook)
    assert between["frame"] != before["frame"]
    assert {key for key in after if after[key] != between[key]} == {"chapters"}


def test_a_renamed_file_changes_the_fingerprint(minibook: Path) -> None:
    before = fingerprints(minibook)
    (minibook / "qlab/__init__.py").rename(minibook / "qlab/other.py")
    assert fingerprints(minibook)["library"] != before["library"]


def test_compiled_and_hidden_files_change_nothing(minibook: Path) -> None:
    before = fingerprints(minibook)
    for name in ("qlab/__pycache__/a.pyc", "book/.ipynb_checkpoints/b.md", "qlab/.swp"):
        path = minibook / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert fingerprints(minibook) == before


def test_only_the_newest_caches_are_kept(tmp_path: Path) -> None:
    for age, name in enumerate(["now", "new", "old", "older"]):
        cache = tmp_path / f".jupyter_cache-{name}"
        cache.mkdir()
        os.utime(cache, (1000 - age, 1000 - age))
    prune_caches(tmp_path, kept=tmp_path / ".jupyter_cache-now")
    assert {path.name for path in tmp_path.iterdir()} == {
        ".jupyter_cache-now",
        ".jupyter_cache-new",
    }


def test_the_build_is_strict_and_uses_this_environment(
    minibook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def record(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        calls.append((command, options["env"]))
        return subprocess.CompletedProcess(command, returncode=3)

    monkeypatch.setattr(subprocess, "run", record)
    assert build(minibook) == 3
    (beside, _), (command, env) = calls
    assert Path(beside[1]).name == "run_chapters.py"
    assert {"-W", "-n", "--keep-going", "--all"} <= set(command)
    scripts = str(Path(sys.executable).parent)
    assert command[0].startswith(scripts) and env["PATH"].startswith(scripts)


@pytest.mark.slow
def test_a_chapter_that_measures_time_is_left_to_the_build(minibook: Path, tmp_path: Path) -> None:
    for name in ("third", "timed"):
        text = (minibook / "book/second.md").read_text().replace("Second", name)
        (minibook / f"book/{name}.md").write_text(text)
        append(minibook / "_toc.yml", f"      - file: book/{name}\n")
    timed = minibook / "book/timed.md"
    timed.write_text(timed.read_text().replace("---\n", "---\nalone: true\n", 1))
    failing = minibook / "book/third.md"
    failing.write_text(failing.read_text() + "\n```{code-cell} python3\n1 / 0\n```\n")
    assert run_chapters(minibook, tmp_path / "cache", timeout=60, workers=2) == 2
    assert runs(minibook) == {"First": 1, "Second": 1, "third": 1}  # what failed is not kept
    assert run_chapters(minibook, tmp_path / "cache", timeout=60, workers=2) == 0
    assert runs(minibook)["First"] == 1


def test_the_configuration_cannot_switch_errors_off(minibook: Path) -> None:
    append(
        minibook / "_config.yml",
        "  local_extensions: {thing: book/_ext}\nexecute: {execute_notebooks: 'off'}\n",
    )
    config = yaml.safe_load(write_config(minibook, minibook / "cache").read_text())
    assert config["execute"]["execute_notebooks"] == "cache"
    assert config["execute"]["raise_on_error"] is True
    assert config["execute"]["allow_errors"] is False
    assert config["execute"]["cache"] == str(minibook / "cache")
    assert config["sphinx"]["local_extensions"] == {"thing": str(minibook / "book/_ext")}
    assert config["repository"]["url"].startswith("https://")


def test_the_books_own_configuration_passes_through(tmp_path: Path) -> None:
    own = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    for name in ("_config.yml", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    made = yaml.safe_load(write_config(tmp_path, tmp_path / "cache").read_text(encoding="utf-8"))
    assert set(made) >= set(own)
    assert made["sphinx"].keys() == own["sphinx"].keys()
