"""Turn the MyST Markdown of a chapter into plain Markdown that Colab and Jupyter display.

A chapter is rendered twice with the same code: the first time collects its labels and numbers,
the second time resolves the references to them. Something that has no plain form raises
``MystError`` with the page and what to do, so that nothing is dropped in silence.

Numbers count within a notebook (Figure 1, 2, ...); the built book puts the chapter's before them.
"""

from __future__ import annotations

import ast
import html
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tools.citations import Citations
from tools.myst_blocks import Code, Directive, Text, split_blocks

ADMONITIONS = {
    "attention": "Attention",
    "caution": "Caution",
    "danger": "Danger",
    "error": "Error",
    "hint": "Hint",
    "important": "Important",
    "note": "Note",
    "seealso": "See also",
    "tip": "Tip",
    "warning": "Warning",
}
TITLED = {"admonition", "topic", "margin", "sidebar", "aside", "epigraph", "pull-quote", "card"}
THEOREMS = {
    f"prf:{name}": name.capitalize()
    for name in (
        "algorithm",
        "assumption",
        "axiom",
        "conjecture",
        "corollary",
        "definition",
        "example",
        "lemma",
        "observation",
        "proof",
        "property",
        "proposition",
        "remark",
        "theorem",
    )
}
TRANSPARENT = {
    "container",
    "div",
    "glossary",
    "grid",
    "grid-item",
    "only",
    "tab-set",
}
DROPPED = {"contents", "index", "tableofcontents", "toctree"}
CODE_DIRECTIVES = {"code", "code-block", "code-cell", "sourcecode"}
CODE_ROLES = {"code", "command", "envvar", "file", "kbd", "option", "program", "samp"}
OBJECT_ROLES = {"attr", "class", "data", "exc", "func", "meth", "mod", "obj"}

INLINE = re.compile(
    r"""
    (?P<role>\{(?P<name>[A-Za-z][\w:.+-]*)\}(?P<tick>`+)(?P<content>.+?)(?<!`)(?P=tick)(?!`))
  | (?P<code>(?P<fence>`+)(?!`).+?(?<!`)(?P=fence)(?!`))
  | \$\$(?P<display>.+?)\$\$(?:[ \t]*\((?P<equation>[\w:.-]+)\))?
  | (?P<math>(?<![\\$])\$(?!\s)[^$\n]+?(?:\n[^$\n]+?)?(?<![\s\\])\$)
  | (?P<image>!\[(?P<alt>[^\]]*)\]\((?P<source>[^)\s]+)[^)]*\)(?:\{[^}\n]*\})?)
  | (?P<link>(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\))
  | \[\^(?P<footnote>[\w-]+)\](?P<definition>:[ ]*)?
    """,
    re.VERBOSE | re.DOTALL,
)
TARGET = re.compile(r"^\((?P<label>[^()\s]+)\)=\s*$")
HEADING = re.compile(r"^(?P<marks>#{1,6})\s+(?P<title>.+?)\s*$")
ATTRIBUTES = re.compile(r"\s*\{[#.][^}]*\}\s*$")
EXPLICIT = re.compile(r"^(?P<text>.*?)\s*<(?P<target>[^<>]+)>$", re.DOTALL)


class MystError(ValueError):
    """A chapter uses something that has no plain Markdown form here."""


@dataclass
class Label:
    """What a reference can point to."""

    page: Path
    kind: str  # "section", "Figure", "Table", "Equation", "Exercise", ...
    title: str
    number: int = 0

    @property
    def words(self) -> str:
        """How a reference to it reads."""
        if self.kind == "section":
            return f"*{self.title}*"
        return f"({self.number})" if self.kind == "Equation" else f"{self.kind} {self.number}"


