"""The storyteller with fewer and fewer bits, by every measure: what the chapter on measuring reads.

    python tools/record_evaluation.py            # into qlab/records/evaluation.json
    python tools/record_evaluation.py --fresh    # rows that are there already are made anew, too

For each scheme: what the model answers to the same questions about stories of the world
(``qlab.evaluate.tasks``), the score of each validation text, the divergence from the model in full
precision, and the consistency of its continuations. Two to three minutes of one core; each row is
written when it is done, and an interrupted run goes on. The record holds a hash of the weights:
with other weights all rows are made anew.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.weights import weights_hash  # noqa: E402  (after the path above)

RECORD = ROOT / "qlab" / "records" / "evaluation.json"
# Scheme, and the bits that the figure draws it at; "" is the model as it is.
SCHEMES = {
    "": 32,
    "int8-channel": 8,
    "int6-channel": 6,
    "int5-channel": 5,
    "int4-channel": 4,
    "int3-channel": 3,
    "int2-channel": 2,
}
QUESTIONS = 320
SEED = 0
STORIES = 40
WORLD_SEED = 11


ABOUT = {
    "questions": QUESTIONS,
    "seed": SEED,
    "stories": STORIES,
    "world_seed": WORLD_SEED,
    "method": "rtn",
}


def measure(rows: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Adds the rows that are missing, and gives all after each."""
    import torch

    import qlab
    from qlab.errors import QlabError
    from qlab.evaluate.study import _kl, _predictions, continue_greedily
    from qlab.evaluate.tasks import answer_questions, make_questions
    from qlab.story import consistency_of
    from qlab.story.world import opening, stream

    torch.set_num_threads(1)
    story = qlab.story.load()
    texts = story.validation()
    questions = make_questions(QUESTIONS, SEED)
    world = stream(WORLD_SEED, split="test")
    unseen = [next(world) for _ in range(STORIES)]
    # One pass of each model for scores, divergence and agreement, as the case study has it.
    exact, _ = _predictions(story.model, story.tokenizer, texts)
    for scheme, bits in SCHEMES.items():
        if scheme in rows:
            continue
        began = time.time()
        model = story.model
        if scheme:
            model, _ = qlab.quantize_model(story.model, "rtn", scheme)
        answers = answer_questions(model, story.tokenizer, questions)
        found, scores = _predictions(model, story.tokenizer, texts)
        same = [(p.argmax(-1) == q.argmax(-1)) for p, q in zip(exact, found, strict=True)]
        cuts = [opening(s, 5)[0] for s in unseen]
        told = continue_greedily(model, story.tokenizer, cuts, 90)
        try:
            kept = asdict(
                consistency_of(
                    model, story.tokenizer, unseen, continue_all=lambda _, told=told: told
                )
            )
        except QlabError:  # no continuation speaks of any fact
            kept = {"mean": None, "low": None, "high": None, "count": 0}
        rows[scheme] = {
            "bits": bits,
            # The choice that was picked for each question, one digit each.
            "picked": "".join(str(a.picked) for a in answers),
            "scores": [[round(s.nll, 3), s.tokens] for s in scores],
            "kl": round(_kl(exact, found), 6),
            "agreement": round(float(torch.cat(same).float().mean()), 6),
            "consistency": {k: v and round(v, 4) for k, v in kept.items()},
        }
        print(f"{scheme or 'float32':14} {time.time() - began:6.1f} s", flush=True)
        yield rows


def main() -> None:
    from qlab.files import new_file

    about = {"weights": weights_hash(), **ABOUT}
    rows: dict[str, Any] = {}
    if RECORD.exists() and "--fresh" not in sys.argv:
        old = json.loads(RECORD.read_text(encoding="utf-8"))
        rows = old["rows"] if old["about"] == about else {}
    for done in measure(rows):
        with new_file(RECORD) as file:
            found = {"about": about, "rows": done}
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(RECORD.relative_to(ROOT))


if __name__ == "__main__":
    main()
