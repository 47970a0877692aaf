"""The whole case study of the storyteller: `make case-study`.

    .venv/bin/python tools/case_study.py              # all lines, the record and the report
    .venv/bin/python tools/case_study.py --list       # the lines, and which are in the cache
    .venv/bin/python tools/case_study.py --cached     # record what the cache holds, and stop

The lines are in qlab/study/storyteller.toml. Each finished row is kept in the cache at once, so the
script can be stopped and called again, and a second call takes seconds. It writes
qlab/records/case_study.json, which the book reads, and a page, _build/case-study.html, which needs
nothing but a browser. From nothing it takes some minutes on two quiet cores.

The record names the weights that it is of. When the storyteller is trained anew, call this script.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "qlab" / "records" / "case_study.json"
PAGE = ROOT / "_build" / "case-study.html"


def main() -> int:
    """Run what is missing, and write the record and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", metavar="FILE.toml", help="other lines (default: the book's)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--cached", action="store_true", help="only what the cache holds")
    parser.add_argument("--no-running", action="store_true", help="leave memory and speed out")
    parser.add_argument("--list", action="store_true", help="list the lines and stop")
    parser.add_argument("--record", type=Path, default=RECORD, help="where the rows go")
    parser.add_argument("--html", type=Path, default=PAGE, help="where the page goes")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
    import torch

    import qlab
    from qlab.files import new_file
    from qlab.study import read_lines, read_settings, record_of, run
    from qlab.viz.study_page import write_page

    torch.set_num_threads(1)
    source = qlab.story.load()
    lines, settings = read_lines(chosen.lines), read_settings(chosen.lines)
    if chosen.list:
        have = {r.name for r in run(source, lines, settings=settings, cached=True, running=False)}
        for line in lines:
            print(f"{'cached' if line.name in have else '-':8} {line.name}")
        return 0
    began, done = time.monotonic(), 0

    def tell(name: str) -> None:
        nonlocal done
        done += 1
        print(f"{time.monotonic() - began:6.0f} s  {done:4}  {name}", flush=True)

    rows = run(
        source,
        lines,
        settings=settings,
        jobs=chosen.jobs,
        running=not chosen.no_running,
        cached=chosen.cached,
        tell=tell,
    )
    record = record_of(source, rows, settings, source.validation()[: settings.texts])
    with new_file(chosen.record) as file:
        file.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    write_page(rows, record["about"], chosen.html)
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s: {chosen.record}, {chosen.html}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
