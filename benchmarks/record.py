"""What the book shows of the benchmarks: qlab/records/benchmarks.json, from benchmarks/results.

    python benchmarks/record.py

Takes the newest results of kernels.py and of engine.py with the most threads. Measures nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECORD = ROOT / "qlab" / "records" / "benchmarks.json"


def newest(pattern: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The result with the latest date; of the same date the one with the most threads."""
    found = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob(pattern))]
    if not found:
        raise SystemExit(f"no {pattern} in {folder}: run the benchmark first")
    return max(found, key=lambda r: (r["date"], r["device"]["threads"]))


def of_kernels(result: dict[str, Any]) -> dict[str, Any]:
    """One vector; schemes in which both qlab and another library took part."""
    device, rows = result["device"], []
    for row in result["contests"]:
        runs = row["contestants"]
        if row["tokens"] != 1 or "qlab" not in runs or len(runs) < 2:
            continue
        rows.append(
            {
                **{k: row[k] for k in ("scheme", "rows", "columns")},
                "bytes": {n: r["bytes"] for n, r in runs.items()},
                "hot": {n: round(r["hot_ms"], 4) for n, r in runs.items()},
                "cold": {n: round(r["cold_ms"], 4) for n, r in runs.items()},
            }
        )
    return {
        "cpu": device["cpu"],
        "threads": device["threads"],
        "date": result["date"],
        "bandwidth": device["read_bytes_per_second"],
        "rows": rows,
    }


def of_engine(result: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for row in result["rows"]:
        speeds = row["tokens_per_second"]
        peer = max(speed for name, speed in speeds.items() if name != "qlab")
        rows.append(
            {
                **{k: row[k] for k in ("model", "what")},
                "qlab": round(speeds["qlab"], 1),
                "peer": round(peer, 1),
            }
        )
    device = result["device"]
    return {
        "cpu": device["cpu"],
        "threads": device["threads"],
        "date": result["date"],
        "rows": rows,
    }


def record() -> dict[str, Any]:
    return {
        "made_by": "benchmarks/record.py",
        "kernels": of_kernels(newest("kernels-*threads.json")),
        "engine": of_engine(newest("engine-*.json")),
    }


def main() -> int:
    RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
