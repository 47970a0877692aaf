"""Resolve requirements.in into requirements.lock, and write environment.yml with the same pins.

    python tools/lock.py             keep the pins that still fit, add and drop what changed
    python tools/lock.py --upgrade   resolve everything anew
    python tools/lock.py --pins      only rewrite environment.yml from the lock

pip resolves without installing (``pip install --dry-run --report``). A local version such as
``+cpu`` is cut off, so that the same lock takes a CPU build or a CUDA build of torch, whichever
the reader's package index offers.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON_VERSION = "3.11"
LOCK_HEADER = f"""\
# Exact versions of what builds and tests the book, resolved with Python {PYTHON_VERSION}.
# Made by `make lock` from requirements.in and pyproject.toml; do not edit by hand.
#   make lock             after a change of the requirements
#   make lock UPGRADE=1   to take the newest versions
"""
ENVIRONMENT_HEADER = """\
# The pins of requirements.lock, for conda. Made by `make lock`; do not edit by hand.
#   conda env create -f environment.yml && conda activate qlab
"""


def normalize(name: str) -> str:
    """The canonical spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of_report(report: dict) -> dict[str, str]:
    """Name -> version from pip's installation report; qlab itself is left out."""
    pins = {}
    for item in report["install"]:
        name = normalize(item["metadata"]["name"])
        if name != "qlab":
            pins[name] = item["metadata"]["version"].partition("+")[0]
    return pins


def parse_lock(text: str) -> dict[str, str]:
    """Name -> version. Raises ValueError on a line that is no exact pin."""
    pins = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        name, separator, version = line.partition("==")
        if not separator or not re.fullmatch(r"[A-Za-z0-9.!-]+", version):
            raise ValueError(f"line {number} of the lock is no exact pin: {line!r}")
        pins[normalize(name)] = version
    return pins


def format_lock(pins: dict[str, str]) -> str:
    """The text of requirements.lock."""
    return LOCK_HEADER + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins))


def format_environment(pins: dict[str, str]) -> str:
    """The text of environment.yml: Python and make from conda, the rest from pip."""
    lines = [
        "name: qlab",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        f"  - python={PYTHON_VERSION}",
        "  - make",
        "  - pip",
        "  - pip:",
        *(f"      - {name}=={pins[name]}" for name in sorted(pins)),
        "      - -e .",
    ]
    return ENVIRONMENT_HEADER + "\n".join(lines) + "\n"


def resolve(requirements: Path, constraints: Path | None) -> dict[str, str]:
    """Ask pip which versions it would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--report", str(report), "-r", str(requirements)]
        if constraints is not None:
            command += ["-c", str(constraints)]
        subprocess.run(command, cwd=ROOT, check=True)
        return pins_of_report(json.loads(report.read_text(encoding="utf-8")))


def main(argv: list[str] | None = None) -> int:
    """Write both files; return 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="forget the present pins")
    parser.add_argument("--pins", action="store_true", help="only rewrite environment.yml")
    args = parser.parse_args(argv)
    lock = ROOT / "requirements.lock"
    if args.pins:
        pins = parse_lock(lock.read_text(encoding="utf-8"))
    else:
        if sys.version_info[:2] != tuple(map(int, PYTHON_VERSION.split("."))):
            print(f"the lock is resolved with Python {PYTHON_VERSION}: set PYTHON", file=sys.stderr)
            return 2
        keep = lock if lock.exists() and not args.upgrade else None
        pins = resolve(ROOT / "requirements.in", keep)
        lock.write_text(format_lock(pins), encoding="utf-8")
    (ROOT / "environment.yml").write_text(format_environment(pins), encoding="utf-8")
    print(f"{len(pins)} pins in requirements.lock and environment.yml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
