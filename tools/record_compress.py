"""Record what pruning makes of small matrices, and what all ways to compress cost the storyteller.

    python -m venv B && B/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    B/bin/python tools/record_compress.py llmcompressor
    .venv/bin/python tools/record_compress.py storyteller
    .venv/bin/python tools/record_compress.py students

The first writes qlab/records/compress_llmcompressor.json, for tests/compress/test_parity.py: the
weights that Wanda and SparseGPT leave in llm-compressor, whose requirements conflict with ours. The
others write qlab/records/compress.json and compress_students.json, for the chapter's plot of
quality against bytes: each way alone and combined with int4, perplexity on validation stories.
They take some minutes each. A record is written after each model, and what is in it already is not
measured again, so the script can be stopped and called again. A record belongs to one set of
weights of the storyteller; with --fresh it is begun anew.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "qlab" / "records"
ROWS = 16


@dataclass(frozen=True)
class Case:
    """One layer, pruned by llm-compressor.

    Attributes:
        name: of the case.
        method: ``wanda`` or ``sparsegpt``.
        sparsity: share that goes, or None with a pattern.
        pattern: such as ``2:4``, or None.
        options: ``damping`` and ``block_size`` of SparseGPT.
        columns: in_features.
        kind: of the inputs, as in ``tools.record_gptq``: ``plain``, ``dead`` or ``few``.
    """

    name: str
    method: str
    sparsity: float | None = None
    pattern: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    columns: int = 128
    kind: str = "plain"


CASES = (
    Case("wanda half", "wanda", 0.5),
    Case("wanda 70%", "wanda", 0.7),
    Case("wanda 2:4", "wanda", pattern="2:4"),
    Case("wanda 4:8", "wanda", pattern="4:8"),
    Case("wanda odd width", "wanda", 0.3, columns=100),
    Case("wanda dead inputs", "wanda", 0.5, kind="dead"),
    Case("sparsegpt half", "sparsegpt", 0.5),
    Case("sparsegpt 30%, small blocks", "sparsegpt", 0.3, options={"block_size": 32}),
    Case("sparsegpt 2:4", "sparsegpt", pattern="2:4"),
    Case("sparsegpt 4:8", "sparsegpt", pattern="4:8", options={"block_size": 64}),
    Case("sparsegpt damping", "sparsegpt", 0.6, options={"damping": 0.1}),
    Case("sparsegpt dead inputs", "sparsegpt", 0.5, kind="dead"),
    Case("sparsegpt few samples", "sparsegpt", 0.5, kind="few"),
)


def case_inputs(case: Case) -> dict[str, np.ndarray]:
    """weight (16, columns) and x (tokens, columns), float32, with hard rows first."""
    from tools.record_gptq import Case as Other
    from tools.record_gptq import case_inputs as drawn

    given = drawn(Other(case.name, "", columns=case.columns, kind=case.kind))
    return {"weight": given["weight"][:ROWS], "x": given["x"]}


def llmcompressor_case(case: Case) -> np.ndarray:
    """The weight that llm-compressor leaves."""
    import torch
    from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
    from llmcompressor.modifiers.pruning.wanda import wanda_sparsify

    from tools.record_gptq import moments

    given = {k: torch.from_numpy(v) for k, v in case_inputs(case).items()}
    layer = torch.nn.Linear(case.columns, ROWS, bias=False)
    layer.weight.data = given["weight"].clone()
    n, m = (int(p) for p in (case.pattern or "0:0").split(":"))
    target = {"sparsity": case.sparsity or 0.0, "prune_n": m - n, "prune_m": m}
    if case.method == "wanda":
        sums = wanda_sparsify.make_empty_row_scalars(layer)
        sums, _ = wanda_sparsify.accumulate_row_scalars(given["x"], layer, sums, 0)
        found = wanda_sparsify.sparsify_weight(layer, {layer: sums}, **target)
    else:
        hessian, _ = moments(given["x"], given["x"])
        _, found = sgpt_sparsify.sparsify_weight(
            layer,
            {layer: hessian},
            **target,
            block_size=case.options.get("block_size", 128),
            dampening_frac=case.options.get("damping", 0.01),
            preserve_sparsity_mask=False,
        )
    return np.asarray(found.detach().numpy(), np.float32)


def encoded(array: np.ndarray) -> str:
    """float32 numbers as text, every bit kept."""
    return base64.b64encode(zlib.compress(array.astype("<f4").tobytes(), 9)).decode()


def decoded(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``encoded``."""
    flat = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4")
    return flat.reshape(shape)


