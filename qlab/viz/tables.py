"""A table of a chapter: HTML on the page, aligned columns in a terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


class Table:
    """What ``table`` returns; shows itself as HTML or as text."""

    def __init__(
        self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, text: bool = False
    ) -> None:
        self.header = [str(c) for c in header]
        self.rows = [[str(c) for c in row] for row in rows]
        self.caption = caption
        self.text = text

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in self.header)
        body = "".join(
            "<tr>"
            + f'<th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(c)}</td>" for c in row[1:])
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        kind = "qtable qtext" if self.text else "qtable"
        return (
            f'<div class="{kind}"><table>{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = []
        for row in (self.header, *self.rows):
            cells = zip(row, widths, strict=True)
            lines.append(
                "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(cells))
            )
        return "\n".join([*([self.caption] if self.caption else []), *lines])


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", *, text: bool = False
) -> Table:
    """A table whose first column names the rows and whose other columns hold figures.

    Args:
        header: a name for each column, with its unit.
        rows: cells as they shall be shown.
        caption: one sentence above the table.
        text: the other columns hold sentences: begin them at the left, and let lines break.

    Raises: ValueError for a row that is longer or shorter than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells for {len(header)} columns: {row}")
    return Table(header, rows, caption, text)
