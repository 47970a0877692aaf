"""Quantizing a matrix: qlab against torchao, and the exact search for the best clipping range.

    python benchmarks/quantize.py [--size 4096] [--rounds 15] [--threads 1] [--out FILE.json]

Both quantize the same float32 torch matrix to int4 in groups of 128, by min-max and rounding to
nearest, with the same number of threads. torchao does ``choose_qparams_affine`` and then
``quantize_affine``, which leaves a byte a code; qlab also packs two codes into a byte. The runs
alternate, and the fastest of each counts, since other work on the machine can only slow a run down.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import qlab
from qlab.cli_bench import cpu

GROUP = 128
GOAL_CLIP = 2.0  # seconds, for all rows of 4096 x 4096
RESULTS = Path(__file__).resolve().parent / "results"


def torchao_quantizer(w: torch.Tensor, asymmetric: bool) -> Callable[[], Any]:
    """() -> (codes, scale, zero point), the range and the rounding as qlab has them."""
    logging.disable(logging.WARNING)  # it reports parts that need a GPU
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        quantize_affine,
    )

    logging.disable(logging.NOTSET)
    block, low, high = (1, GROUP), -8 if asymmetric else -7, 7
    mapping = MappingType.ASYMMETRIC if asymmetric else MappingType.SYMMETRIC

    def run() -> Any:
        scale, zero = choose_qparams_affine(w, mapping, block, torch.int8, low, high)
        return quantize_affine(w, block, scale, zero, torch.int8, low, high), scale, zero

    return run


def fastest(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest run of each, taken in turn."""
    for run in runs.values():
        run()
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def compare(w: torch.Tensor, scheme: str, rounds: int) -> dict[str, Any]:
    """One row: the same scheme by both."""
    theirs = torchao_quantizer(w, "asym" in scheme)
    codes, scale, _ = theirs()
    q = qlab.quantize(w, scheme)
    if not torch.equal(scale.reshape(q.scale.shape), q.scale):
        raise SystemExit(f"{scheme}: the scales differ, so the times would compare two things")
    equal = float((codes == q.codes).double().mean())  # all but ties
    best = fastest({"qlab": lambda: qlab.quantize(w, scheme), "torchao": theirs}, rounds)
    return {
        "scheme": scheme,
        "qlab_seconds": best["qlab"],
        "torchao_seconds": best["torchao"],
        "ratio": best["torchao"] / best["qlab"],
        "equal_codes": equal,
    }


def clip_search(w: torch.Tensor, rounds: int) -> dict[str, Any]:
    """The scale of least squared error of each row, exactly."""
    from qlab.calibrate import search_clip

    best = fastest({"search": lambda: search_clip(w, "int4", "channel")}, rounds)
    before = qlab.quantize(w, "int4-channel")
    after = qlab.core.from_params(w, search_clip(w, "int4", "channel"), None, before.scheme)
    return {
        "scheme": "int4-channel",
        "seconds": best["search"],
        "goal_seconds": GOAL_CLIP,
        "sqnr_minmax": qlab.sqnr(w, before),
        "sqnr_searched": qlab.sqnr(w, after),
    }


def measure(size: int, rounds: int) -> dict[str, Any]:
    """All rows, with what they were measured on."""
    w = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return {
        "benchmark": "quantize",
        "date": datetime.date.today().isoformat(),
        "device": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in ("qlab", "torch", "torchao", "numpy")},
        },
        "tensor": f"{size} x {size} float32, normal",
        "rounds": rounds,
        "quantize": [compare(w, f"int4-{s}g{GROUP}", rounds) for s in ("", "asym-")],
        "clip_search": clip_search(w, max(1, rounds // 5)),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (default: 4096)")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="for both (default: 1)")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results")
    args = parser.parse_args(argv)
    if args.size < GROUP or args.size % GROUP or args.rounds < 1 or args.threads < 1:
        parser.error(f"--size is a multiple of {GROUP}; --rounds and --threads are at least 1")
    torch.set_num_threads(args.threads)
    result = measure(args.size, args.rounds)
    for row in result["quantize"]:
        print(
            f"{row['scheme']:15} qlab {row['qlab_seconds'] * 1e3:7.1f} ms, torchao "
            f"{row['torchao_seconds'] * 1e3:7.1f} ms: {row['ratio']:.2f} times as fast"
        )
    clip = result["clip_search"]
    print(
        f"exact clip search of all rows: {clip['seconds']:.2f} s, "
        f"{clip['sqnr_minmax']:.2f} -> {clip['sqnr_searched']:.2f} dB"
    )
    slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["cpu"].lower()).strip("-")
    out = args.out or RESULTS / f"quantize-{slug}-{args.threads}-threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
