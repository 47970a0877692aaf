"""``qlab bench``: a short benchmark of the reader's machine.

Ceilings first (reading memory, products of floats and of int8), then a matrix times a vector with
qlab's kernels and with whatever else is installed, then an engine. Contestants take turns, and the
fastest run of each counts. ``benchmarks/`` holds the long ones.

Chapter: Why it is fast, or isn't.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qlab.errors import QlabError

if TYPE_CHECKING:
    import numpy as np

ROWS = COLUMNS = 4096
COLD = 160e6  # bytes of copies that take turns
SCHEMES = ("F32", "BF16", "Q8_0", "Q4_0", "Q4_K", "NF4")
SHARE = 0.1  # of the processors' time, by others, above which the machine is busy
PACKAGES = ("numpy", "numba", "torch", "onnxruntime", "bitsandbytes")
Runs = list[Callable[[], Any]]


def add_bench(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command; ``add`` is that of ``qlab.cli``."""
    c = add(
        "bench",
        bench,
        "Measure this machine: its ceilings, the kernels, and the engine.",
        "qlab bench --threads 1\n  qlab bench story.gguf --json",
    )
    c.add_argument("source", metavar="SRC", nargs="?", default="story", help="for the engine")
    c.add_argument("--threads", type=int, help="default: all of this process")
    c.add_argument("--seconds", type=float, default=0.5, help="for each contestant (default: 0.5)")
    c.add_argument("--json", action="store_true", help="print one JSON object")


def bench(args: argparse.Namespace) -> None:
    """Run it and print the figures."""
    if args.threads is not None and args.threads < 1:
        raise QlabError(f"--threads {args.threads}: at least 1")
    if not args.seconds >= 0:
        raise QlabError(f"--seconds {args.seconds}: not negative")
    found = measure_all(args.source, args.threads, args.seconds)
    print(json.dumps(found, indent=2) if args.json else table(found))


def measure_all(source: Any, threads: int | None, seconds: float) -> dict[str, Any]:
    """All figures.

    Args:
        source: of the engine; what ``qlab.engine.load`` takes.
        threads: of everything; None for as many as Numba has.
        seconds: for each contestant.

    Returns: ``device``, ``versions``, ``ceilings`` (bytes and operations a second), ``kernels``
        (a list of rows) and ``engine`` (tokens a second).
    """
    import numba
    import torch

    from qlab.kernels.cpu import measure, simd
    from qlab.kernels.cpu.jit import start_threads

    busy = busy_share()
    start_threads()
    most = numba.config.NUMBA_NUM_THREADS
    threads = min(threads or most, most)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    try:
        return {
            "date": datetime.date.today().isoformat(),
            "device": {
                "cpu": cpu(),
                "cores": os.cpu_count(),
                "threads": threads,
                "path": simd.path(),
                "busy_share": busy,
            },
            "versions": {
                "python": platform.python_version(),
                "qlab": importlib.metadata.version("qlab"),
                **{p: importlib.metadata.version(p) for p in PACKAGES if _has(p)},
            },
            "ceilings": {
                "read_bytes_per_second": measure.read_bandwidth(256, threads),
                "float_operations_per_second": measure.float_peak(threads),
                "int8_operations_per_second": measure.integer_peak(threads),
            },
            "kernels": _kernels(threads, seconds),
            "engine": _engine(source, threads, seconds),
        }
    finally:
        torch.set_num_threads(before)
        numba.set_num_threads(most)


# --- a matrix times a vector --------------------------------------------------------------------


def _kernels(threads: int, seconds: float) -> list[dict[str, Any]]:
    import numpy as np

    rng = np.random.default_rng(0)
    w = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    x = rng.normal(size=(1, COLUMNS)).astype(np.float32)
    rows = []
    for scheme in SCHEMES:
        contestants = _contestants(scheme, w, x, threads)
        times = by_turns({name: runs for name, (runs, _) in contestants.items()}, seconds)
        for name, (_, nbytes) in contestants.items():
            rows.append(
                {
                    "scheme": scheme,
                    "name": name,
                    "bytes": nbytes,
                    "seconds": times[name],
                    "bytes_per_second": nbytes / times[name],
                }
            )
    return rows


