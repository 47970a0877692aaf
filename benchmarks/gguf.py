"""Quantizing and dequantizing a matrix: qlab's compiled code against llama.cpp's C.

    python benchmarks/gguf.py [--size 4096] [--threads 1] [--seconds 8] [--types Q4_0,Q4_K]
                              [--native libggml-base.so] [--out FILE.json]

Both take the same rows with the same number of threads. A matrix goes through in slices of rows:
each slice is taken by all in turn, several times, and the fastest of each counts. The sum over the
slices is the time of the matrix on a machine that does nothing else: a short slice finds quiet
moments also on a busy one.

The C is ``ggml_quantize_chunk`` of xllamacpp's prebuilt library, and of another one that
``--native`` names, such as that of llama-cpp-python, compiled here. A third is not measured: a
build that fuses multiplications and additions, since its bytes differ.

Dequantizing is one thread, and moves memory more than it computes, so it is also compared with
NumPy's copy of the same number of bytes, read and written. Opening: a file of 1 GB with 290 tensors
and 32,000 words.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from qlab import gguf  # noqa: E402
from qlab.cli_bench import cpu  # noqa: E402
from tests.gguf import llamacpp  # noqa: E402

GOALS = ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL")  # at least as fast as the C
GRIDS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
TYPES = (*GOALS, "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "IQ4_XS", *GRIDS)
GOAL_OPEN = 50.0  # milliseconds
SLICE = 1 << 20  # weights

Quantizer = Callable[[np.ndarray, str, "np.ndarray | None"], np.ndarray]


def c_quantizer(library: ctypes.CDLL, threads: int) -> Quantizer:
    """``ggml_quantize_chunk`` on slices of the rows, one a thread."""
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    pool = ThreadPoolExecutor(threads)

    def run(x: np.ndarray, name: str, importance: np.ndarray | None) -> np.ndarray:
        kind = gguf.block_type(name)
        out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
        row = None if importance is None else importance.ctypes.data
        edges = np.linspace(0, len(x), threads + 1).astype(int)

        def part(a: int, b: int) -> None:
            function(
                kind.type_id, x.ctypes.data, out.ctypes.data, a * x.shape[1], b - a, x.shape[1], row
            )

        if threads == 1:
            part(0, len(x))
        else:
            list(pool.map(part, edges[:-1].tolist(), edges[1:].tolist()))
        return out

    return run


def fastest(runs: dict[str, Callable[[int], Any]], slices: int, seconds: float) -> dict[str, float]:
    """Sum over the slices of the fastest run of each, in seconds; at least one run of each."""
    best = {name: np.full(slices, np.inf) for name in runs}
    began, rounds = time.perf_counter(), 0
    while rounds < 1 or time.perf_counter() - began < seconds:
        for i in range(slices):
            for name, run in runs.items():
                start = time.perf_counter()
                run(i)
                best[name][i] = min(best[name][i], time.perf_counter() - start)
        rounds += 1
    return {name: float(times.sum()) for name, times in best.items()}


def compare(
    x: np.ndarray,
    name: str,
    importance: np.ndarray | None,
    peers: dict[str, Quantizer],
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """One row: a type, with or without an importance matrix."""

    def ours(part: np.ndarray, name: str, importance: np.ndarray | None) -> np.ndarray:
        return gguf.quantize(part, name, importance, engine="numba", threads=threads)

    # Handing work to threads takes a tenth of a millisecond: give them more at a time.
    parts = np.array_split(x, max(1, x.size // (SLICE if threads == 1 else 4 * SLICE)))
    all_of_them = {"qlab": ours, **peers}
    made = {peer: run(parts[0], name, importance) for peer, run in all_of_them.items()}
    runs = {
        peer: lambda i, run=run: run(parts[i], name, importance)
        for peer, run in all_of_them.items()
    }
    best = fastest(runs, len(parts), seconds)
    return {
        "type": name,
        "importance": importance is not None,
        "qlab_seconds": best["qlab"],
        "peers": {
            peer: {
                "seconds": best[peer],
                "ratio": best[peer] / best["qlab"],
                "equal_bytes": bool(np.array_equal(made["qlab"], made[peer])),
            }
            for peer in peers
        },
    }


def compare_reading(x: np.ndarray, name: str, seconds: float) -> dict[str, Any]:
    """One row of dequantizing."""
    kind = gguf.block_type(name)
    parts = np.array_split(gguf.quantize(x, name, threads=1), max(1, x.size // SLICE))
    there = [np.zeros(part.nbytes + 4 * x.size // len(parts) >> 1, np.uint8) for part in parts]
    runs = {
        "qlab": lambda i: gguf.dequantize(parts[i], name, threads=1),
        "llama.cpp": lambda i: llamacpp.dequantize(parts[i], kind.type_id),
        "copy": lambda i: there[i].copy(),  # half read, half written: as many bytes in all
    }
    equal = np.array_equal(runs["qlab"](0), runs["llama.cpp"](0))
    runs["copy"](0)
    best = fastest(runs, len(parts), seconds)
    moved = sum(2 * part.nbytes for part in there)
    return {
        "type": name,
        "qlab_seconds": best["qlab"],
        "llama_cpp_seconds": best["llama.cpp"],
        "ratio": best["llama.cpp"] / best["qlab"],
        "equal_weights": bool(equal),
        "bytes_moved": moved,
        "qlab_bytes_per_second": moved / best["qlab"],
        "copy_bytes_per_second": moved / best["copy"],
    }


def large_file(path: Path) -> None:
    """A GGUF file of 1.06 GB, whose tensors are a hole that takes no room on the disk."""
    count, size = 290, 3_670_016
    with gguf.GGUFWriter(path) as out:
        out.add("general.architecture", "llama")
        out.add("tokenizer.ggml.tokens", [f"word{i}" for i in range(32_000)])
        out.add("tokenizer.ggml.scores", np.zeros(32_000, np.float32))
        out.add("tokenizer.ggml.token_type", np.ones(32_000, np.int32))
    with gguf.GGUFFile(path) as small:
        raw = bytearray(path.read_bytes()[: small.data_end])
    raw[8:16] = count.to_bytes(8, "little")
    for i in range(count):
        name = f"blk.{i}.weight".encode()
        raw += len(name).to_bytes(8, "little") + name + (1).to_bytes(4, "little")
        raw += size.to_bytes(8, "little") + (24).to_bytes(4, "little")  # int8
        raw += (i * size).to_bytes(8, "little")
    path.write_bytes(raw)
    os.truncate(path, -(-len(raw) // 32) * 32 + count * size)


def opening() -> dict[str, Any]:
    """Milliseconds to open a large file, and to read all its metadata."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.gguf"
        large_file(path)

        def read(_: int) -> None:
            with gguf.GGUFFile(path) as found:
                dict(found.metadata)

        best = fastest({"read": read, "open": lambda _: gguf.GGUFFile(path).close()}, 1, 3.0)
        return {
            "bytes": path.stat().st_size,
            "open_ms": 1e3 * best["open"],
            "open_and_read_all_metadata_ms": 1e3 * best["read"],
            "goal_ms": GOAL_OPEN,
        }


