"""The case study, whole: a list of configurations in a file, a row of figures for each.

    lines = read_lines()                        # storyteller.toml: every configuration is a line
    rows = run(qlab.story.load(), lines)        # what is in the cache is not computed again
    write_page(rows, about, "report.html")      # one page that needs nothing else

``tools/case_study.py`` runs all of it and keeps the rows in ``qlab/records/case_study.json``, which
``read_record`` reads.

Chapter: The case study, whole.
"""

from qlab.study.lines import Line, Settings, read_lines, read_settings
from qlab.study.make import Made, make
from qlab.study.quality import Judge
from qlab.study.record import read_record, record_of, weights_hash
from qlab.study.rows import Row, compare_rows, front
from qlab.study.run import run

__all__ = [
    "Judge",
    "Line",
    "Made",
    "Row",
    "Settings",
    "compare_rows",
    "front",
    "make",
    "read_lines",
    "read_record",
    "read_settings",
    "record_of",
    "run",
    "weights_hash",
]