def _contestants(
    scheme: str, w: np.ndarray, x: np.ndarray, threads: int
) -> dict[str, tuple[Runs, int]]:
    """Name -> the functions that multiply, each with its own copy, and the bytes of a copy."""
    import torch

    import qlab
    from qlab.gguf.quantize import quantize
    from qlab.kernels.cpu.measure import product_runs
    from qlab.kernels.cpu.pack import pack, pack_gguf

    found: dict[str, tuple[Runs, int]] = {}
    if scheme in ("F32", "BF16"):
        dense = torch.from_numpy(w).to(torch.float32 if scheme == "F32" else torch.bfloat16)
        packed = pack(dense)
        v = torch.from_numpy(x).to(dense.dtype)
        copies = [dense.clone() for _ in range(_copies(dense.nbytes))]
        runs: Runs = [lambda c=c: torch.nn.functional.linear(v, c) for c in copies]
        found["torch"] = runs, dense.nbytes
    elif scheme == "NF4":
        packed = pack(qlab.quantize(w, "nf4-g64"))
        if _has("bitsandbytes"):
            found["bitsandbytes"] = _by_bitsandbytes(w, x)
    else:
        packed = pack_gguf(quantize(w, scheme), scheme, COLUMNS)
        bits = {"Q8_0": 8, "Q4_0": 4}.get(scheme)
        if bits and _has("onnxruntime") and _has("onnx"):
            q = qlab.quantize(w, f"int{bits}-full-g32")
            found["onnxruntime"] = _by_onnxruntime(q, x, threads)
    ours = product_runs(packed, x, _copies(packed.nbytes))
    return {"qlab": (ours, packed.nbytes), **found}


def _copies(nbytes: int) -> int:
    return max(1, round(COLD / nbytes))


def _by_onnxruntime(q: Any, x: np.ndarray, threads: int) -> tuple[Runs, int]:
    import onnxruntime as ort

    from qlab.kernels.peers import matmul_nbits

    model, nbytes = matmul_nbits(q, len(x))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    runs: Runs = []
    for _ in range(_copies(nbytes)):
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        runs.append(lambda s=session: s.run(None, {"x": x}))
    return runs, nbytes


