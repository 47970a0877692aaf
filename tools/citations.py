"""Citations as plain text: "Frantar et al. (2023)", and a list of what a page cites."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.richtext import Text


class Citations:
    """The works of some BibTeX files."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self.entries: dict[str, Entry] = {}
        for path in files:
            data: BibliographyData = parse_file(str(path), bib_format="bibtex")
            self.entries.update(data.entries)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def inline(self, keys: list[str], textual: bool) -> str:
        """``Frantar et al. (2023)`` in a sentence, ``(Frantar et al., 2023)`` beside one."""
        if textual:
            return ", ".join(f"{self._authors(k, short=True)} ({self._year(k)})" for k in keys)
        return (
            "(" + "; ".join(f"{self._authors(k, short=True)}, {self._year(k)}" for k in keys) + ")"
        )

    def listing(self, keys: Iterable[str]) -> list[str]:
        """A Markdown list of works, in the order of their authors' names."""
        return sorted(self._line(key) for key in set(keys))

    def _line(self, key: str) -> str:
        fields = self.entries[key].fields
        venue = ""
        for name in ("journal", "booktitle", "howpublished", "publisher", "institution"):
            if fields.get(name):
                venue = f" {plain(fields[name])}."
                break
        url = fields.get("url") or (f"https://doi.org/{fields['doi']}" if "doi" in fields else "")
        if not url and fields.get("eprint"):
            url = f"https://arxiv.org/abs/{fields['eprint']}"
        address = f" <{url}>" if url else ""
        title = plain(fields.get("title", key)).rstrip(".")
        authors = self._authors(key, short=False)
        return f"- {authors} ({self._year(key)}). *{title}*.{venue}{address}"

    def _year(self, key: str) -> str:
        return self.entries[key].fields.get("year", "n.d.")

    def _authors(self, key: str, short: bool) -> str:
        entry = self.entries[key]
        persons = entry.persons.get("author") or entry.persons.get("editor") or []
        names = []
        for person in persons:
            last = plain(" ".join([*person.prelast_names, *person.last_names]))
            initials = " ".join(f"{plain(name)[:1]}." for name in person.first_names)
            names.append(last if short or not initials else f"{last}, {initials}")
        if not names:
            return plain(entry.fields.get("organization") or entry.fields.get("title") or key)
        if short and len(names) > 2:
            return f"{names[0]} et al."
        if short:
            return " and ".join(names)
        return "; ".join(names[:5]) + ("; et al." if len(names) > 5 else "")


def plain(latex: str) -> str:
    """Text without the LaTeX of a BibTeX field."""
    return " ".join(str(Text.from_latex(latex)).split())
