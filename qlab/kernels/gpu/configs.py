"""Which tile sizes a kernel runs with: measured ones a GPU, from ``configs.json``, or a rule.

The file maps the name of a GPU, as ``torch.cuda.get_device_name`` gives it, to a list of entries
{"kernel", "rows", "inputs", "batch", "config", "microseconds"}, and says when and with which
versions they were measured. ``benchmarks/gpu.py --tune`` writes it.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

import itertools
import json
import math
from functools import cache
from importlib import resources
from typing import Any

Config = dict[str, int]

# Names of kernels: those with one vector, those with several.
KERNELS = ("w4a16.gemv", "w4a16.gemm", "w8a8", "fp8", "q4_k.gemv", "q4_k.gemm")


@cache
def measured() -> dict[str, Any]:
    """The file ``configs.json``: name of a GPU -> {"date", "versions", "entries"}."""
    text = resources.files("qlab.kernels.gpu").joinpath("configs.json").read_text("utf-8")
    return dict(json.loads(text)["gpus"])


def bucket(batch: int) -> int:
    """Batches are tuned in powers of two: the next one up, at most 256."""
    return min(256, 1 << max(0, batch - 1).bit_length())


def choose(
    kernel: str, rows: int, inputs: int, batch: int, gpu: str, processors: int = 132
) -> Config:
    """The configuration for a product (batch, inputs) x (rows, inputs).

    Of the entries of that GPU (or of the GPU whose name has the longest start in common with it and
    is of the same model), those of this kernel and batch; of these the nearest shape, within a
    factor of two in either direction. Otherwise ``rule``.
    """
    entries = _entries(gpu)
    near = [
        (max(abs(math.log2(e["rows"] / rows)), abs(math.log2(e["inputs"] / inputs))), i)
        for i, e in enumerate(entries)
        if e["kernel"] == kernel and e["batch"] == bucket(batch)
    ]
    if near and min(near)[0] <= 1:
        return dict(entries[min(near)[1]]["config"])
    return rule(kernel, rows, inputs, batch, processors)


def rule(kernel: str, rows: int, inputs: int, batch: int, processors: int = 132) -> Config:
    """A configuration that no one measured: tiles of middling size, split until all are busy."""
    if kernel.endswith("gemv"):
        config = {"BLOCK_N": 16, "num_warps": 4}
        config |= {"BLOCK_C": 4} if kernel.startswith("w4") else {"BLOCK_B": 1}
        tiles, step = -(-rows // 16), 512 if kernel.startswith("w4") else 256
        wanted = 8 * processors  # programs that are small: many a processor
    else:
        wide = 16 if batch <= 16 else 32 if batch <= 32 else 64
        config = {"BLOCK_N": 64, "BLOCK_M": wide, "num_warps": 4}
        step = 128 if kernel.startswith("w4") else 256
        if kernel in ("w8a8", "fp8"):
            config["BLOCK_K"], step = 128, 128
        tiles = -(-rows // 64) * -(-batch // wide)
        wanted = 2 * processors
    parts = max(1, -(-inputs // step))
    split = 1
    while split * 2 <= min(parts, 16) and tiles * split < wanted:
        split *= 2
    return {**config, "SPLIT": split}


def candidates(kernel: str, batch: int) -> list[Config]:
    """Configurations to try when tuning: few, so that a GPU is tuned in minutes."""
    if kernel == "w4a16.gemv":
        tiles = [(8, 4, 4), (16, 4, 4), (16, 8, 8), (32, 4, 4)]
        return [
            {"BLOCK_N": n, "BLOCK_C": c, "num_warps": w, "SPLIT": s}
            for (n, c, w), s in itertools.product(tiles, (1, 4, 8))
        ]
    if kernel == "q4_k.gemv":
        tiles = [(4, 2, 4), (16, 1, 4), (16, 2, 4)]
        return [
            {"BLOCK_N": n, "BLOCK_B": b, "num_warps": w, "SPLIT": s}
            for (n, b, w), s in itertools.product(tiles, (1, 4, 8))
        ]
    widths = [16] if batch <= 16 else [64] if batch <= 64 else [64, 128]
    splits = (1, 2, 4) if batch <= 64 else (1,)
    found = [
        {"BLOCK_N": n, "BLOCK_M": m, "num_warps": w, "SPLIT": s}
        for m, (n, w), s in itertools.product(widths, [(64, 4), (128, 4), (128, 8)], splits)
    ]
    if kernel in ("w8a8", "fp8"):
        found = [{**c, "BLOCK_K": 128} for c in found if c["num_warps"] == 4]
    return found


def _entries(gpu: str) -> list[dict[str, Any]]:
    table = measured()
    if gpu in table:
        return list(table[gpu]["entries"])
    model = gpu.split()[:2]  # "NVIDIA H100"
    alike = [name for name in table if name.split()[:2] == model]
    if not alike:
        return []

    return list(table[max(alike, key=lambda name: shared(name, gpu))]["entries"])


def shared(one: str, other: str) -> int:
    """How many characters two names have in common at their start."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, same))
