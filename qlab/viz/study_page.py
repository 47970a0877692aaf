"""The report of a study as one page: table, front, stories, settings. No network, no other file.

Chapter: The case study, whole.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlab.errors import QlabError
from qlab.files import new_file
from qlab.study.rows import COSTS, MEASURES, Row

_STYLE = """
:root { color-scheme: light dark; --q-accent: #0b5d7a; --q-line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
@media (prefers-color-scheme: dark) { :root { --q-accent: #7cc4dd; }
  body { background: #15181b; color: #e6e6e6; } }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child { text-align: left; white-space: nowrap; }
thead th { vertical-align: bottom; }
"""


def points_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What ``qlab.viz.pareto`` takes; bytes become megabytes. Without the model as it is."""
    points = []
    for row in rows:
        if not row.line["scheme"] and not row.line["among"]:
            continue
        costs = {key: row.value(key) for key in COSTS}
        for key in ("file_bytes", "memory_bytes"):
            costs[key] = None if costs[key] is None else costs[key] / 1e6  # type: ignore[operator]
        points.append({"name": row.name, "family": row.family, **row.measures, **costs})
    return points


def pareto_of(rows: Sequence[Row]) -> Any:
    """The figure of a study: the measures and costs that at least one row has.

    Chapter: The case study, whole.
    """
    from qlab.viz.pareto import pareto

    points = points_of(rows)

    def had(of: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in of.items() if any(p.get(k) is not None for p in points)}

    return pareto(points, had(MEASURES), had(COSTS))


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table; an empty cell was not measured."""
    header = [
        "", "bits per weight", "file (MB)", "memory (MB)", "speed", "perplexity",
        "times the whole model's", "KL (nats)", "same token", "ROUGE-1", "ROUGE-2", "ROUGE-L",
        "BLEU", "consistency",
    ]  # fmt: skip
    return header, [_cells(row) for row in rows]


def _cells(row: Row) -> list[str]:
    def figure(key: str, form: str, interval: bool = True) -> str:
        if key not in row.measures:
            return ""
        value, low, high = row.measures[key]
        around = f" [{low:{form}}, {high:{form}}]" if interval else ""
        return f"{value:{form}}{around}"

    def cost(value: float | None, form: str, unit: float = 1.0) -> str:
        return "" if value is None else f"{value / unit:{form}}"

    return [
        row.name,
        cost(row.bits_per_weight, ".2f") or "32",
        cost(row.file_bytes, ".2f", 1e6),
        cost(row.memory_bytes, ".1f", 1e6),
        cost(row.speed, ".2f"),
        figure("perplexity", ".2f"),
        figure("ratio", ".3f"),
        figure("kl", ".4f"),
        figure("agreement", ".3f"),
        figure("rouge1", ".2f"),
        figure("rouge2", ".2f"),
        figure("rougeL", ".2f"),
        figure("bleu", ".1f"),
        figure("consistency", ".2f"),
    ]


def write_page(
    rows: Sequence[Row],
    about: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Write the page, whole or not at all.

    Args:
        rows: of ``run``, the model as it is among them.
        about: of the record: model, weights, settings, openings, versions, date.
        out: the file; an old one is replaced.

    Raises: QlabError for no rows, or a place that cannot be written.

    Chapter: The case study, whole.
    """
    page = page_of(rows, about)
    with new_file(out) as file:
        file.write_text(page, encoding="utf-8")
        file.chmod(0o644)


def page_of(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """The page as text. Raises: QlabError for no rows."""
    from qlab.viz import side_by_side

    if not rows:
        raise QlabError("a report of no rows: measure at least one configuration")
    name = html.escape(Path(str(about["model"])).name)
    parts = [
        f"<h1>Quantizing {name}</h1>",
        f"<p>{len(rows)} configurations, measured {html.escape(str(about['date']))}. In brackets: "
        "the interval that holds 95% of the resamples of a bootstrap over texts; figures against "
        "the model as it is are paired. Speed is that of qlab's engine on one thread, as a "
        "multiple of the model as it is in the same run. ROUGE and BLEU compare with what the "
        "model as it is tells. An empty cell: not measured.</p>",
    ]
    if points_of(rows):
        parts += ["<h2>Quality and cost</h2>", pareto_of(rows).markup]
    parts += ["<h2>All rows</h2>", _table(*table_of(rows))]
    notes = [f"<li>{html.escape(r.name)}: {html.escape(r.note)}</li>" for r in rows if r.note]
    if notes:
        parts += ["<h2>What could not be measured</h2>", f"<ul>{''.join(notes)}</ul>"]
    starts = list(about["openings"])
    if starts:
        told = {r.name: r.told[: len(starts)] for r in rows}
        parts += ["<h2>The same openings, continued</h2>", side_by_side(starts, told).markup]
    settings = {**about.get("settings", {}), **about.get("versions", {})}
    settings |= {k: about[k] for k in ("weights", "machine") if k in about}
    parts += [
        "<h2>Settings and versions</h2>",
        _table(["", "value"], [[k, str(v)] for k, v in settings.items()]),
        "<h2>How each row was made</h2>",
        _table(["", "method", "scheme", "more"], [_how(row) for row in rows]),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Quantizing {name}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _how(row: Row) -> list[str]:
    line = row.line
    more = {
        k: v for k, v in line.items() if k not in ("name", "family", "method", "scheme", "seed")
    }
    if not line["steps"]:
        more.pop("lr", None)
    words = [f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in more.items() if v]
    return [row.name, line["method"], line["scheme"], "; ".join(words)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(r[0])}</th>'
        + "".join(f"<td>{html.escape(c)}</td>" for c in r[1:])
        + "</tr>"
        for r in rows
    )
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{inside}</table></div>'
