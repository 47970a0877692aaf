"""The exact search for the scale of least squared error: how long it takes, and what it is worth.

    python benchmarks/clip_search.py [--size 4096] [--rounds 5] [--threads 2] [--out FILE.json]

All rows of a float32 matrix. The fastest run counts, since other work on the machine can only slow
a run down. ``excess`` is how much more squared error the best of the usual grid leaves: 100
fractions of the largest magnitude of a row.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

# Two thread pools, torch's and Numba's: their threads must not wait by spinning (see the Makefile).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import numba
import torch
from quantize import fastest

from qlab.calibrate import search_clip
from qlab.cli_bench import cpu
from qlab.core import IntFormat, get_format

RESULTS = Path(__file__).resolve().parent / "results"
GOAL = 2.0  # seconds, for int4 and all rows of 4096 x 4096
FORMATS = ("int2", "int3", "int4", "nf4", "int8")


def grid_search(w: torch.Tensor, qmax: int, steps: int = 100) -> torch.Tensor:
    """The best of ``steps`` scales for each row, (rows, 1)."""
    amax = w.abs().amax(dim=1, keepdim=True)
    best, least = amax / qmax, torch.full_like(amax, float("inf"))
    for i in range(1, steps + 1):
        scale = amax * (i / steps) / qmax
        error = (w - (w / scale).round_().clamp_(-qmax, qmax).mul_(scale)).square_()
        error = error.sum(dim=1, keepdim=True)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def squared_error(w: torch.Tensor, scale: torch.Tensor, qmax: int) -> float:
    """Sum over all rows, in float64."""
    w, scale = w.double(), scale.double()
    return float((w - (w / scale).round().clamp(-qmax, qmax) * scale).square().sum())


def measure(size: int, rounds: int, threads: int) -> dict[str, Any]:
    """All rows of the table, with what they were measured on."""
    w = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    rows = []
    for name in FORMATS:
        # Eight bits have 127 thresholds, hence ten times the breakpoints: a part of the rows.
        part = w if name != "int8" else w[: max(1, size // 8)]
        best = fastest({"exact": lambda n=name, p=part: search_clip(p, n)}, rounds)
        row = {"format": name, "rows": len(part), "seconds": best["exact"]}
        fmt = get_format(name)
        if isinstance(fmt, IntFormat):
            few = part[: max(1, len(part) // 16)]
            exact = squared_error(few, search_clip(few, name), fmt.qmax)
            row["excess"] = squared_error(few, grid_search(few, fmt.qmax), fmt.qmax) / exact - 1
        rows.append(row)
    return {
        "benchmark": "clip_search",
        "date": datetime.date.today().isoformat(),
        "device": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": threads,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in ("qlab", "numba", "numpy", "torch")},
        },
        "tensor": f"{size} x {size} float32, normal, a scale each row",
        "rounds": rounds,
        "goal_seconds": GOAL,
        "search": rows,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (default: 4096)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="for both (default: 2)")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results")
    args = parser.parse_args(argv)
    most = numba.config.NUMBA_NUM_THREADS
    if args.size < 2 or args.rounds < 1 or not 1 <= args.threads <= most:
        parser.error(f"--size is at least 2, --rounds at least 1, --threads 1 to {most}")
    torch.set_num_threads(args.threads)
    numba.set_num_threads(args.threads)
    result = measure(args.size, args.rounds, args.threads)
    for row in result["search"]:
        line = f"{row['format']:5} {row['rows']:5} rows: {row['seconds']:6.3f} s"
        if "excess" in row:
            line += f"; a grid of 100 leaves {100 * row['excess']:.3f} % more error"
        print(line)
    slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["cpu"].lower()).strip("-")
    out = args.out or RESULTS / f"clip-search-{slug}-{args.threads}-threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