def _by_bitsandbytes(w: np.ndarray, x: np.ndarray) -> tuple[Runs, int]:
    """``Linear4bit``, NF4 in blocks of 64."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # its advice on faster kernels
    import bitsandbytes as bnb
    import torch

    v, runs = torch.from_numpy(x), []
    nbytes = w.size // 2 + 4 * (w.size // 64)
    for _ in range(_copies(nbytes)):
        layer = bnb.nn.Linear4bit(
            w.shape[1], w.shape[0], bias=False, quant_type="nf4", compress_statistics=False
        )
        layer.weight = bnb.nn.Params4bit(
            torch.from_numpy(w), requires_grad=False, quant_type="nf4",
            compress_statistics=False, blocksize=64,
        )  # fmt: skip
        layer = layer.to("cpu").eval()

        def run(layer: Any = layer) -> Any:
            with torch.inference_mode():
                return layer(v)

        runs.append(run)
    return runs, nbytes


def by_turns(contestants: dict[str, Runs], seconds: float) -> dict[str, float]:
    """Seconds of the fastest run of each; they take turns of five runs."""
    best = dict.fromkeys(contestants, math.inf)
    for runs in contestants.values():
        runs[0]()
    turn, until = 0, time.perf_counter() + seconds * len(contestants)
    while turn < 2 or time.perf_counter() < until:
        for name, runs in contestants.items():
            for i in range(5):
                run = runs[(5 * turn + i) % len(runs)]
                began = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - began)
        turn += 1
    return {name: float(t) for name, t in best.items()}


# --- the engine ---------------------------------------------------------------------------------


def _engine(source: Any, threads: int, seconds: float) -> dict[str, Any]:
    """Tokens a second of decode (32 after 16) and prefill (as many as 256)."""
    import numpy as np

    import qlab.engine

    engine = qlab.engine.load(source)
    engine.threads = threads
    count = min(256, engine.context - 1)
    ids = np.random.default_rng(0).integers(3, engine.sizes.vocabulary, count).tolist()
    new = max(1, min(32, engine.context - 17))
    best = {"decode": math.inf, "prefill": math.inf}
    until, rounds = 0.0, 0
    while rounds < 3 or time.perf_counter() < until:
        found = engine.generate(ids[:16], new + 1, stop=())
        next(found)
        began = time.perf_counter()
        for _ in found:
            pass
        middle = time.perf_counter()
        engine.prefill(ids)
        ended = time.perf_counter()
        if rounds:  # the first one compiles
            best["decode"] = min(best["decode"], middle - began)
            best["prefill"] = min(best["prefill"], ended - middle)
        else:
            until = ended + 4 * seconds
        rounds += 1
    return {
        "model": str(source),
        "bytes": engine.nbytes,
        "decode_tokens_per_second": new / best["decode"],
        "prefill_tokens_per_second": count / best["prefill"],
        "prefill_tokens": count,
    }


# --- the machine --------------------------------------------------------------------------------


def busy_share(seconds: float = 0.5) -> float | None:
    """The part of the processors' time that is in use; None where /proc does not say."""

    def ticks() -> tuple[int, int]:
        with open("/proc/stat", encoding="ascii") as file:
            numbers = [int(n) for n in file.readline().split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]  # idle, and waiting for a disk

    try:
        (all0, idle0), _ = ticks(), time.sleep(seconds)
        all1, idle1 = ticks()
    except (OSError, ValueError, IndexError):
        return None
    return 1 - (idle1 - idle0) / max(1, all1 - all0)


def cpu() -> str:
    """Name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def table(found: dict[str, Any]) -> str:
    """The figures as lines of text."""
    device, ceilings, engine = found["device"], found["ceilings"], found["engine"]
    read = ceilings["read_bytes_per_second"]
    lines = [
        f"{device['cpu']}, threads: {device['threads']} of {device['cores']}, "
        f"instructions: {device['path']}",
    ]
    if device["busy_share"] is not None and device["busy_share"] > SHARE:
        lines.append(
            f"busy: other programs take {device['busy_share']:.0%} of the processors, so only "
            "ratios mean anything"
        )
    lines += [
        "",
        f"reads memory at      {read / 1e9:8.1f} GB/s",
        f"float operations     {ceilings['float_operations_per_second'] / 1e9:8.0f} billion/s",
        f"int8 operations      {ceilings['int8_operations_per_second'] / 1e9:8.0f} billion/s",
        "",
        f"a matrix of {ROWS} x {COLUMNS} times a vector, from memory",
        f"  {'weights':8} {'':14} {'ms':>8} {'GB/s':>7} {'of memory':>10} {'against qlab':>13}",
    ]
    ours = {r["scheme"]: r["seconds"] for r in found["kernels"] if r["name"] == "qlab"}
    for row in found["kernels"]:
        lines.append(
            f"  {row['scheme']:8} {row['name']:14} {row['seconds'] * 1e3:8.3f} "
            f"{row['bytes_per_second'] / 1e9:7.1f} {row['bytes_per_second'] / read:10.0%} "
            f"{row['seconds'] / ours[row['scheme']]:12.2f}x"
        )
    lines += [
        "",
        f"engine, {engine['model']}, {engine['bytes'] / 1e6:.1f} MB",
        f"  writes               {engine['decode_tokens_per_second']:8.0f} tokens/s",
        f"  reads {engine['prefill_tokens']:4d} tokens    "
        f"{engine['prefill_tokens_per_second']:8.0f} tokens/s",
    ]
    return "\n".join(lines)
