"""pytest and the chapters: ``pytest --nbval book`` runs the MyST text notebooks cell by cell.

nbval collects ``.ipynb`` files. Here a chapter is read through jupytext and handed to nbval's own
collector, so a failure reads ``book/chapter.md::Cell 3``. A text notebook stores no outputs, so
nothing is compared: a chapter asserts what its prose claims.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jupytext
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

ROOT = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    """Let cells and tests find the commands of this environment, activated or not."""
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # for kernels; the Makefile says why
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a MyST text notebook when nbval is asked for."""
    option = parent.config.option
    if (option.nbval or option.nbval_lax) and file_path.suffix == ".md" and has_kernel(file_path):
        return MystNotebook.from_parent(parent, path=file_path)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cells of chapters, those that measure time, and the tests that read the book."""
    for item in items:
        if isinstance(item, IPyNbCell):
            item.add_marker(pytest.mark.chapter)
            if "\nalone: true\n" in top(item.path):
                item.add_marker(pytest.mark.alone)
        elif item.path.is_relative_to(ROOT / "tests" / "site"):
            item.add_marker(pytest.mark.site)


def top(path: Path) -> str:
    """The header of a Markdown file, between two ``---``; empty if it has none."""
    header, *rest = path.read_text(encoding="utf-8").split("\n---", maxsplit=1)
    return header + "\n" if rest and header.startswith("---\n") else ""


def has_kernel(path: Path) -> bool:
    """Whether a Markdown file is a notebook: its header names a kernel."""
    return "\nkernelspec:" in top(path)


class MystNotebook(IPyNbFile):
    """A chapter: the cells that nbval finds once jupytext has read the file."""

    def collect(self) -> Iterator[pytest.Item]:
        notebook = jupytext.read(self.path, fmt="md:myst")
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            if "skip-execution" in tags:
                cell.metadata["tags"] = [*tags, "nbval-skip"]
        with mock.patch("nbval.plugin.nbformat.read", return_value=notebook):
            cells = list(super().collect())
        for cell in cells:
            yield MystCell.from_parent(
                self, name=cell.name, cell_num=cell.cell_num, cell=cell.cell, options=cell.options
            )


class MystCell(IPyNbCell):
    """A code cell. One that is tagged ``raises-exception`` must raise."""

    def runtest(self) -> None:
        super().runtest()
        raised = any(output.output_type == "error" for output in self.test_outputs)
        if self.options["check_exception"] and not raised:
            self.raise_cell_error("The cell is tagged raises-exception, but it raised nothing")