def measure(
    size: int, threads: int, seconds: float, types: tuple[str, ...], native: str | None
) -> dict[str, Any]:
    """All rows, with what they were measured on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, size)).astype(np.float32)
    importance = rng.chisquare(1, size).astype(np.float32)
    peers = {"xllamacpp": c_quantizer(llamacpp.library(), threads)}
    if native:
        peers["native"] = c_quantizer(ctypes.CDLL(native), threads)
    rows = []
    for name in types:
        for weights in (None, importance):
            kind = gguf.block_type(name)
            if kind.uses_importance if weights is not None else not kind.needs_importance:
                rows.append(compare(x, name, weights, peers, threads, seconds))
                print(say(rows[-1]), flush=True)
    reading = []
    for name in ("F16", "BF16", *(t for t in types if t not in GRIDS)):  # those are not compiled
        reading.append(compare_reading(x, name, seconds / 4))
        print(say_reading(reading[-1]), flush=True)
    return {
        "benchmark": "gguf",
        "date": datetime.date.today().isoformat(),
        "device": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": threads,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in ("qlab", "numpy", "numba", "xllamacpp")},
        },
        "matrix": f"{size} x {size} float32, normal",
        "quantize": rows,
        "dequantize": reading,
        "open": opening(),
    }


def say(row: dict[str, Any]) -> str:
    line = f"{row['type']:7}{' importance' if row['importance'] else '':11}"
    line += f" qlab {1e3 * row['qlab_seconds']:8.1f} ms"
    for peer, found in row["peers"].items():
        line += f", {peer} {1e3 * found['seconds']:8.1f} ms: {found['ratio']:5.2f} times as fast"
        line += "" if found["equal_bytes"] else " (OTHER BYTES)"
    return line


def say_reading(row: dict[str, Any]) -> str:
    share = row["qlab_bytes_per_second"] / row["copy_bytes_per_second"]
    return (
        f"{row['type']:7} dequantized: {row['qlab_bytes_per_second'] / 1e9:5.2f} GB/s, "
        f"{share:.2f} of a copy, {row['ratio']:5.2f} times as fast as llama.cpp's"
    )


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    device = result["device"]
    peers = list(result["quantize"][0]["peers"])
    lines = [
        f"# GGUF on {device['cpu']}, threads: {device['threads']}",
        "",
        f"{result['date']}, {result['matrix']}. A ratio is llama.cpp's time over qlab's. Fastest "
        "of several runs in turn; made by `benchmarks/gguf.py`.",
        "",
        "| type | importance | qlab, ms | " + " | ".join(f"{p}, ms | ratio" for p in peers) + " |",
        "|---|---|--:|" + "--:|--:|" * len(peers),
    ]
    for row in result["quantize"]:
        cells = [
            row["type"],
            "yes" if row["importance"] else "",
            f"{1e3 * row['qlab_seconds']:.1f}",
        ]
        for found in row["peers"].values():
            cells += [f"{1e3 * found['seconds']:.1f}", f"{found['ratio']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| dequantized, 1 thread | qlab, ms | llama.cpp, ms | ratio | qlab, GB/s | copy, GB/s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["dequantize"]:
        lines.append(
            f"| {row['type']} | {1e3 * row['qlab_seconds']:.1f} | "
            f"{1e3 * row['llama_cpp_seconds']:.1f} | {row['ratio']:.2f} | "
            f"{row['qlab_bytes_per_second'] / 1e9:.2f} | {row['copy_bytes_per_second'] / 1e9:.2f} |"
        )
    found = result["open"]
    lines += [
        "",
        f"A file of {found['bytes'] / 1e9:.2f} GB: opened in {found['open_ms']:.1f} ms, with all "
        f"metadata read {found['open_and_read_all_metadata_ms']:.1f} ms.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (default: 4096)")
    parser.add_argument("--threads", type=int, default=1, help="for both (default: 1)")
    parser.add_argument("--seconds", type=float, default=8, help="for each row (default: 8)")
    parser.add_argument("--types", default=",".join(TYPES), help="separated by commas")
    parser.add_argument("--native", metavar="LIB", help="another libggml-base.so to compare with")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results")
    args = parser.parse_args(argv)
    if args.size < 256 or args.size % 256 or args.threads < 1 or args.seconds < 0:
        parser.error("--size is a multiple of 256, --threads at least 1, --seconds not negative")
    types = tuple(args.types.split(","))
    result = measure(args.size, args.threads, args.seconds, types, args.native)
    found = result["open"]
    print(
        f"a file of {found['bytes'] / 1e9:.2f} GB: open {found['open_ms']:.1f} ms, "
        f"and all metadata {found['open_and_read_all_metadata_ms']:.1f} ms"
    )
    slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["cpu"].lower()).strip("-")
    out = args.out or RESULTS / f"gguf-{slug}-{args.threads}-threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(f"wrote {out} and {out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