def record_llmcompressor() -> dict[str, Any]:
    import torch

    from tools.record_gptq import fingerprint

    torch.set_num_threads(1)
    names = ("llmcompressor", "compressed-tensors", "torch", "numpy")
    return {
        "versions": {n: importlib.metadata.version(n) for n in names},
        "fingerprint": fingerprint(),
        "weights": {case.name: encoded(llmcompressor_case(case)) for case in CASES},
    }


TEXTS = 6  # stories to calibrate on
SCORED = 16  # validation stories
STEPS = 100  # of distillation, 512 tokens each
INT4, INT3, INT2 = "int4-g128-sfp16", "int3-g128-sfp16", "int2-g64-sfp16"


def story_runs(story: Any) -> dict[str, Callable[[], tuple[Any, float]]]:
    """name -> function that gives a model and the bits per weight of its layers."""
    from qlab.compress import correct_model, low_rank_model, prune_model
    from qlab.pipeline import quantize_model

    model, data = story.model, story.calibration()[:TEXTS]
    runs: dict[str, Callable[[], tuple[Any, float]]] = {}

    def add(name: str, make: Callable[[], tuple[Any, Any]]) -> None:
        def run() -> tuple[Any, float]:
            small, report = make()
            return small, report.bits_per_weight

        runs[name] = run

    for scheme in (INT4, INT3, INT2):
        add(f"gptq {scheme}", lambda s=scheme: quantize_model(model, "gptq", s, data))
    for method in ("magnitude", "wanda", "sparsegpt"):
        for share in (0.3, 0.5, 0.7):
            add(
                f"{method} {share:.0%}",
                lambda m=method, s=share: prune_model(model, m, s, calibration=data),
            )
        add(
            f"{method} 2:4", lambda m=method: prune_model(model, m, pattern="2:4", calibration=data)
        )
        add(
            f"{method} 2:4 {INT4}",
            lambda m=method: prune_model(model, m, pattern="2:4", calibration=data, scheme=INT4),
        )
    for share in (0.3, 0.5, 0.6, 0.7):
        add(
            f"sparsegpt {share:.0%} {INT4}",
            lambda s=share: prune_model(model, "sparsegpt", s, calibration=data, scheme=INT4),
        )
    for ratio in (0.9, 0.6):
        add(
            f"whitened {ratio:.0%}",
            lambda r=ratio: low_rank_model(model, r, "whitened", calibration=data),
        )
    for ratio in (1.0, 0.8, 0.6):
        add(
            f"whitened {ratio:.0%} {INT4}",
            lambda r=ratio: low_rank_model(model, r, "whitened", calibration=data, scheme=INT4),
        )
    for rank in (8, 32):
        add(
            f"gptq {INT3} + rank {rank}",
            lambda r=rank: correct_model(
                model, quantize_model(model, "gptq", INT3, data)[0], r, calibration=data
            ),
        )
    return runs


KEEPS = ((0, 1, 3), (0, 3))  # blocks of the storyteller that a student has
SEEDS = (0, 1, 2)


def student_runs(story: Any, seed: int) -> dict[str, Callable[[], tuple[Any, float]]]:
    """name -> function that gives a student and the bits a weight of the teacher's layers.

    For each student: before training, trained on the teacher's answers, trained on the text alone
    (the control), and the first of these in int4.
    """
    from functools import cache as once

    from qlab.compress import shallow_student, teacher_cache
    from qlab.compress.distill import distill
    from qlab.nn import linear_layers
    from qlab.pipeline import quantize_model

    count = sum(layer.weight.numel() for _, layer in linear_layers(story.model))
    blocks = story.model.config.num_hidden_layers

    @once
    def answers() -> Any:
        return teacher_cache(story.model, rows(story, 256, 128, seed))

    @once
    def trained(keep: tuple[int, ...], hard: float) -> Any:
        student = shallow_student(story.model, keep)
        distill(student, answers(), steps=STEPS, batch=4, hard=hard, seed=seed)
        return student

    def in_int4(keep: tuple[int, ...]) -> tuple[Any, float]:
        data = story.calibration()[:TEXTS]
        small, report = quantize_model(trained(keep, 0.0), "gptq", INT4, data)
        return small, report.bits_per_weight * sum(r.weights for r in report.layers) / count

    runs: dict[str, Callable[[], tuple[Any, float]]] = {}
    for keep in KEEPS:
        name, bits = f"student of {len(keep)} blocks", 16 * len(keep) / blocks
        if seed == SEEDS[0]:  # the same for each seed
            runs[f"{name}, untrained"] = lambda k=keep, b=bits: (shallow_student(story.model, k), b)
        runs[name] = lambda k=keep, b=bits: (trained(k, 0.0), b)
        runs[f"{name}, text alone"] = lambda k=keep, b=bits: (trained(k, 1.0), b)
        runs[f"{name} {INT4}"] = lambda k=keep: in_int4(k)
    return runs


