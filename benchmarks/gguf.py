"""Quantizing and dequantizing a matrix: qlab's compiled code against llama.cpp's C.

Both take the same rows, with the same number of threads, in turns; the best of several runs counts.
The C is the prebuilt x86-64 build of xllamacpp, which uses SSE2 for this; a build for this machine
may be quicker. Also: opening a file of 1 GB.

    python benchmarks/gguf.py [--rows 4096] [--threads 2] [--types Q4_0,Q4_K]

Writes benchmarks/results/gguf.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qlab import gguf  # noqa: E402
from tests.gguf import llamacpp  # noqa: E402

TYPES = "Q4_0,Q8_0,Q4_K,Q6_K,IQ4_NL,Q4_1,Q5_0,Q5_1,Q2_K,Q3_K,Q5_K,IQ4_XS"
COLUMNS = 4096


def in_threads(function, rows, threads):
    """Call it on slices of the rows, one a thread."""
    edges = np.linspace(0, rows, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, edges[:-1], edges[1:]))


def best_of(functions, repeats):
    """The least time of each, taken in turns, in seconds."""
    least = [np.inf] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            least[i] = min(least[i], time.perf_counter() - start)
    return least


def compare(name, x, importance, threads, repeats):
    kind = gguf.block_type(name)
    gguf.quantize(x[:2], name, importance, engine="numba")  # compiled before it is measured
    made = {}

    def ours():
        made["ours"] = gguf.quantize(x, name, importance, engine="numba", threads=threads)

    def theirs():
        out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)

        def part(a, b):
            out[a:b] = llamacpp.quantize(x[a:b], kind.type_id, importance)

        in_threads(part, len(x), threads)
        made["theirs"] = out

    a, b = best_of([ours, theirs], repeats)
    return {
        "type": name,
        "importance": importance is not None,
        "qlab_ms": 1e3 * a,
        "llama_cpp_ms": 1e3 * b,
        "ratio": b / a,
        "equal_bytes": bool(np.array_equal(made["ours"], made["theirs"])),
    }


def opening():
    """A file of 1 GB: 290 tensors, and a vocabulary of 32,000 words. Its data is a hole."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.gguf"
        with gguf.GGUFWriter(path) as out:
            out.add("general.architecture", "llama")
            out.add("tokenizer.ggml.tokens", [f"word{i}" for i in range(32_000)])
            out.add("tokenizer.ggml.scores", np.zeros(32_000, np.float32))
        raw = bytearray(path.read_bytes())
        count, size = 290, 3_670_016  # bytes each: 1.06 GB in all
        raw[8:16] = count.to_bytes(8, "little")
        while raw and raw[-1] == 0 and len(raw) % 32 == 0 and raw[-32:] == bytes(32):
            del raw[-32:]
        with gguf.GGUFFile(path) as small:
            end = small.data_end
        raw = raw[:end].ljust(end, b"\0")
        for i in range(count):
            name = f"blk.{i}.weight".encode()
            raw += len(name).to_bytes(8, "little") + name + (1).to_bytes(4, "little")
            raw += size.to_bytes(8, "little") + (24).to_bytes(4, "little")
            raw += (i * size).to_bytes(8, "little")
        path.write_bytes(raw)
        os.truncate(path, -(-len(raw) // 32) * 32 + count * size)

        def read():
            with gguf.GGUFFile(path) as found:
                dict(found.metadata)
                assert len(found.tensors) == count

        def open_only():
            gguf.GGUFFile(path).close()

        both, opened = best_of([read, open_only], 5)
        return {
            "bytes": path.stat().st_size,
            "open_ms": 1e3 * opened,
            "open_and_read_all_metadata_ms": 1e3 * both,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "gguf.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.rows, COLUMNS)).astype(np.float32)
    importance = rng.chisquare(1, COLUMNS).astype(np.float32)
    rows = []
    for name in args.types.split(","):
        for weights in (None, importance):
            if weights is not None and not gguf.block_type(name).uses_importance:
                continue
            row = compare(name, x, weights, args.threads, args.repeats)
            rows.append(row)
            print(
                f"{name:7} {'importance' if row['importance'] else '':10} "
                f"qlab {row['qlab_ms']:8.1f} ms  llama.cpp {row['llama_cpp_ms']:8.1f} ms  "
                f"ratio {row['ratio']:5.2f}  equal bytes: {row['equal_bytes']}",
                flush=True,
            )
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": _processor(), "threads": args.threads},
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in ("numpy", "numba", "xllamacpp")},
        },
        "matrix": [args.rows, COLUMNS],
        "quantize": rows,
        "open": opening(),
    }
    print(found["open"])
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