@dataclass
class Book:
    """What the pages share: where the book is published, its labels, its bibliography."""

    root: Path
    documentation: str
    repository: str
    citations: Citations
    labels: dict[str, Label] = field(default_factory=dict)
    titles: dict[Path, str] = field(default_factory=dict)

    def page_url(self, page: Path) -> str:
        return f"{self.documentation}/{page.relative_to(self.root).with_suffix('.html').as_posix()}"

    def file_url(self, path: Path, raw: bool) -> str:
        """A file of the repository, as the text of a page or as its bytes."""
        name = path.resolve().relative_to(self.root).as_posix()
        if raw:
            host = self.repository.replace("//github.com/", "//raw.githubusercontent.com/")
            return f"{host}/main/{name}"
        return f"{self.repository}/blob/main/{name}"


class Renderer:
    """Renders the Markdown cells of one page, in order."""

    def __init__(self, book: Book, page: Path, collecting: bool = False) -> None:
        self.book = book
        self.page = page
        self.collecting = collecting
        self.counts: Counter[str] = Counter()
        self.cited: list[str] = []
        self.listed_sources = False
        self.gate = ""  # the title of the solution that is open, across cells
        self.pending: list[str] = []  # targets that wait for the block they name

    # Cells

    def markdown_cell(self, source: str) -> str:
        """The plain form of one Markdown cell."""
        out: list[str] = []
        opened = 0 if self.gate else -1
        for block in split_blocks(source.splitlines()):
            if isinstance(block, Directive) and block.name == "solution-start":
                self.gate = self.solution_title(block)
                opened = len(out)
                out += self.text(block.body)
            elif isinstance(block, Directive) and block.name == "solution-end":
                out[opened:] = details(self.gate, out[opened:])
                self.gate, opened = "", -1
            else:
                out += self.block(block)
        if self.gate and opened >= 0:
            out[opened:] = details(self.gate, out[opened:])
        return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()

    def figure_of_cell(self, metadata: dict) -> str:
        """The caption that a code cell carries in its metadata (``mystnb: figure:``)."""
        figure = (metadata.get("mystnb") or {}).get("figure") or {}
        if not figure.get("caption") and not figure.get("name"):
            return ""
        number = self.number("Figure", str(figure.get("name") or ""))
        caption = self.inline(str(figure.get("caption") or "").strip())
        return f"**Figure {number}.** {caption}".strip()

    # Blocks

    def text(self, lines: list[str]) -> list[str]:
        """Lines of MyST to lines of Markdown, with an empty line between blocks."""
        out: list[str] = []
        for block in split_blocks(lines):
            out += self.block(block)
        return out

    def block(self, block: Text | Code | Directive) -> list[str]:
        if isinstance(block, Text):
            return ["", *self.paragraphs(block.lines), ""]
        if isinstance(block, Code):
            return ["", *block.lines, ""]
        return ["", *self.directive(block), ""]

    def paragraphs(self, lines: list[str]) -> list[str]:
        """Text outside fences: drop comments and targets, then convert what is inline."""
        kept: list[str] = []
        for line in lines:
            if target := TARGET.match(line):
                self.pending.append(target["label"])
                continue
            if line.startswith("%") or ATTRIBUTES.fullmatch(line):
                continue
            if heading := HEADING.match(line):
                title = ATTRIBUTES.sub("", heading["title"])
                self.heading(self.inline(title))
                line = f"{heading['marks']} {title}"
            elif line.strip():
                self.pending.clear()
            # A definition list, which plain Markdown does not have.
            if line.startswith(": ") and kept and kept[-1].strip():
                kept[-1] = f"**{kept[-1].strip()}**:"
                line = line[2:].lstrip()
            kept.append(line)
        return self.inline("\n".join(kept)).split("\n")

    def heading(self, title: str) -> None:
        plain = re.sub(r"[*_`]", "", title)
        self.book.titles.setdefault(self.page, plain)
        for label in self.pending:
            self.define(label, Label(self.page, "section", plain))
        self.pending.clear()

    def directive(self, block: Directive) -> list[str]:
        """One directive; the names are those of MyST, Sphinx and the extensions of the book."""
        name = block.name
        if name in ADMONITIONS or name in TITLED:
            title = self.inline(block.argument) or ADMONITIONS.get(name, "")
            body = self.text(block.body)
            if name in ADMONITIONS and block.argument:  # {note} with text on its first line
                title, body = ADMONITIONS[name], [title, "", *body]
            if {"dropdown", "toggle"} & set(block.classes):
                return details(title, body)
            return quote(title, body)
        if name in ("dropdown", "toggle"):
            return details(self.inline(block.argument) or "More", self.text(block.body))
        if name in ("exercise", "exercise-start"):
            number = self.number("Exercise", block.label)
            title = f" ({self.inline(block.argument)})" if block.argument else ""
            return [f"**Exercise {number}**{title}", "", *self.text(block.body)]
        if name == "exercise-end":
            return []
        if name == "solution":
            return details(self.solution_title(block), self.text(block.body))
        if name in THEOREMS:
            kind = THEOREMS[name]
            number = "" if name == "prf:proof" else f" {self.number(kind, block.label)}"
            title = f" ({self.inline(block.argument)})" if block.argument else ""
            return quote(f"{kind}{number}{title}", self.text(block.body))
        if name in ("figure", "image"):
            return self.figure(block)
        if name in ("table", "list-table"):
            number = self.number("Table", block.label)
            caption = [f"**Table {number}.** {self.inline(block.argument)}", ""]
            return caption + (self.text(block.body) if name == "table" else self.list_table(block))
        if name == "math":
            return self.equation("\n".join([block.argument, *block.body]).strip(), block.label)
        if name in CODE_DIRECTIVES:
            return fenced(block.argument.removeprefix("{").removesuffix("}"), block.body)
        if name == "mermaid":
            return fenced("mermaid", block.body)
        if name == "literalinclude":
            return fenced(block.options.get("language", "python"), self.included(block))
        if name == "bibliography":
            self.listed_sources = True
            return self.book.citations.listing(self.cited)
        if name in ("glue", "glue:", "glue:figure", "glue:any"):
            return [f"*(the output `{block.argument}` of the cells above)*"]
        if name == "raw":
            return block.body if block.argument == "html" else []
        if name == "rubric":
            return [f"**{self.inline(block.argument)}**", *self.text(block.body)]
        if name in ("tab-item", "grid-item-card"):
            return [f"**{self.inline(block.argument)}**", "", *self.text(block.body)]
        if name == "button-link":
            return [f"[{' '.join(block.body) or block.argument}]({block.argument})"]
        if name in TRANSPARENT:
            return self.text(block.body)
        if name in DROPPED:
            return []
        raise self.error(f"the directive {{{name}}}")

    def solution_title(self, block: Directive) -> str:
        label = self.book.labels.get(block.argument)
        if label is None and not self.collecting:
            raise self.broken(f"a solution to the unknown exercise '{block.argument}'")
        return f"Solution to {label.words if label else ''}"

    def figure(self, block: Directive) -> list[str]:
        alt = block.options.get("alt", "")
        lines = [f"![{alt}]({self.source_url(block.argument)})"]
        if block.name == "figure":
            number = self.number("Figure", block.label)
            lines += ["", f"**Figure {number}.** {self.inline(' '.join(block.body))}".rstrip()]
        return lines

    def list_table(self, block: Directive) -> list[str]:
        rows: list[list[str]] = []
        for line in block.body:
            if match := re.match(r"^\s*[*-]\s+-(?:\s+(.*))?$", line):
                rows.append([match[1] or ""])
            elif match := re.match(r"^\s+-(?:\s+(.*))?$", line):
                rows[-1].append(match[1] or "")
            elif line.strip():
                rows[-1][-1] = f"{rows[-1][-1]} {line.strip()}"
        cells = [[self.inline(cell).replace("|", "\\|") for cell in row] for row in rows]
        if block.options.get("header-rows", "0") == "0":
            cells.insert(0, [""] * len(cells[0]))
        cells.insert(1, ["---"] * len(cells[0]))
        return ["| " + " | ".join(row) + " |" for row in cells]

    def equation(self, body: str, label: str) -> list[str]:
        """Display maths. An equation with a label carries its number."""
        if "\\\\" in body and "\\begin" not in body:
            body = f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"
        tag = [f"\\tag{{{self.number('Equation', label)}}}"] if label else []
        return ["$$", body.strip(), *tag, "$$"]

    def included(self, block: Directive) -> list[str]:
        """The lines of a file that ``literalinclude`` shows."""
        path = (self.page.parent / block.argument).resolve()
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        known = {"language", "lines", "pyobject", "caption", "name", "linenos"}
        if unknown := set(block.options) - known:
            raise self.error(f"literalinclude with :{min(unknown)}:")
        if name := block.options.get("pyobject"):
            for node in ast.walk(ast.parse(source)):
                if getattr(node, "name", None) == name.rpartition(".")[2]:
                    return lines[node.lineno - 1 : node.end_lineno]
            raise self.broken(f"a literalinclude of {name}, which {block.argument} does not define")
        if ranges := block.options.get("lines"):
            chosen: list[str] = []
            for part in ranges.split(","):
                start, dash, end = part.strip().partition("-")
                last = int(end or len(lines)) if dash else int(start)
                chosen += lines[int(start or 1) - 1 : last]
            return chosen
        return lines

    # Inline

    def inline(self, text: str) -> str:
        """Roles, links, equations and footnotes within text; code and maths stay as they are."""
        return INLINE.sub(self._inline, text)

    def _inline(self, match: re.Match[str]) -> str:
        if match["role"]:
            return self.role(match["name"], match["content"].strip())
        if match["equation"]:
            return "\n".join(self.equation(match["display"].strip(), match["equation"]))
        if match["image"]:
            return f"![{match['alt']}]({self.source_url(match['source'])})"
        if match["link"]:
            return self.link(match["text"], match["target"])
        if match["footnote"]:
            return f"<sup>{match['footnote']}</sup>" + (" " if match["definition"] else "")
        return match[0]

    def role(self, name: str, content: str) -> str:
        explicit = EXPLICIT.match(content)
        text, target = (explicit["text"], explicit["target"]) if explicit else ("", content)
        domain, _, last = name.rpartition(":")
        if name in (
            "ref",
            "numref",
            "eq",
            "prf:ref",
            "any",
            "std:ref",
            "std:numref",
            "math:numref",
        ):
            return self.reference(target, text)
        if name == "doc":
            return self.link(text, target if target.endswith(".md") else f"{target}.md")
        if name == "cite" or domain == "cite":
            return self.cite(last, content)
        if name == "glue" or domain == "glue" or name == "glue:":
            return f"`{content.partition(':')[0]}`"
        if name == "math":
            return f"${content}$"
        if name == "term":
            return text or content
        if name == "abbr":
            return content
        if name in CODE_ROLES:
            return f"`{content}`"
        if last in OBJECT_ROLES and domain in ("", "py"):
            short = target.rpartition(".")[2] if target.startswith("~") else target
            return f"`{text or short.lstrip('~!')}`"
        if name in ("strong", "guilabel", "menuselection"):
            return f"**{content}**"
        if name == "emphasis":
            return f"*{content}*"
        if name in ("sub", "subscript", "sup", "superscript"):
            return f"<{name[:3]}>{content}</{name[:3]}>"
        if name == "download":
            path = self.page.parent / target
            return f"[{text or path.name}]({self.book.file_url(path, raw=True)})"
        raise self.error(f"the role {{{name}}}")

    def reference(self, name: str, text: str) -> str:
        label = self.book.labels.get(name)
        if label is None:
            if self.collecting:
                return ""
            raise self.broken(f"a reference to '{name}', which no page defines")
        words = label.words
        if text:
            number = str(label.number) if label.number else label.title
            words = text.replace("%s", number).replace("{number}", number)
            words = words.replace("{name}", label.title)
        if label.page == self.page:
            return words
        if not text and label.kind != "section":
            words = f"{words} of *{self.book.titles[label.page]}*"
        return f"[{words}]({self.book.page_url(label.page)}#{anchor(name)})"

    def cite(self, form: str, keys: str) -> str:
        names = [key.strip() for key in keys.split(",")]
        for key in names:
            if key not in self.book.citations:
                raise self.broken(f"a citation of '{key}', which the bibliography lacks")
            if key not in self.cited:
                self.cited.append(key)
        return self.book.citations.inline(names, textual=form in ("t", "ct", "author"))

    def link(self, text: str, target: str) -> str:
        if re.match(r"^(https?:|mailto:)", target):
            return f"[{self.inline(text)}]({target})"
        path, _, fragment = target.partition("#")
        if not path:
            if fragment in self.book.labels:
                return self.reference(fragment, self.inline(text))
            return self.inline(text) or f"*{fragment.replace('-', ' ')}*"
        page = (self.page.parent / path).resolve()
        if not page.is_file():
            raise self.broken(f"a link to {target}, which does not exist")
        if page.suffix != ".md":
            return f"[{self.inline(text) or page.name}]({self.book.file_url(page, raw=False)})"
        words = self.inline(text) or f"*{self.book.titles.get(page, page.stem)}*"
        return f"[{words}]({self.book.page_url(page)}{'#' + fragment if fragment else ''})"

    def source_url(self, source: str) -> str:
        """Where an image is to be found from anywhere."""
        if re.match(r"^(https?:|data:|attachment:)", source):
            return source
        base = self.book.root if source.startswith("/") else self.page.parent
        path = base / source.lstrip("/")
        if not path.is_file():
            raise self.broken(f"the image {source}, which does not exist")
        return self.book.file_url(path, raw=True)

    # Labels and numbers

    def number(self, kind: str, label: str) -> int:
        """The next number of a kind, defined under the label and the targets that wait."""
        self.counts[kind] += 1
        for name in [*self.pending, label]:
            if name:
                self.define(name, Label(self.page, kind, kind, self.counts[kind]))
        self.pending.clear()
        return self.counts[kind]

    def define(self, name: str, label: Label) -> None:
        if self.collecting and name in self.book.labels:
            raise self.broken(f"the label '{name}', which is already used")
        self.book.labels[name] = label

    def broken(self, what: str) -> MystError:
        return MystError(f"{self.page.relative_to(self.book.root).as_posix()} has {what}")

    def error(self, what: str) -> MystError:
        return self.broken(
            f"{what}, which has no plain form in the notebooks: change the chapter, "
            "or teach tools/myst_markdown.py"
        )


def quote(title: str, body: list[str]) -> list[str]:
    """A block quote under a bold title."""
    lines = [*([f"**{title}**", ""] if title else []), *trim(body)]
    return [f"> {line}".rstrip() for line in lines]


def details(title: str, body: list[str]) -> list[str]:
    """Text that a reader opens by a click."""
    if not trim(body):
        return []
    plain = html.escape(re.sub(r"[*`]", "", title), quote=False)
    return ["<details>", f"<summary>{plain}</summary>", "", *trim(body), "", "</details>"]


def fenced(language: str, body: list[str]) -> list[str]:
    """A code block whose fence is longer than any in it."""
    longest = max((len(m[0]) for line in body for m in re.finditer("`{3,}", line)), default=2)
    mark = "`" * max(3, longest + 1)
    return [mark + language, *body, mark]


def trim(lines: list[str]) -> list[str]:
    """Without empty lines at the ends or doubled ones within."""
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return text.split("\n") if text.strip() else []


def anchor(label: str) -> str:
    """The fragment under which Sphinx publishes a label."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
