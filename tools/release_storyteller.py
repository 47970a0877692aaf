"""Put the model of a training run into the package, with its model card.

    python tools/release_storyteller.py runs/storyteller --corpus fairy_stories.jsonl ...

Writes qlab/story/data/storyteller/: bfloat16 weights, configuration, tokenizer, the log of the run,
its loss curve, and README.md with what was measured on the weights as they are shipped. The stories
of ``qlab.story.next_stories()``, which training reads, join the training split.

What the card says of the run is given by ``--corpus`` and ``--notes``, or lies beside it in
``corpora.txt`` (a line each) and ``notes.md``. If its settings lie there in ``settings.toml``, they
become those of the package, and records in ``records`` that were measured on these weights take the
place of the old ones (tools/remake_records.py).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from qlab.errors import QlabError  # noqa: E402  (after the path above)
from qlab.files import new_file  # noqa: E402
from qlab.story.settings import DEFAULT  # noqa: E402
from qlab.story.stories import FILES, NEXT  # noqa: E402

OUT = ROOT / "qlab" / "story" / "data" / "storyteller"
STORIES = OUT.parent
SAMPLES = 20


def from_checkpoint(run: Path) -> None:
    """Write ``run/model`` from the newest checkpoint."""
    from transformers import PreTrainedTokenizerFast

    from qlab.story.settings import read_settings
    from qlab.story.train import _write_model, build_model

    model = build_model(read_settings())
    tensors = load_file(run / "checkpoint" / "state.safetensors")
    weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    _write_model(run, model, PreTrainedTokenizerFast.from_pretrained(run / "tokenizer"))


def measure(weights: Path) -> dict[str, object]:
    """What the model card states."""
    import qlab
    from qlab.evaluate.study import continue_greedily, split_opening
    from qlab.story import consistency_of
    from qlab.story.detours import before_circle
    from qlab.story.world import opening, stream

    story = qlab.story.load(weights)
    texts = story.validation()
    world = stream(7, split="validation")
    generated = [next(world) for _ in range(40)]
    curve = {}
    for bits in (8, 6, 5, 4, 3, 2):
        small, _ = qlab.quantize_model(story.model, "rtn", f"int{bits}-channel")
        curve[bits] = (
            qlab.perplexity(small, story.tokenizer, texts),
            qlab.perplexity(small, story.tokenizer, [s.text for s in generated]),
        )
    rests = [opening(s, 5)[1] for s in generated]
    strangers = consistency_of(None, None, generated, continue_all=lambda _: [*rests[1:], rests[0]])
    its = consistency_of(
        story.model,
        story.tokenizer,
        generated,
        continue_all=lambda cuts: continue_greedily(story.model, story.tokenizer, cuts, 90),
    )
    half = SAMPLES // 2
    written = [split_opening(t)[0] for t in texts]
    made = [opening(s, 2)[0] for s in generated[:half]]
    told, told_made = (
        continue_greedily(story.model, story.tokenizer, cuts, 140) for cuts in (written, made)
    )
    samples = [*zip(written[:half], told, strict=False), *zip(made, told_made, strict=True)]
    return {
        "openings": len(written),
        "circles": sum(before_circle(text) is not None for text in told),
        "parameters": sum(p.numel() for p in story.model.parameters()),
        "perplexity": qlab.perplexity(story.model, story.tokenizer, texts),
        "world": qlab.perplexity(story.model, story.tokenizer, [s.text for s in generated]),
        "curve": curve,
        "consistency": its.mean,
        "strangers": strangers.mean,
        "samples": samples,
        "config": story.model.config,
    }


def card(found: dict, log: list[dict[str, str]], corpora: list[str], notes: str) -> str:
    """The model card."""
    last, config = log[-1], found["config"]
    lines = [
        "# The storyteller",
        "",
        f"A `LlamaForCausalLM` with {found['parameters']:,} parameters: "
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, feed-forward "
        f"{config.intermediate_size}, {config.num_attention_heads} heads, a byte-level BPE of "
        f"{config.vocab_size} pieces, context {config.max_position_embeddings}, tied embeddings. "
        "Weights in bfloat16. License: CC BY 4.0.",
        "",
        "## Training",
        "",
        f"{int(last['tokens']) / 1e6:.1f} million tokens in {last['step']} steps. Matrices of the "
        "layers by Muon, the rest by AdamW; the sources and rates of the last stage are in "
        "`qlab/story/config.toml`, the curve in `log.csv` and `loss.svg`.",
        "",
        "Data:",
        "",
        "- the training split of the project's own stories, in English and Chinese",
        "- the generated story world, and rows of random pieces that repeat",
        *[f"- {line}" for line in corpora],
        "",
        notes,
        "",
        "## Measured on these weights",
        "",
        f"Perplexity {found['perplexity']:.2f} on the project's validation stories, "
        f"{found['world']:.2f} on 40 stories of the world that were not in training. Consistency "
        f"score of its continuations of these 40: {found['consistency']:.2f} (their own endings: "
        f"1.00, one another's: {found['strangers']:.2f}). Symmetric "
        "round-to-nearest of the linear layers, one scale a row:",
        "",
        "| bits | validation stories | change | world | change |",
        "|---|---|---|---|---|",
    ]
    for bits, (a, b) in found["curve"].items():
        lines.append(
            f"| {bits} | {a:.2f} | {100 * (a / found['perplexity'] - 1):+.2f}% "
            f"| {b:.2f} | {100 * (b / found['world'] - 1):+.2f}% |"
        )
    lines += [
        "",
        f"After {found['circles']} of the {found['openings']} openings of validation stories (two "
        "sentences each) greedy decoding repeats a sentence, or six words of it, within 140 "
        "pieces.",
        "",
        "## What it cannot do",
        "",
        "It knows nothing of the world, follows no instructions, and loses the thread in long "
        "stories. It was trained on English; Chinese text is cut into bytes and comes out broken. "
        "Its stories reflect its sources, old tales among them. It is a model to measure, not to "
        "use.",
        "",
        f"## {SAMPLES} samples",
        "",
        "The likeliest continuation (greedy, at most 140 pieces) of the first ten validation "
        "stories and of the first ten held-out stories of the world. None was selected.",
        "",
    ]
    for i, (start, told) in enumerate(found["samples"], 1):
        text = " ".join(told.split())
        lines += [f"{i}. *{' '.join(start.split())}* {text}", ""]
    return "\n".join(lines)


def join_next(folder: Path) -> int:
    """Move the newer stories of ``folder`` into the training split; returns how many there were."""
    new, old = folder / NEXT, folder / FILES["en"]
    stories = [json.loads(line) for line in new.read_text(encoding="utf-8").splitlines()]
    lines = "".join(json.dumps({**story, "split": "train"}) + "\n" for story in stories)
    with new_file(old) as fresh:
        fresh.write_text(old.read_text(encoding="utf-8") + lines, encoding="utf-8")
    new.write_text("", encoding="utf-8")
    return len(stories)


def beside(run: Path, name: str) -> str:
    """The text of a file in the folder of the run; empty if there is none."""
    path = run / name
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def put_records(run: Path, root: Path = ROOT) -> list[str]:
    """Put the records of ``run/records`` where they belong; returns their names."""
    from tools.remake_records import JOBS

    places = {Path(r).name: root / r for job in JOBS.values() for r in job.records}
    found = sorted((run / "records").glob("*.json"))
    if unknown := [file.name for file in found if file.name not in places]:
        raise QlabError(f"{run / 'records'} holds {', '.join(unknown)}, which is no record")
    for file in found:
        shutil.copy(file, places[file.name])
    return [file.name for file in found]


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Put a trained model into the package.")
    parser.add_argument("run", type=Path, help="the --out of qlab story train")
    parser.add_argument("--corpus", action="append", default=[], help="a line for the model card")
    parser.add_argument("--notes", default="", help="a paragraph for the model card")
    parser.add_argument("--checkpoint", action="store_true", help="from the newest checkpoint")
    args = parser.parse_args(argv)
    if args.checkpoint:
        from_checkpoint(args.run)
    source = args.run / "model"
    if not (source / "model.safetensors").is_file():
        print(f"no finished model in {args.run}: train on, or add --checkpoint", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    found = measure(source)
    with (args.run / "log.csv").open() as file:
        log = list(csv.DictReader(file))
    OUT.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        shutil.copy(file, OUT / file.name)
    for name in ("log.csv", "loss.svg"):
        shutil.copy(args.run / name, OUT / name)
    corpora = args.corpus or beside(args.run, "corpora.txt").splitlines()
    text = card(found, log, corpora, args.notes or beside(args.run, "notes.md"))
    (OUT / "README.md").write_text(text, encoding="utf-8")
    if (args.run / "settings.toml").is_file():
        shutil.copy(args.run / "settings.toml", DEFAULT)
    print(f"wrote {OUT}; {join_next(STORIES)} stories joined the training split")
    print(
        f"records of these weights: {', '.join(put_records(args.run)) or 'none'}; now make records"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