def rows(story: Any, count: int, length: int, seed: int) -> Any:
    """Training stories end to end, cut into rows: int64 (count, length)."""
    import torch

    from qlab.story import texts

    stories = texts("train")
    order = np.random.default_rng(seed).permutation(len(stories))
    ids: list[int] = []
    for place in order:
        ids += [*story.tokenizer(stories[place])["input_ids"], story.tokenizer.eos_token_id]
        if len(ids) >= count * length:
            break
    whole = len(ids) // length
    return torch.tensor(ids[: min(whole, count) * length]).reshape(-1, length)


def record_story(
    what: str, out: Path, seeds: tuple[int, ...] = SEEDS, only: str = "", fresh: bool = False
) -> dict[str, Any]:
    """Measure what is not in the record yet; the record is written after each model.

    Args:
        what: ``storyteller`` or ``students``.
        out: file of the record.
        seeds: of the students.
        only: a beginning of names; others are left out.
        fresh: begin anew.
    """
    import torch

    import qlab
    from tools.weights import weights_hash

    torch.set_num_threads(1)
    story = qlab.story.load()
    names = ("torch", "transformers", "numpy")
    about: dict[str, Any] = {"versions": {n: importlib.metadata.version(n) for n in names}}
    about |= {"weights": weights_hash(), "texts": SCORED, "steps": STEPS}
    made = about | {"runs": []}
    if out.exists() and not fresh:
        before = json.loads(out.read_text(encoding="utf-8"))
        if {k: v for k, v in before.items() if k != "runs"} != about:
            raise SystemExit(f"{out.name} is of other weights or versions: call with --fresh")
        made = before
    done = {(run["name"], run.get("seed")) for run in made["runs"]}

    def measure(name: str, make: Callable[[], tuple[Any, float]], seed: int | None = None) -> None:
        if (name, seed) in done or not name.startswith(only):
            return
        began = time.process_time()
        model, bits = make()
        perplexity = qlab.perplexity(model, story.tokenizer, story.validation()[:SCORED])
        one = {"name": name, "bits_per_weight": round(bits, 3), "perplexity": round(perplexity, 2)}
        one["cpu_seconds"] = round(time.process_time() - began, 1)
        made["runs"].append(one if seed is None else one | {"seed": seed})
        write(out, made)
        print(
            f"{name:44} {bits:7.3f} bits  perplexity {perplexity:8.2f}  {one['cpu_seconds']:5} s",
            flush=True,
        )

    if what == "students":
        for seed in seeds:
            for name, run in student_runs(story, seed).items():
                measure(name, run, seed)
        return made
    measure("none", lambda: (story.model, 16.0))
    for name, run in story_runs(story).items():
        measure(name, run)
    return made


def write(out: Path, made: dict[str, Any]) -> None:
    """Write a record beside its place, then rename: it is whole or as it was."""
    fresh = out.with_suffix(".new")
    fresh.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    fresh.replace(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("llmcompressor", "storyteller", "students"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the students")
    parser.add_argument("--only", default="", help="runs whose names begin so")
    parser.add_argument("--out", type=Path, help="instead of the project's record")
    parser.add_argument("--fresh", action="store_true", help="forget the record first")
    given = parser.parse_args(argv)
    name = "compress.json" if given.what == "storyteller" else f"compress_{given.what}.json"
    out = given.out or RECORDS / name
    if given.what == "llmcompressor":
        write(out, record_llmcompressor())
    else:
        record_story(given.what, out, tuple(given.seeds), given.only, given.fresh)
    print(f"wrote {out.name} ({out.stat().st_size / 1e3:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
