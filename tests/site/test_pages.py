"""Every page renders without a network, in both themes, on a desktop and on a phone."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest

from .conftest import built_pages

PAGES = built_pages()
# One pixel for rounding.
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth + 1;
  if (document.documentElement.scrollWidth <= wide) return [];
  return [...document.querySelectorAll('main *')]
    .filter(e => e.getBoundingClientRect().right > wide)
    .map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 40)).slice(0, 5);
}"""
WITHOUT_ALT = """() => [
  ...[...document.querySelectorAll('img')].filter(e => !(e.getAttribute('alt') || '').trim()),
  ...[...document.querySelectorAll('main svg')].filter(e =>
    !e.closest('mjx-container') && !e.closest('button, a, summary') &&
    e.getAttribute('aria-hidden') !== 'true' && !(e.getAttribute('aria-label') || '').trim()),
].map(e => e.outerHTML.slice(0, 120))"""
CONTRAST = """() => {
  const parse = c => {
    const m = c.match(/[\\d.]+/g).map(Number);
    return m.length < 4 ? [...m, 1] : m;
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] === 1) return c;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  const texts = ['p', 'li', 'h1', 'h2', 'td', 'pre span', 'figcaption'].map(t => 'main ' + t);
  for (const e of document.querySelectorAll(texts.join())) {
    if (!e.textContent.trim() || e.closest('mjx-container') || e.closest('.qfig-pieces')) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5)
      poor.push(`${ratio.toFixed(2)} ${e.tagName} ${e.className} ${e.textContent.slice(0, 30)}`);
  }
  return [...new Set(poor)].slice(0, 8);
}"""


@pytest.mark.parametrize("width", ["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(visit, name, theme, width):
    visited = visit(name, theme, width)
    page = visited.page
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    # What loads only when it is seen has to load too.
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(200)
    assert visited.requests == []
    assert visited.errors == []
    assert page.evaluate(OVERFLOW) == []
    assert page.evaluate(WITHOUT_ALT) == []
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("name", PAGES)
def test_formulas_are_typeset_and_fonts_are_ours(visit, name, html):
    page = visit(name).page
    source = page.evaluate("fetch ? document.querySelectorAll('.math').length : 0")
    page.wait_for_function(
        f"document.querySelectorAll('mjx-container').length >= {source}", timeout=10_000
    )
    assert page.locator("mjx-merror").count() == 0
    page.evaluate("document.fonts.ready")
    assert page.evaluate("document.fonts.check('16px \"Source Serif 4\"')")
    loaded = page.evaluate(
        "[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)"
    )
    assert any("Source Serif" in family for family in loaded)


@pytest.mark.parametrize("name", PAGES)
def test_no_cell_shows_an_error_or_a_warning(visit, name):
    page = visit(name).page
    assert page.locator(".output.stderr").all_inner_texts() == []
    assert (
        page.locator(".cell.tag_raises-exception .output.traceback").count()
        == page.locator(".output.traceback").count()
    )


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_site_lead_somewhere(visit, name, html):
    visited = visit(name)
    hrefs = visited.page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
    broken = []
    for href in set(hrefs):
        url, fragment = urldefrag(urljoin(visited.url, href))
        if urlparse(url).scheme != "file":
            assert url.startswith(("https://", "mailto:")), f"{url} is neither local nor https"
            continue
        path = Path(unquote(urlparse(url).path))
        if not path.is_file():
            broken.append(href)
        elif fragment and path.suffix == ".html":
            text = path.read_text(encoding="utf-8")
            if f'id="{unquote(fragment)}"' not in text and f'name="{fragment}"' not in text:
                broken.append(href)
    assert broken == []


def test_the_first_page_leads_to_the_book(visit):
    page = visit("index.html").page
    page.wait_for_url("**/book/preface.html", timeout=5_000)
    assert "Preface" in page.title()
