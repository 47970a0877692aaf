"""Which files are the chapters: the table of contents, and the header of a MyST text notebook."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def pages(root: Path = ROOT) -> list[Path]:
    """Every page of _toc.yml, in reading order. Raises ValueError where a file is missing."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = []
    for name in _files(toc):
        stem = root / name
        path = stem if stem.suffix == ".md" else stem.with_name(stem.name + ".md")
        if not path.is_file():
            raise ValueError(f"_toc.yml lists {name}, but {path.relative_to(root)} does not exist")
        found.append(path)
    return found


def _files(node: Any) -> Iterator[str]:
    """The names under ``root`` and ``file``, in order, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("root", "file"):
                yield value
            else:
                yield from _files(value)
    elif isinstance(node, list):
        for value in node:
            yield from _files(value)


def header(path: Path) -> dict[str, Any]:
    """The YAML block at the top of a page; empty if it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    for end, line in enumerate(lines[1:], start=1):
        if line.strip() == "---":
            return yaml.safe_load("\n".join(lines[1:end])) or {}
    return {}


def is_notebook(path: Path) -> bool:
    """Whether a page has a kernel, so that its code cells are executed."""
    return path.suffix == ".md" and isinstance(header(path).get("kernelspec"), dict)


def notebooks(root: Path = ROOT) -> list[Path]:
    """The pages that are executed, in reading order."""
    return [path for path in pages(root) if is_notebook(path)]


def project_urls(root: Path = ROOT) -> dict[str, str]:
    """The addresses in pyproject.toml, without a slash at the end."""
    with (root / "pyproject.toml").open("rb") as file:
        urls = tomllib.load(file)["project"]["urls"]
    return {name: url.rstrip("/") for name, url in urls.items()}
