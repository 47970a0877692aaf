"""Write notebooks/NAME.ipynb from book/NAME.md, for Colab and for download.

    python tools/make_notebooks.py           write them
    python tools/make_notebooks.py --check   say which are out of date; exit code 1 if any is

No outputs; the same chapter always gives the same file. The first cell installs qlab where it is
missing, and the tools that the chapter imports.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.chapters import ROOT, notebooks, pages, project_urls
from tools.citations import Citations
from tools.myst_markdown import Book, MystError, Renderer

# A module that a chapter imports -> the extra of qlab that installs it.
EXTRAS = {
    "bitsandbytes": "bnb",
    "datasets": "online",
    "gguf": "gguf",
    "httpx": "serve",
    "llama_cpp": "llama",
    "lm_eval": "eval",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "peft": "peft",
    "torchao": "torchao",
    "triton": "gpu",
}
# ... or the name under which the package index has it.
PACKAGES = {"faiss": "faiss-cpu", "ml_dtypes": "ml-dtypes", "sklearn": "scikit-learn"}
PACKAGES["xllamacpp"] = "xllamacpp"

GLUE = "from myst_nb import glue"
GLUE_HERE = '''\
def glue(name, value, display=True):
    """In the book this puts a number into the text; here it prints it."""
    if display:
        print(name, "=", value)'''
FOLDED_TAGS = {"hide-cell", "hide-input", "remove-cell", "remove-input"}


def load_book(root: Path) -> Book:
    """The book with the labels of all its pages."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) or {}
    names = config.get("bibtex_bibfiles") or []
    names = [names] if isinstance(names, str) else names
    urls = project_urls(root)
    citations = Citations(root / name for name in names)
    book = Book(root, urls["Documentation"], urls["Repository"], citations)
    for page in pages(root):
        renderer = Renderer(book, page, collecting=True)
        for cell in jupytext.read(page, fmt="md:myst").cells:
            if cell.cell_type == "markdown":
                renderer.markdown_cell(cell.source)
            elif cell.cell_type == "code":
                renderer.figure_of_cell(cell.metadata)
    return book


def convert(book: Book, page: Path) -> dict[str, Any]:
    """The notebook of a chapter, as the object that its JSON holds."""
    renderer = Renderer(book, page)
    cells: list[dict[str, Any]] = []
    sources = []
    for cell in jupytext.read(page, fmt="md:myst").cells:
        if cell.cell_type == "code":
            sources.append(cell.source)
            cells.append(code_cell(cell.source, cell.metadata, folded=bool(renderer.gate)))
            text = renderer.figure_of_cell(cell.metadata)
        else:
            text = renderer.markdown_cell(cell.source) if cell.cell_type == "markdown" else ""
        if text:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
    if renderer.cited and not renderer.listed_sources:
        titled = any("## Sources" in cell["source"].split("\n") for cell in cells)
        heading = [] if titled else ["## Sources", ""]
        text = "\n".join([*heading, *book.citations.listing(renderer.cited)])
        cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
    cells.insert(0, code_cell(install_source(book, page, sources), {}, folded=False))
    return {
        "cells": with_ids(cells),
        "metadata": {
            "colab": {"provenance": [], "toc_visible": True},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def code_cell(source: str, metadata: dict[str, Any], folded: bool) -> dict[str, Any]:
    """A cell without outputs. The code of a solution, or hidden in the book, starts folded."""
    tags = list(metadata.get("tags", []))
    kept: dict[str, Any] = {"tags": tags} if tags else {}
    source = re.sub(rf"^{re.escape(GLUE)}$", lambda _: GLUE_HERE, source, flags=re.MULTILINE)
    if folded or FOLDED_TAGS & set(tags):
        kept["jupyter"] = {"source_hidden": True}
        kept["cellView"] = "form"
        if not source.startswith(("%%", "#@title")):
            source = f"#@title {'Solution' if folded else 'Code'} (double-click to open)\n{source}"
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": kept,
        "outputs": [],
        "source": source,
    }


def imported_modules(sources: list[str]) -> set[str]:
    """The top-level modules that some cells import, also within functions."""
    modules = set()
    for source in sources:
        python = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)
        try:
            tree = ast.parse(python)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    return modules


def install_source(book: Book, page: Path, sources: list[str]) -> str:
    """The first cell: install qlab where it is missing, with what this chapter imports."""
    modules = imported_modules(sources)
    extras = sorted({EXTRAS[name] for name in modules & set(EXTRAS)})
    packages = sorted(PACKAGES[name] for name in modules & set(PACKAGES))
    names = ["qlab", *sorted(modules & (set(EXTRAS) | set(PACKAGES)))]
    wanted = f"qlab[{','.join(extras)}]" if extras else "qlab"
    requirements = " ".join([f'"{wanted} @ git+{book.repository}"', *packages])
    return "\n".join(
        [
            f"# This notebook is made from {book.page_url(page)}",
            "# It needs qlab. Where it is missing, as in Colab, this cell installs it.",
            "from importlib.util import find_spec",
            "",
            f"if not all(find_spec(name) for name in {json.dumps(names)}):",
            f"    %pip install --quiet {requirements}",
        ]
    )


def with_ids(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each cell an id that follows from its content, so that files differ where text does."""
    seen: dict[str, int] = {}
    for cell in cells:
        key = hashlib.sha256(f"{cell['cell_type']}\n{cell['source']}".encode()).hexdigest()[:12]
        seen[key] = seen.get(key, 0) + 1
        cell["id"] = key if seen[key] == 1 else f"{key}-{seen[key]}"
        cell["source"] = cell["source"].splitlines(keepends=True)
    return cells


def generate(root: Path = ROOT) -> dict[str, str]:
    """File name -> text of every notebook. Raises MystError or ValueError on a bad chapter."""
    book = load_book(root)
    made: dict[str, str] = {}
    for page in notebooks(root):
        name = f"{page.stem}.ipynb"
        if name in made:
            raise ValueError(f"two chapters are named {page.stem}: rename one")
        notebook = convert(book, page)
        made[name] = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return made


def stale(made: dict[str, str], root: Path = ROOT) -> list[str]:
    """The notebooks that are missing, differ from their chapter, or have none."""
    folder = root / "notebooks"
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Write notebooks/*.ipynb from the chapters.")
    parser.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    root = args.root.resolve()
    try:
        made = generate(root)
    except (MystError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    names = stale(made, root)
    if args.check:
        for name in names:
            print(f"notebooks/{name} is out of date: run `make notebooks`", file=sys.stderr)
        return 1 if names else 0
    folder = root / "notebooks"
    folder.mkdir(exist_ok=True)
    for name in names:
        if name in made:
            (folder / name).write_text(made[name], encoding="utf-8")
        else:
            (folder / name).unlink()
    print(f"{len(made)} notebooks, {len(names)} of them changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
