"""Train the storyteller for low bits and record what that recovers: ``make train-results``.

    .venv/bin/python tools/train_results.py            # every run that is not recorded yet
    .venv/bin/python tools/train_results.py --list     # what there is, and what is recorded
    .venv/bin/python tools/train_results.py --fresh    # forget the record first
    .venv/bin/python tools/train_results.py --part 0/2 # every second run, beside another process

The list RUNS is the experiment; nothing else decides what is trained. Each run is written to
qlab/records/training.json as soon as it ends, and its log to qlab/records/training/NAME.csv, so the
script can be stopped and called again. One thread, CPU; the numbers do not depend on the speed of
the machine. All runs together take about half an hour on a quiet core.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.weights import weights_hash  # noqa: E402  (after the path above)

RECORD = ROOT / "qlab" / "records" / "training.json"
LOGS = ROOT / "qlab" / "records" / "training"
SCHEMES = {4: "int4-asym-channel", 3: "int3-asym-channel", 2: "int2-asym-channel"}
TERNARY = 1  # stands for log2 3 = 1.58 bits where a run names its bits
SCHEME_OF = {**SCHEMES, TERNARY: "ternary-channel"}
SEEDS = (0, 1, 2)
BATCH, LENGTH = 4, 128  # rows a step, tokens a row


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        kind: ``none`` (nothing done), ``rtn``, ``gptq``, ``qaf`` (training goes on from the trained
            model), ``qat`` (it begins from random weights).
        bits: of the weights, a scale and a zero point a row; 1: ternary, a scale a row; 32: not
            quantized.
        distill: the teacher's share in the loss.
        method: of the scales, as in ``qlab.training.prepare``.
        steps, lr: of the training.
        seed: of the rows (and of the random weights).
    """

    kind: str
    bits: int = 32
    distill: float = 0.0
    method: str = "ste"
    steps: int = 0
    lr: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Unique, and the name of its log."""
        if not self.steps:
            return f"{self.kind}-{self.bits}"
        teacher = "kl" if self.distill else "task"
        return f"{self.kind}-{self.bits}-{teacher}-{self.method}-{self.seed}"


# Fewer bits are further from where training has to go: longer steps. As many as the claims need.
STEPS = {4: 160, 3: 240, 2: 160, TERNARY: 160}
RATES = {4: 3e-4, 3: 5e-4, 2: 1e-3, TERNARY: 2e-3}


def qaf(bits: int, seed: int, distill: float = 1.0, method: str = "ste") -> Run:
    """From the trained model."""
    return Run("qaf", bits, distill, method, STEPS[bits], RATES[bits], seed)


RUNS = (
    Run("none"),
    *(Run(kind, bits) for bits in SCHEMES for kind in ("rtn", "gptq")),
    # The claim: three seeds.
    *(qaf(bits, seed) for seed in SEEDS for bits in (2, 3, 4)),
    # What the teacher adds; and what the same steps do to the model in full precision.
    *(qaf(bits, 0, distill=0.0) for bits in (2, 3, 4)),
    Run("qaf", 32, 0.0, "none", STEPS[3], RATES[3], 0),
    # What a learned step size adds.
    *(qaf(bits, 0, method="lsq") for bits in (2, 3, 4)),
    # From random weights, with the same number of steps.
    Run("qat", 2, 0.0, "ste", STEPS[2], 3e-3, 0),
    Run("qat", 32, 0.0, "none", STEPS[2], 3e-3, 0),
    # Three values a weight.
    Run("rtn", TERNARY),
    *(qaf(TERNARY, seed, method="absmean") for seed in SEEDS),
    Run("qat", TERNARY, 0.0, "absmean", STEPS[2], 3e-3, 0),
)


def measure(run: Run, story: Any) -> tuple[float, list[Any]]:
    """Perplexity on validation stories, and the log of the training."""
    import qlab
    from qlab.training import TrainOptions, convert, prepare, story_batches, train

    model, log = story.model, []
    if run.kind in ("rtn", "gptq"):
        model, _ = qlab.quantize_model(model, run.kind, SCHEME_OF[run.bits], story.calibration())
    elif run.kind in ("qaf", "qat"):
        start = model if run.kind == "qaf" else random_storyteller(run.seed)
        plain = run.bits == 32
        trained = clone(start) if plain else prepare(start, SCHEME_OF[run.bits], method=run.method)
        options = TrainOptions(steps=run.steps, lr=run.lr, distill=run.distill, seed=run.seed)
        batches = story_batches(story.tokenizer, BATCH, LENGTH, run.seed)
        log = train(trained, batches, options, teacher=story.model if run.distill else None)
        model = trained if plain else convert(trained)
    return qlab.perplexity(model, story.tokenizer, story.validation()), log


def clone(model: Any) -> Any:
    """A copy to train."""
    import copy

    return copy.deepcopy(model).requires_grad_(True)


def random_storyteller(seed: int) -> Any:
    """The storyteller before it was ever trained."""
    from dataclasses import replace

    from qlab.story.settings import read_settings
    from qlab.story.train import build_model

    settings = read_settings()
    return build_model(replace(settings, training=replace(settings.training, seed=seed)))


def read() -> dict[str, Any]:
    """The record so far."""
    if RECORD.is_file():
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
        return found
    return {"about": {}, "runs": {}}


def about() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch
    import transformers

    import qlab

    return {
        "script": "tools/train_results.py",
        "batch": BATCH,
        "length": LENGTH,
        "schemes": {str(bits): word for bits, word in SCHEMES.items()},
        "text": "42 validation stories",
        "weights": weights_hash(),
        "versions": {
            "qlab": qlab.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="list the runs and stop")
    parser.add_argument("--fresh", action="store_true", help="forget the record first")
    parser.add_argument("--part", default="0/1", help="I/N: the runs I, I + N, ... (default: all)")
    chosen = parser.parse_args()
    part, parts = (int(word) for word in chosen.part.split("/"))
    if chosen.fresh:
        RECORD.unlink(missing_ok=True)
    record = read()
    if chosen.list:
        for run in RUNS:
            done = record["runs"].get(run.name)
            print(f"{run.name:24}", f"{done['perplexity']:.2f}" if done else "-")
        return
    import torch

    import qlab
    from qlab.files import new_file
    from qlab.training import write_log

    torch.set_num_threads(1)
    if record["runs"] and record["about"].get("weights") != weights_hash():
        parser.error("the record is of other weights of the storyteller: call with --fresh")
    story = qlab.story.load()
    for run in RUNS[part::parts]:
        config = asdict(run)
        if record["runs"].get(run.name, {}).get("config") == config:
            continue
        began = time.process_time()
        perplexity, log = measure(run, story)
        seconds = time.process_time() - began
        if log:
            LOGS.mkdir(parents=True, exist_ok=True)
            write_log(LOGS / f"{run.name}.csv", log)
        record = read()  # another part may have written
        record["runs"][run.name] = {
            "config": config,
            "perplexity": round(perplexity, 4),
            "cpu_seconds": round(seconds, 1),
        }
        record["about"] = about()
        with new_file(RECORD) as file:
            file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            file.chmod(0o644)
        print(f"{run.name:24} perplexity {perplexity:9.2f}  {seconds:6.0f} s", flush=True)


if __name__ == "__main__":
    main()
