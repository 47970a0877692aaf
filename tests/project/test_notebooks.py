"""The notebooks for Colab: in step with the chapters, plain Markdown, no outputs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from tools.chapters import ROOT, notebooks, project_urls
from tools.make_notebooks import generate, install_source, load_book, main, stale
from tools.myst_blocks import Code, Directive, Text, split_blocks
from tools.myst_markdown import MystError, Renderer

DOCUMENTATION = project_urls()["Documentation"]
REPOSITORY = project_urls()["Repository"]


def rendered(minibook: Path, body: str, page: str = "first") -> str:
    """The plain Markdown of some MyST in a page of the small book."""
    path = minibook / "book" / f"{page}.md"
    path.write_text(f"# First\n\n{body}\n", encoding="utf-8")
    return Renderer(load_book(minibook), path).markdown_cell(body)


# The notebooks of this book


def test_the_notebooks_are_up_to_date() -> None:
    assert stale(generate()) == [], "run `make notebooks`"


def test_there_is_a_notebook_for_each_chapter() -> None:
    chapters = {path.stem for path in notebooks()}
    assert chapters, "_toc.yml lists no chapter with code"
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == chapters


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_is_valid_and_plain(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "code"
    assert f"git+{REPOSITORY}" in first.source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert "myst_nb" not in cell.source, "Colab has no myst_nb"
        else:
            prose = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", cell.source, flags=re.DOTALL)
            assert not re.search(r"^\s*(`{3,}|:{3,})\{", cell.source, flags=re.MULTILINE)
            assert not re.search(r"\{[\w:.+-]+\}`", cell.source), "a role was left"
            assert not re.search(r"^\([^()\s]+\)=\s*$", prose, flags=re.MULTILINE)


# Making them


def test_the_same_chapters_give_the_same_files(minibook: Path) -> None:
    assert generate(minibook) == generate(minibook)
    assert set(generate(minibook)) == {
        "first.ipynb",
        "second.ipynb",
    }  # the page without code has none


def test_cell_ids_are_unique_and_stay_with_their_text(minibook: Path) -> None:
    page = minibook / "book" / "first.md"
    cell = "\n```{code-cell} python3\nx = 1\n```\n"
    page.write_text(page.read_text() + cell + cell)
    before = [cell["id"] for cell in json.loads(generate(minibook)["first.ipynb"])["cells"]]
    assert len(set(before)) == len(before)
    page.write_text(
        page.read_text().replace("Text.", "Text.\n\n```{code-cell} python3\ny = 2\n```")
    )
    after = [cell["id"] for cell in json.loads(generate(minibook)["first.ipynb"])["cells"]]
    assert len(after) == len(before) + 1
    assert [name for name in after if name in before] == before


def test_what_is_stale_is_named(minibook: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--root", str(minibook)]
    assert main([*arguments, "--check"]) == 1
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    (minibook / "notebooks" / "gone.ipynb").write_text("{}")
    page = minibook / "book" / "second.md"
    page.write_text(page.read_text() + "More.\n")
    capsys.readouterr()
    assert main([*arguments, "--check"]) == 1
    told = capsys.readouterr().err
    assert "gone.ipynb" in told and "second.ipynb" in told and "first.ipynb" not in told
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    assert not (minibook / "notebooks" / "gone.ipynb").exists()


def test_the_first_cell_installs_what_the_chapter_imports(minibook: Path) -> None:
    book = load_book(minibook)
    page = minibook / "book" / "first.md"
    sources = [
        "import numpy, onnxruntime.quantization\n%matplotlib inline",
        "from sklearn import svm",
    ]
    source = install_source(book, page, sources)
    assert f'"qlab[onnx] @ git+{REPOSITORY}" scikit-learn' in source
    assert '["qlab", "onnxruntime", "sklearn"]' in source
    assert f"{DOCUMENTATION}/book/first.html" in source
    ast.parse(source.replace("%pip", "pass  #"))
    assert f'"qlab @ git+{REPOSITORY}"' in install_source(book, page, ["import numpy"])


def test_code_cells(minibook: Path) -> None:
    page = minibook / "book" / "first.md"
    page.write_text(
        page.read_text()
        + """
```{exercise-start}
:label: ex-one
```
Compute.
```{exercise-end}
```

```{solution-start} ex-one
:class: dropdown
```
Because.
```{code-cell} python3
answer = 42
```
And so.
```{solution-end}
```

After.

```{code-cell} python3
---
tags: [hide-input]
mystnb:
  figure:
    name: fig-cell
    caption: A curve of $x^2$.
---
from myst_nb import glue
glue("n", 1)
```

