"""The frame of an interactive figure: embedded data, one script, a static fallback.

A figure is one ``<figure>`` with

- what is shown without JavaScript (a table or a sentence), replaced when the script runs,
- its data as JSON, computed in Python,
- the shared script and style (``assets/core.js``, ``assets/figures.css``) and its own script.

The scripts are embedded with each figure, so that it works in a saved notebook as well; they run
once a page. Colors come from CSS variables with the book's own as defaults, so a figure follows the
theme of the page.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from qlab.viz.style import Picture


@cache
def asset(name: str) -> str:
    """The text of a file in ``assets/``."""
    return resources.files("qlab.viz").joinpath("assets", name).read_text("utf-8")


def figure(kind: str, data: dict[str, Any], *, alt: str, caption: str, fallback: str) -> Picture:
    """An interactive figure.

    Args:
        kind: the script ``assets/KIND.js``, which calls ``qlab.define(KIND, draw)``.
        data: what ``draw(root, data)`` gets; JSON without NaN.
        alt: what the figure shows, for readers who cannot see it.
        caption: the question that the figure answers, and how to use it.
        fallback: HTML shown where no script runs.
    """
    payload = json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True)
    # The same data always gives the same id; two equal figures on a page would be one too many.
    name = "qfig-" + hashlib.sha256(f"{kind}{payload}{caption}".encode()).hexdigest()[:10]
    # "</" would end the script element that holds the data.
    payload = payload.replace("</", "<\\/")
    return Picture(
        f"<style>{asset('figures.css')}</style>"
        f'<figure class="qfig" id="{name}" data-kind="{kind}" role="group" '
        f'aria-label="{html.escape(alt, quote=True)}">'
        f'<div class="qfig-body">{fallback}</div>'
        f"<figcaption>{html.escape(caption)}</figcaption>"
        f'<script type="application/json">{payload}</script></figure>'
        f"<script>{asset('core.js')}\n{asset(kind + '.js')}\nqlab.draw('{name}');</script>",
        alt,
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain HTML table, for fallbacks."""
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
