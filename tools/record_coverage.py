"""Run the tests that compare with production tools and record what passed, for book/coverage.md.

    python tools/record_coverage.py

Takes some minutes. Writes qlab/records/coverage.json: one row for each subject and tool with the
agreement that was reached and the number of tests that reached it, and the tools' versions. A claim
of which one test fails, or is skipped, is left out. tests/project/test_coverage.py fails when the
tests claim something else than the record holds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "qlab" / "records" / "coverage.json"
# Where the name of a tool is not that of its package.
PACKAGES = {"llama.cpp": "xllamacpp", "faiss": "faiss-cpu", "torch.distributed": "torch"}


def main() -> None:
    """Run, record."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "pytest", "tests", "-q", "-m", "oracle or engine"]
        command += ["-n", "2", "--dist", "loadfile", "--coverage-record", str(out)]
        code = subprocess.run(command, cwd=ROOT).returncode
        rows = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
        if not rows:
            sys.exit(f"no test passed that compares with a tool: {RECORD} stays as it is")
        write(rows)
    sys.exit(code)


def write(rows: list[list[Any]]) -> None:
    """Write the record of these rows, with the versions of their tools."""
    versions = {}
    for tool in sorted({row[2] for row in rows if "(recorded)" not in row[2]} - {"qlab"}):
        try:
            versions[tool] = importlib.metadata.version(PACKAGES.get(tool, tool))
        except importlib.metadata.PackageNotFoundError:
            sys.exit(f"no installed package has the name '{tool}': add it to PACKAGES")
    record = {
        "made_by": "tools/record_coverage.py",
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "rows": rows,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} claims hold, in {RECORD.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