{numref}`fig-cell` shows it.
"""
    )
    cells = json.loads(generate(minibook)["first.ipynb"])["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    solution = next(i for i, text in enumerate(texts) if "answer = 42" in text)
    assert cells[solution]["metadata"]["jupyter"] == {"source_hidden": True}
    assert cells[solution]["metadata"]["cellView"] == "form"
    assert (
        "<summary>Solution to Exercise 1</summary>\n\nBecause.\n\n</details>" in texts[solution - 1]
    )
    assert texts[solution + 1] == (
        "<details>\n<summary>Solution to Exercise 1</summary>\n\nAnd so.\n\n</details>\n\nAfter."
    )
    curve = next(i for i, text in enumerate(texts) if 'glue("n", 1)' in text)
    assert cells[curve]["metadata"]["jupyter"] == {"source_hidden": True}
    assert texts[curve + 1] == "**Figure 1.** A curve of $x^2$."
    assert texts[curve + 2] == "Figure 1 shows it."
    namespace: dict = {}
    exec(texts[curve], namespace)  # glue works without myst_nb


@pytest.mark.parametrize("heading", ["", "## Sources\n\n"])
def test_what_a_chapter_cites_is_listed_once_at_its_end(minibook: Path, heading: str) -> None:
    page = minibook / "book" / "first.md"
    page.write_text(
        page.read_text() + f"\n{heading}{{cite:t}}`frantar2023` and {{cite}}`frantar2023`.\n"
    )
    cells = json.loads(generate(minibook)["first.ipynb"])["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert text.count("## Sources\n") == 1
    assert "".join(cells[-1]["source"]).endswith(
        "- Frantar, E.; Ashkboos, S.; Hoefler, T.; Alistarh, D. (2023). *GPTQ: Accurate "
        "Post-Training Quantization*. ICLR. <https://arxiv.org/abs/2210.17323>"
    )


# Markdown


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("Text with `code` and $x_{i}$.", "Text with `code` and $x_{i}$."),
        ("A {math}`x^2` role", "A $x^2$ role"),
        ("The {term}`scale` and the {term}`codes <code>`", "The scale and the codes"),
        ("{abbr}`QAT (quantization-aware training)`", "QAT (quantization-aware training)"),
        ("{py:func}`~qlab.quantize`, {func}`qlab.sqnr`", "`quantize`, `qlab.sqnr`"),
        ("H{sub}`2`O{sup}`+`", "H<sub>2</sub>O<sup>+</sup>"),
        ("{kbd}`Esc`", "`Esc`"),
        ("rises by {glue:text}`rise:.2f` %", "rises by `rise` %"),
        ("`` {ref}`x` ``", "`` {ref}`x` ``"),
        ("{cite:t}`frantar2023` did", "Frantar et al. (2023) did"),
        ("did {cite}`frantar2023`", "did (Frantar et al., 2023)"),
        (
            "{cite:p}`frantar2023,dettmers2022`",
            "(Frantar et al., 2023; Dettmers and Zettlemoyer, 2022)",
        ),
        ("% a comment\nText", "Text"),
        ("Note[^a].\n\n[^a]: The note.", "Note<sup>a</sup>.\n\n<sup>a</sup> The note."),
        ("Scale\n: units per step", "**Scale**:\nunits per step"),
        ("[site](https://example.org/x)", "[site](https://example.org/x)"),
        ("[](second.md)", f"[*Second*]({DOCUMENTATION}/book/second.html)"),
        ("[next](second.md#text)", f"[next]({DOCUMENTATION}/book/second.html#text)"),
        ("{doc}`second`", f"[*Second*]({DOCUMENTATION}/book/second.html)"),
        ("[lock](../requirements.lock)", f"[lock]({REPOSITORY}/blob/main/requirements.lock)"),
        ("```python\n{ref}`x` (y)=\n```", "```python\n{ref}`x` (y)=\n```"),
        (":::{note}\nMind `x`.\n:::", "> **Note**\n>\n> Mind `x`."),
        ("```{tip} Short.\n```", "> **Tip**\n>\n> Short."),
        ("```{admonition} Predict first\nHow?\n```", "> **Predict first**\n>\n> How?"),
        (
            "````{note}\n:class: dropdown\nA.\n```python\nx\n```\n````",
            "<details>\n<summary>Note</summary>\n\nA.\n\n```python\nx\n```\n\n</details>",
        ),
        ("```{math}\na \\\\ b\n```", "$$\n\\begin{aligned}\na \\\\ b\n\\end{aligned}\n$$"),
        ("$$ x $$ (eq-x)\n\nBy {eq}`eq-x`", "$$\nx\n\\tag{1}\n$$\n\nBy (1)"),
        (
            "```{math}\n:label: eq-y\ny\n```\n\nSee {eq}`eq-y`.",
            "$$\ny\n\\tag{1}\n$$\n\nSee (1).",
        ),
        ("(here)=\n## A place\n\nSee {ref}`here`.", "## A place\n\nSee *A place*."),
        ("(here)=\n## A place\n\nSee [it](#here).", "## A place\n\nSee it."),
        (
            "```{list-table} Sizes\n:header-rows: 1\n:name: tab\n* - a\n  - b\n* - 1\n  - 2\n```\n"
            "{numref}`tab`",
            "**Table 1.** Sizes\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nTable 1",
        ),
        ("```{code-block} bash\nls\n```", "```bash\nls\n```"),
        ("```{toctree}\nfirst\n```\nText", "Text"),
        (
            "{cite:t}`dettmers2022`\n\n```{bibliography}\n:filter: docname in docnames\n```",
            "Dettmers and Zettlemoyer (2022)\n\n- Dettmers, T.; Zettlemoyer, L. (2022). "
            "*8-bit Optimizers*. Journal. <https://example.org/8bit>",
        ),
        (
            "```{exercise} Easy\n:label: e\nDo.\n```\n```{solution} e\nDone.\n```",
            "**Exercise 1** (Easy)\n\nDo.\n\n<details>\n<summary>Solution to Exercise 1</summary>"
            "\n\nDone.\n\n</details>",
        ),
    ],
)
def test_plain_markdown(minibook: Path, myst: str, plain: str) -> None:
    assert rendered(minibook, myst) == plain


def test_figures_are_fetched_from_the_repository(minibook: Path) -> None:
    (minibook / "book" / "_assets").mkdir()
    (minibook / "book" / "_assets" / "grid.svg").write_text("<svg/>")
    raw = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
    text = rendered(
        minibook,
        "```{figure} _assets/grid.svg\n:name: fig-grid\n:alt: A grid\nThe *grid*.\n```\n"
        "See {numref}`fig-grid` and {numref}`the picture %s <fig-grid>`.",
    )
    assert text == (
        f"![A grid]({raw}/main/book/_assets/grid.svg)\n\n**Figure 1.** The *grid*.\n\n"
        "See Figure 1 and the picture 1."
    )


def test_a_reference_to_another_page_is_a_link(minibook: Path) -> None:
    second = minibook / "book" / "second.md"
    second.write_text(second.read_text() + "\n$$ x $$ (eq_far)\n\n(Far)=\n## Far *away*\n")
    assert rendered(minibook, "{eq}`eq_far` in {ref}`Far`") == (
        f"[(1) of *Second*]({DOCUMENTATION}/book/second.html#eq-far) in "
        f"[*Far away*]({DOCUMENTATION}/book/second.html#far)"
    )


@pytest.mark.parametrize(
    ("myst", "named"),
    [
        ("```{frobnicate}\n```", "{frobnicate}"),
        ("{frobnicate}`x`", "{frobnicate}"),
        ("{ref}`nowhere`", "nowhere"),
        ("{cite}`nobody1999`", "nobody1999"),
        ("[x](missing.md)", "missing.md"),
        ("![x](missing.png)", "missing.png"),
        ("```{solution} nothing\n```", "nothing"),
        ("(a)=\n## A\n\n(a)=\n## B", "'a'"),
    ],
)
def test_what_has_no_plain_form_is_named(minibook: Path, myst: str, named: str) -> None:
    with pytest.raises(MystError) as caught:
        rendered(minibook, myst)
    assert "book/first.md" in str(caught.value)
    assert named in str(caught.value)


def test_two_chapters_of_one_name_are_refused(minibook: Path) -> None:
    (minibook / "book" / "part").mkdir()
    (minibook / "book" / "part" / "first.md").write_bytes(
        (minibook / "book" / "first.md").read_bytes()
    )
    toc = minibook / "_toc.yml"
    toc.write_text(toc.read_text() + "      - file: book/part/first\n")
    with pytest.raises(ValueError, match="two chapters are named first"):
        generate(minibook)


def test_a_chapter_that_the_contents_list_must_exist(minibook: Path) -> None:
    toc = minibook / "_toc.yml"
    toc.write_text(toc.read_text() + "      - file: book/third\n")
    with pytest.raises(ValueError, match="book/third"):
        generate(minibook)


# Blocks


def test_fences_nest_by_their_length() -> None:
    blocks = split_blocks(
        ["text", "````{note} T", ":class: x", "", "```{tip}", "in", "```", "````", "```py", "```"]
    )
    assert blocks == [
        Text(["text"]),
        Directive("note", "T", {"class": "x"}, ["```{tip}", "in", "```"]),
        Code(["```py", "```"]),
    ]


def test_options_may_be_a_yaml_block() -> None:
    lines = ["```{figure} a.png", "---", "name: fig", "alt: a b", "---", "Caption", "```"]
    assert split_blocks(lines) == [
        Directive("figure", "a.png", {"name": "fig", "alt": "a b"}, ["Caption"])
    ]


def test_an_open_fence_ends_with_the_text() -> None:
    assert split_blocks([":::{note}", "a"]) == [Directive("note", "", {}, ["a"])]
