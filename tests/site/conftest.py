"""The built book in Chromium, from its files, with every request outside them refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium
from tools.chapters import ROOT, pages

HTML = ROOT / "_build" / "html"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@dataclass
class Visit:
    """A page that was opened, and what went wrong while it was."""

    page: Any
    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def built_pages() -> list[str]:
    """Addresses of the built pages, relative to the site's root."""
    return [p.relative_to(ROOT).with_suffix(".html").as_posix() for p in pages()]


@pytest.fixture(scope="session")
def html() -> Path:
    if not (HTML / "index.html").is_file():
        pytest.fail("the book is not built: run `make book` first")
    return HTML


@pytest.fixture(scope="session")
def browser(html: Path) -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def visit(browser: Any, html: Path) -> Iterator[Any]:
    """``visit("book/preface.html", theme="dark", width="phone")`` opens a page from its file."""
    contexts = []

    def go(name: str, theme: str = "light", width: str = "desktop") -> Visit:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
        contexts.append(context)
        context.add_init_script(
            f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');"
        )
        page = context.new_page()
        visited = Visit(page, (html / name).as_uri())
        page.on("pageerror", lambda e: visited.errors.append(str(e)))
        page.on(
            "console",
            lambda m: visited.errors.append(m.text) if m.type in ("error", "warning") else None,
        )

        def watch(route: Any) -> None:
            url = route.request.url
            if url.startswith(("file:", "data:", "blob:")):
                route.continue_()
            else:
                visited.requests.append(url)
                route.abort()

        context.route("**/*", watch)
        page.goto(visited.url, wait_until="load")
        page.wait_for_timeout(300)
        return visited

    yield go
    for context in contexts:
        context.close()
