"""GPTQ of one layer: qlab against gptqmodel and llm-compressor, each in its own environment.

    python benchmarks/gptq.py --gptqmodel ENV/bin/python --llmcompressor ENV/bin/python \
        [--size 4096] [--group 128] [--rounds 3] [--threads 1] [--out FILE.json]

The same weight and the same Hessian for all, symmetric, damping 0.01, blocks of 128. Each tool
runs in a process of its own; the processes take turns, and the fastest run of each counts. Both the
seconds that passed and the processor's seconds are kept: on a busy machine only the latter compare,
and with one thread they are what would pass on an idle one. How to make the environments is said in
tools/record_gptq.py. ``differ`` is the part of the weights whose
values are not those of qlab in that tool's settings: scales of the block (gptqmodel) or static
(llm-compressor).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qlab.cli_bench import cpu

RESULTS = Path(__file__).resolve().parent / "results"
GOAL = 2.0  # times as fast as either
PARTS = ("seconds", "processor_seconds")


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Seconds that passed, and seconds of the processor in all threads."""
    return time.perf_counter() - began[0], time.process_time() - began[1]


def by_qlab(w: torch.Tensor, h: torch.Tensor, group: int, scales: str) -> Any:
    from types import SimpleNamespace

    from qlab.methods.gptq import GptqOptions, gptq

    stats, options = SimpleNamespace(hessian=h, name=""), GptqOptions(scales=scales)

    def run() -> Any:
        began = clocks()
        q = gptq(w, stats, f"int4-full-g{group}", options)
        return q.dequantize, since(began)

    return run


def by_gptqmodel(w: torch.Tensor, h: torch.Tensor, group: int) -> Any:
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    config = QuantizeConfig(
        bits=4, group_size=group, sym=True, desc_act=False, act_group_aware=False, damp_percent=0.01
    )
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)

    def run() -> Any:
        layer.weight.data = w
        tool = GPTQ(layer, config)
        tool.quantizer.configure(perchannel=True)
        tool.H, tool.nsamples = h.clone(), 1
        began = clocks()
        values = tool.quantize()[0]
        return lambda: values, since(began)

    return run


def by_llmcompressor(w: torch.Tensor, h: torch.Tensor, group: int) -> Any:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=group)

    def run() -> Any:
        weight, hessian = w.clone()[None], h.clone()[None]  # it works in place
        began = clocks()
        parts = w.reshape(w.shape[0], -1, group)
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
        values = quantize_weight(weight, hessian, scale[None], zero[None], None, args)[0][0]
        return lambda: values, since(began)

    return run


TOOLS = {
    "qlab": lambda *a: by_qlab(*a, "block"),
    "qlab, static": lambda *a: by_qlab(*a, "static"),
    "gptqmodel": by_gptqmodel,
    "llmcompressor": by_llmcompressor,
}


def work(tool: str, folder: Path, group: int, threads: int) -> None:
    """What a process does: its seconds to standard output, values into the folder."""
    torch.set_num_threads(threads)
    w, h = (torch.from_numpy(np.load(folder / f"{part}.npy")) for part in "wh")
    run = TOOLS[tool](w, h, group)
    if tool.startswith("qlab"):
        small = TOOLS[tool](w[:64, :256].contiguous(), h[:256, :256].contiguous(), group)
        small()  # the kernel is compiled once, or read from the cache
    values, seconds = run()
    np.save(folder / f"{tool}.npy", values().numpy())
    print("SECONDS", json.dumps(seconds))


def measure(
    python: dict[str, str], size: int, group: int, rounds: int, threads: int
) -> dict[str, Any]:
    """All tools, by turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        g = torch.Generator().manual_seed(0)
        w = torch.randn(size, size, generator=g) / size**0.5
        x = torch.randn(2 * size, size, generator=g) * torch.rand(size, generator=g)
        x += torch.randn(2 * size, 8, generator=g) @ torch.randn(8, size, generator=g) / 4
        np.save(folder / "w.npy", w.numpy())
        np.save(folder / "h.npy", (2 / len(x) * (x.T @ x)).numpy())
        del x
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads),
                       "NUMBA_NUM_THREADS": str(threads), "GPTQMODEL_CPU_WORKERS": "2",
                       "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
        root = str(Path(__file__).resolve().parents[1])
        seconds: dict[str, list[list[float]]] = {tool: [] for tool in python}
        for _ in range(rounds):
            for tool, executable in python.items():
                command = [executable, __file__, "--work", tool, "--folder", name,
                           "--group", str(group), "--threads", str(threads)]  # fmt: skip
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    env={**environment, "PYTHONPATH": root if tool.startswith("qlab") else ""},
                )
                found = re.search(r"SECONDS (.*)", done.stdout)
                if not found:
                    raise RuntimeError(f"{tool} failed: {done.stderr[-2000:]}")
                seconds[tool].append(json.loads(found[1]))
                print(
                    "{:14} {:.2f} s, processor {:.2f} s".format(tool, *seconds[tool][-1]),
                    flush=True,
                )
        values = {tool: np.load(folder / f"{tool}.npy") for tool in python}
    like = {"gptqmodel": "qlab", "llmcompressor": "qlab, static"}
    result = {}
    for tool in python:
        row = {part: min(s[i] for s in seconds[tool]) for i, part in enumerate(PARTS)}
        if tool in like:
            row |= {f"{p}_to_qlab": row[p] / result[like[tool]][p] for p in PARTS}
            row["differ"] = float((values[tool] != values[like[tool]]).mean())
        result[tool] = row
    return result


def versions(python: dict[str, str]) -> dict[str, str]:
    import importlib.metadata

    found = {p: importlib.metadata.version(p) for p in ("qlab", "numba", "numpy", "torch")}
    for tool, executable in python.items():
        if not tool.startswith("qlab"):
            code = f"import importlib.metadata as m; print(m.version('{tool}'))"
            found[tool] = subprocess.check_output([executable, "-c", code], text=True).strip()
    return {"python": platform.python_version(), **found}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gptqmodel", metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--llmcompressor", metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (default: 4096)")
    parser.add_argument("--group", type=int, default=128, help="group size (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="for all (default: 1)")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results")
    parser.add_argument("--work", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        work(args.work, args.folder, args.group, args.threads)
        return 0
    if args.size < 256 or args.size % args.group or args.rounds < 1 or args.threads < 1:
        parser.error("--size is at least 256 and whole groups; --rounds and --threads at least 1")
    python = {"qlab": sys.executable, "qlab, static": sys.executable}
    python |= {t: p for t in ("gptqmodel", "llmcompressor") if (p := getattr(args, t))}
    found = measure(python, args.size, args.group, args.rounds, args.threads)
    result = {
        "benchmark": "gptq",
        "date": datetime.date.today().isoformat(),
        "device": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": args.threads,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": versions(python),
        "tensor": f"{args.size} x {args.size} float32, int4-full-g{args.group}",
        "rounds": args.rounds,
        "goal_times": GOAL,
        "tools": found,
    }
    for tool, row in found.items():
        line = f"{tool:14} {row['seconds']:7.2f} s, processor {row['processor_seconds']:7.2f} s"
        if "differ" in row:
            times, differ = row["processor_seconds_to_qlab"], row["differ"]
            line += f", {times:.2f} times qlab's; {differ:.4%} of the values differ"
        print(line)
    slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["cpu"].lower()).strip("-")
    out = args.out or RESULTS / f"gptq-{slug}-{args.threads}-threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
