"""A small book of two chapters, in a folder of its own, for the tools that build books."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""

CONFIG = """\
title: A small book
author: Somebody
bibtex_bibfiles: [book/references.bib]
exclude_patterns: [".*", "**/.*"]
launch_buttons: {colab_url: ""}
parse: {myst_enable_extensions: [colon_fence, dollarmath, deflist]}
sphinx:
  extra_extensions: [sphinx_exercise]
"""

TOC = """\
format: jb-book
root: book/intro
defaults: {numbered: true}
parts:
  - caption: One
    chapters:
      - file: book/first
      - file: book/second
"""

BIBLIOGRAPHY = """\
@inproceedings{frantar2023,
  author = {Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan},
  title = {{GPTQ}: Accurate Post-Training Quantization},
  booktitle = {ICLR}, year = {2023}, eprint = {2210.17323}
}
@article{dettmers2022,
  author = {Dettmers, Tim and Zettlemoyer, Luke}, title = {8-bit Optimizers},
  journal = {Journal}, year = {2022}, url = {https://example.org/8bit}
}
"""


def chapter(title: str, body: str) -> str:
    """A MyST text notebook that notes each of its executions in a file."""
    note = f'open("../runs.txt", "a").write("{title}\\n");'
    return f"{HEADER}\n# {title}\n\n```{{code-cell}} python3\n{note}\n```\n\n{body}\n"


@pytest.fixture
def minibook(tmp_path: Path) -> Path:
    """The root of the small book."""
    for folder in ("book", "qlab"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = {
        "_config.yml": CONFIG,
        "_toc.yml": TOC,
        "requirements.lock": "numpy==1.0\n",
        "qlab/__init__.py": "VALUE = 1\n",
        "book/references.bib": BIBLIOGRAPHY,
        "book/intro.md": "# A small book\n\nNo code here.\n",
        "book/first.md": chapter("First", "Text."),
        "book/second.md": chapter("Second", "Text."),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path
