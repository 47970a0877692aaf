"""How far from its old weights does training for few bits end? ``make train-results`` runs this.

    .venv/bin/python tools/record_transition.py            # every run that is not recorded yet
    .venv/bin/python tools/record_transition.py --fresh    # forget the record first
    .venv/bin/python tools/record_transition.py --part 0/2 # every second width, beside another

The storyteller is trained at 8, 4, 3 and 2 bits and on three values a weight, with the same steps,
rows and teacher. The distance follows the learning rate, so each width is trained with the rates of
RATES, and with further ones until the best has a worse one on either side. The best comes nearest
to the teacher, which is the only aim of the training: it has the least KL divergence on validation
stories. The record, qlab/records/transition.json, keeps all runs: divergence, perplexity, the
change of weights, codes and hidden states (``qlab.training.change``), and what rounding alone does.
Half an hour on a quiet core; one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.weights import weights_hash  # noqa: E402  (after the path above)

RECORD = ROOT / "qlab" / "records" / "transition.json"
# bits -> scheme and method; 1 stands for ternary, as in train_results.
WIDTHS = {
    8: ("int8-asym-channel", "ste"),
    4: ("int4-asym-channel", "ste"),
    3: ("int3-asym-channel", "ste"),
    2: ("int2-asym-channel", "ste"),
    1: ("ternary-channel", "absmean"),
}
# Steps of a factor of about 2 in both directions.
RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
FIRST = (2, 5)  # places in RATES that each width begins with: it goes on from the better
STEPS, BATCH, LENGTH = 320, 4, 128
TEXTS = 42  # validation stories
ROWS = 16  # validation stories whose hidden states are compared


def name_of(bits: int, rate: float) -> str:
    """The key of a run."""
    return f"{bits}-{rate:g}"


def next_rate(seen: dict[int, float]) -> int | None:
    """The place in RATES to try next, given place -> divergence; None: the best is enclosed."""
    for place in FIRST:
        if place not in seen:
            return place
    best = min(seen, key=seen.__getitem__)
    for place in (best - 1, best + 1):
        if 0 <= place < len(RATES) and place not in seen:
            return place
    return None


def measure(bits: int, rate: float, story: Any) -> dict[str, float]:
    """Train once."""
    import qlab
    from qlab.evaluate import divergence
    from qlab.training import TrainOptions, convert, prepare, story_batches, train
    from qlab.training.change import codes_change, output_change, rounding_error, weight_change

    scheme, method = WIDTHS[bits]
    fake = prepare(story.model, scheme, method=method)
    rounded = rounding_error(story.model, fake)
    options = TrainOptions(steps=STEPS, lr=rate, distill=1.0)
    train(fake, story_batches(story.tokenizer, BATCH, LENGTH), options, teacher=story.model)
    texts = story.validation()[:TEXTS]
    rows = [
        story.tokenizer(text, return_tensors="pt").input_ids[:, :LENGTH] for text in texts[:ROWS]
    ]
    small = convert(fake)
    return {
        "kl": round(divergence(story.model, small, story.tokenizer, texts).kl, 5),
        "perplexity": round(qlab.perplexity(small, story.tokenizer, texts), 4),
        "rounding": round(rounded, 5),
        "weights": round(weight_change(story.model, fake), 5),
        "codes": round(codes_change(story.model, fake), 5),
        "outputs": round(output_change(story.model, fake, rows), 5),
    }


def read() -> dict[str, Any]:
    """The record so far."""
    if RECORD.is_file():
        found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
        return found
    return {"about": {}, "runs": {}}


def keep(name: str, run: dict[str, Any]) -> None:
    """Add a run to the record, which another part may be writing too."""
    import platform
    import time

    import torch

    from qlab.files import new_file

    record = read()
    record["runs"][name] = run
    record["about"] = {
        "script": "tools/record_transition.py",
        "steps": STEPS,
        "batch": BATCH,
        "length": LENGTH,
        "texts": TEXTS,
        "rows": ROWS,
        "schemes": {str(bits): scheme for bits, (scheme, _) in WIDTHS.items()},
        "weights": weights_hash(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    with new_file(RECORD) as file:
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        file.chmod(0o644)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="forget the record first")
    parser.add_argument("--part", default="0/1", help="I/N: the widths I, I + N ... (default: all)")
    chosen = parser.parse_args()
    part, parts = (int(word) for word in chosen.part.split("/"))
    if chosen.fresh:
        RECORD.unlink(missing_ok=True)
    import torch

    import qlab

    torch.set_num_threads(1)
    record = read()
    if record["runs"] and record["about"].get("weights") != weights_hash():
        parser.error("the record is of other weights of the storyteller: call with --fresh")
    story = qlab.story.load()
    for bits in list(WIDTHS)[part::parts]:
        runs = read()["runs"]
        seen = {
            place: runs[name]["kl"]
            for place, rate in enumerate(RATES)
            if (name := name_of(bits, rate)) in runs
        }
        while (place := next_rate(seen)) is not None:
            run = measure(bits, RATES[place], story)
            seen[place] = run["kl"]
            keep(name_of(bits, RATES[place]), {"bits": bits, "rate": RATES[place], **run})
            print(name_of(bits, RATES[place]), run, flush=True)


if __name__ == "__main__":
    main()
