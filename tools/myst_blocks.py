"""Split MyST Markdown into blocks: text, plain code fences, directives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
DIRECTIVE = re.compile(r"^\s*\{(?P<name>[\w:.+-]+)\}\s*(?P<argument>.*)$")
OPTION = re.compile(r"^:(?P<key>[\w-]+):(?: (?P<value>.*))?$")


@dataclass
class Text:
    """Lines of Markdown outside any fence."""

    lines: list[str]


@dataclass
class Code:
    """A plain fenced code block, its fences included."""

    lines: list[str]


@dataclass
class Directive:
    """A fence whose info string is ``{name} argument``."""

    name: str
    argument: str
    options: dict[str, str] = field(default_factory=dict)
    body: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The name by which references find it, or an empty string."""
        return self.options.get("label") or self.options.get("name") or ""

    @property
    def classes(self) -> list[str]:
        return self.options.get("class", "").split()


def split_blocks(lines: list[str]) -> list[Text | Code | Directive]:
    """The blocks of some lines, in order. A fence that is never closed ends with the lines."""
    blocks: list[Text | Code | Directive] = []
    text: list[str] = []
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        directive = fence and DIRECTIVE.match(fence["info"])
        # Three colons without a directive are text; a backtick in the info string is inline code.
        if not fence or (not directive and (fence["mark"][0] == ":" or "`" in fence["info"])):
            text.append(lines[at])
            at += 1
            continue
        end = _closing_line(lines, at, fence["mark"])
        inside = [_dedent(line, len(fence["indent"])) for line in lines[at + 1 : end]]
        if directive:
            if text:
                blocks.append(Text(text))
                text = []
            options, body = split_options(inside)
            blocks.append(
                Directive(directive["name"], directive["argument"].strip(), options, body)
            )
        elif fence["indent"]:  # a code block within a list item belongs to the list
            text += lines[at : end + 1]
        else:
            if text:
                blocks.append(Text(text))
                text = []
            blocks.append(Code(lines[at : end + 1]))
        at = end + 1
    if text:
        blocks.append(Text(text))
    return blocks


def _closing_line(lines: list[str], start: int, mark: str) -> int:
    """The line that closes the fence opened at ``start``, or the number of lines."""
    closing = re.compile(rf"^ *{re.escape(mark[0])}{{{len(mark)},}} *$")
    for at in range(start + 1, len(lines)):
        if closing.match(lines[at]):
            return at
    return len(lines)


def _dedent(line: str, width: int) -> str:
    return line[width:] if not line[:width].strip() else line


def split_options(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options at the top of a directive, written ``:key: value`` or as a ``---`` block."""
    options: dict[str, str] = {}
    at = 0
    if lines and lines[0].strip() == "---" and "---" in [line.strip() for line in lines[1:]]:
        at = [line.strip() for line in lines].index("---", 1) + 1
        loaded = yaml.safe_load("\n".join(lines[1 : at - 1])) or {}
        options = {key: str(value) for key, value in loaded.items()}
    else:
        while at < len(lines) and (match := OPTION.match(lines[at])):
            options[match["key"]] = (match["value"] or "").strip()
            at += 1
    body = lines[at:]
    while body and not body[0].strip():
        body = body[1:]
    while body and not body[-1].strip():
        body = body[:-1]
    return options, body
