"""Train the storyteller: one script, from a configuration file to a Hugging Face folder.

    qlab story train --corpus tales.jsonl --corpus tinystories.txt --out runs/storyteller

The matrices of the layers are trained with Muon (orthogonalized momentum), everything else with
AdamW. The learning rate warms up, stays, and falls linearly to zero at the end. A checkpoint
holds the weights, the optimizers' state and the log; calling again with the same ``--out`` goes on.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from qlab.errors import QlabError
from qlab.story import batches as data
from qlab.story.bridges import Bridges
from qlab.story.detours import Detours
from qlab.story.settings import Settings, read_settings
from qlab.story.stories import texts
from qlab.story.tokenizer import train_tokenizer

# Sources whose documents are longer than a row: tales and chapters of books.
LONG = ("fairy",)
# Sources whose openings are continued by the story world.
SHORT = ("stories", "tinystories")
COLUMNS = ("step", "tokens", "seconds", "rate", "loss", "validation_loss")


def build_model(settings: Settings) -> Any:
    """A fresh LlamaForCausalLM; input and output embeddings share one matrix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.training.seed)
    m = settings.model
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=m.hidden_size,
        intermediate_size=m.intermediate_size,
        num_hidden_layers=m.num_hidden_layers,
        num_attention_heads=m.num_attention_heads,
        num_key_value_heads=m.num_attention_heads,
        max_position_embeddings=m.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    _initialize(model)
    return model


@torch.no_grad()
def _initialize(model: Any) -> None:
    """Start where a short run can learn to copy names from its context.

    Embeddings are large beside what the layers add, so that a token is still known in the last
    layer; the last norm makes up for it in the logits. Half of the heads begin by passing on the
    embedding of what they look at (after Trockman and Kolter, arXiv 2305.09828).
    """
    config = model.config
    model.model.embed_tokens.weight.mul_(0.5 / config.initializer_range)
    model.model.norm.weight.fill_(0.06)
    size = config.head_dim
    for layer in model.model.layers:
        for head in range(config.num_attention_heads // 2):
            rows = slice(head * size, (head + 1) * size)
            basis = torch.linalg.qr(torch.randn(config.hidden_size, size))[0]  # (width, head_dim)
            layer.self_attn.v_proj.weight[rows] = basis.T
            layer.self_attn.o_proj.weight[:, rows] = 0.3 * basis


def build_optimizers(model: Any, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    t = settings.training
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in layers}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(layers, lr=t.muon_lr, momentum=0.95, weight_decay=t.muon_weight_decay),
        torch.optim.AdamW(rest, lr=t.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, settings: Settings) -> float:
    """Multiplier of the learning rates at a step, in (0, 1]."""
    t = settings.training
    left = (t.steps - step) / max(1, round(t.decay * t.steps))
    return max(0.0, min(1.0, (step + 1) / t.warmup, left))


def train(
    out: str | Path,
    corpora: Sequence[str | Path] = (),
    config: str | Path | None = None,
    steps: int | None = None,
    device: str | None = None,
    start_from: str | Path | None = None,
    compile_model: bool = False,
) -> Path:
    """Train and write a Hugging Face folder at ``out``; resumes if ``out`` holds a checkpoint.

    Args:
        out: folder for the checkpoint, ``log.csv``, ``loss.svg`` and the final model.
        corpora: files for ``qlab.story.batches.read_corpus``.
        config: TOML file (default: the storyteller's own).
        steps: overrides the number of steps.
        device: ``cuda`` where there is one, else ``cpu``.
        start_from: a Hugging Face folder whose weights and tokenizer to start from.
        compile_model: run the forward and backward pass through torch.compile (needs a C++
            compiler; half a minute to start, then about 1.5 times as fast on a CPU).

    Raises: QlabError on bad settings or data, or if the loss becomes NaN (with the step).
    """
    settings = read_settings(config) if config else read_settings()
    if steps is not None:
        settings = _with_steps(settings, steps)
    out, t = Path(out), settings.training
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)

    documents = data.project_documents()
    for path in corpora:
        name, found = data.read_corpus(path)
        documents.setdefault(name, []).extend(found)
    tokenizer = _tokenizer(out, documents, settings, start_from)
    sources: dict[str, data.Rows] = {
        name: (data.Documents if name in LONG else data.Stories)(found, tokenizer)
        for name, found in documents.items()
        if found
    }
    sources["world"], sources["echo"] = data.World(tokenizer), data.Echo(tokenizer)
    short = [d for name, found in documents.items() if name in SHORT for d in found]
    sources["bridges"] = bridges = Bridges(short, tokenizer)
    sources["detours"] = Detours(bridges, tokenizer)
    batches = data.Batches(sources, settings.shares, t.seed, t.batch, t.sequence)

    model = build_model(settings)
    if start_from:
        model.load_state_dict(_weights_of(start_from), strict=False)
    model.to(device)
    optimizers = build_optimizers(model, settings)
    step, rows = _resume(out, model, optimizers)
    forward = torch.compile(model) if compile_model else model
    rows = _loop(model, forward, optimizers, batches, settings, tokenizer, step, rows, out, device)
    _write_model(out, model, tokenizer)
    _write_log(out, rows)
    return out


def _loop(
    model: Any,
    forward: Any,
    optimizers: list[torch.optim.Optimizer],
    batches: data.Batches,
    settings: Settings,
    tokenizer: Any,
    first: int,
    rows: list[list[Any]],
    out: Path,
    device: str,
) -> list[list[Any]]:
    from tqdm import tqdm

    t = settings.training
    validation = texts("validation")
    spent = float(rows[-1][2]) if rows else 0.0
    began, mean, count = time.monotonic(), 0.0, 0
    bar = tqdm(range(first, t.steps), initial=first, total=t.steps, desc="training", unit="step")
    detours = batches.sources["detours"] if "detours" in batches.names else None
    for step in bar:
        # After each checkpoint, so that a run that resumes from one sees the same rows.
        if isinstance(detours, Detours) and (step == first or step % t.checkpoint_every == 0):
            detours.renew(model, np.random.default_rng([t.seed, step]))
        now = rate(step, settings)
        for optimizer, base in zip(optimizers, (t.muon_lr, t.adamw_lr), strict=True):
            optimizer.param_groups[0]["lr"] = base * now
        ids, labels = learned(torch.from_numpy(batches(step)).to(device))
        with torch.autocast(device, torch.bfloat16):
            loss = forward(input_ids=ids, labels=labels, **apart(ids, tokenizer.bos_token_id)).loss
        if not math.isfinite(loss.item()):
            raise QlabError(
                f"the loss became {loss.item()} at step {step}: "
                "lower muon_lr and adamw_lr; the last checkpoint is whole"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if t.feature_limit:
            bring_in(model.model.embed_tokens.weight, t.feature_limit)
        mean, count = mean + loss.item(), count + 1
        bar.set_postfix(loss=f"{mean / count:.3f}")
        done = step + 1
        if done % t.evaluate_every == 0 or done == t.steps:
            held_out = validation_loss(model, tokenizer, validation, t.sequence, device)
            seconds = spent + time.monotonic() - began
            tokens = done * t.batch * t.sequence
            rows.append([done, tokens, round(seconds, 1), round(now, 4), mean / count, held_out])
            mean, count = 0.0, 0
        if done % t.checkpoint_every == 0 or done == t.steps:
            _save(out, model, optimizers, done, rows)
    return rows


@torch.no_grad()
def bring_in(embeddings: torch.Tensor, limit: float, share: float = 0.003) -> None:
    """Make features smaller, by a little, that are far larger than the others. In place.

    AdamW moves each number by about the rate, however large the number has become. So one feature
    of the embeddings can grow for as long as training goes on, until all tokens hold nearly the
    same large value there. It tells the layers nothing that a bias would not, and it takes the
    range of every group that it is quantized with.

    Args:
        embeddings: (vocabulary, hidden_size).
        limit: a feature's root mean square over the tokens may be this many times the median of
            all features'.
        share: what a feature beyond it loses a step: little, so that the layers can follow.
    """
    size = embeddings.square().mean(0).sqrt()
    embeddings[:, size > limit * size.median()] *= 1 - share


def learned(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels) of rows in which a negative id marks a piece that is read and not learned.

    Args:
        ids: (batch, sequence); see ``qlab.story.detours.unlearned``.
    """
    return torch.where(ids < 0, -1 - ids, ids), torch.where(ids < 0, -100, ids)


def apart(ids: torch.Tensor, bos: int) -> dict[str, torch.Tensor]:
    """Keep the documents of a row from seeing each other.

    A row holds two or three stories, one behind the other. Each is read as a reader's prompt will
    be: from position 0, with nothing before it whose names could be mistaken for its own.

    Args:
        ids: (batch, sequence) token ids; a document begins at each ``bos``.
        bos: the token that begins a document.

    Returns: ``attention_mask``, bool (batch, 1, sequence, sequence), true where a query may look,
        and ``position_ids``, int64 (batch, sequence), for the forward of transformers.
    """
    length = ids.shape[1]
    starts = ids == bos
    document = starts.cumsum(1)
    place = torch.arange(length, device=ids.device).expand_as(ids)
    first = torch.where(starts, place, 0).cummax(1).values
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    mask = (document[:, None, :] == document[:, :, None]) & causal
    return {"attention_mask": mask[:, None], "position_ids": place - first}


@torch.no_grad()
def validation_loss(
    model: Any, tokenizer: Any, stories: Sequence[str], length: int, device: str
) -> float:
    """Mean negative log-likelihood a token (nats) of whole stories, each after its BOS."""
    total, count = 0.0, 0
    for text in stories:
        ids = torch.tensor([tokenizer(text)["input_ids"][:length]], device=device)
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        total += loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def _with_steps(settings: Settings, steps: int) -> Settings:
    from dataclasses import replace

    return replace(settings, training=replace(settings.training, steps=steps))


def _tokenizer(
    out: Path, documents: dict[str, list[str]], settings: Settings, start_from: str | Path | None
) -> Any:
    from transformers import PreTrainedTokenizerFast

    for folder in (out / "tokenizer", Path(start_from) if start_from else None):
        if folder is not None and (folder / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            tokenizer.save_pretrained(out / "tokenizer")  # the run must not need start_from again
            return tokenizer
    tokenizer = train_tokenizer(
        data.tokenizer_texts(documents), settings.vocab_size, settings.model.context
    )
    tokenizer.save_pretrained(out / "tokenizer")
    return tokenizer


def _weights_of(folder: str | Path) -> dict[str, torch.Tensor]:
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise QlabError(f"no model.safetensors in {folder}")
    return {k: v.float() for k, v in load_file(path).items()}


def _save(
    out: Path, model: Any, optimizers: list[torch.optim.Optimizer], step: int, rows: list[Any]
) -> None:
    """Write the checkpoint beside its final name, then rename: it is whole or absent."""
    fresh, final = out / "checkpoint.new", out / "checkpoint"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = torch.as_tensor(value)
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, fresh / "state.safetensors")
    (fresh / "progress.json").write_text(json.dumps({"step": step, "rows": rows}))
    old = out / "checkpoint.old"
    if final.exists():
        os.rename(final, old)
    os.rename(fresh, final)
    shutil.rmtree(old, ignore_errors=True)
    _write_log(out, rows)


def _resume(
    out: Path, model: Any, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, list[list[Any]]]:
    folder = out / "checkpoint"
    if not folder.exists() and (out / "checkpoint.old").exists():
        folder = out / "checkpoint.old"  # killed between the two renames
    if not folder.exists():
        return 0, []
    progress = json.loads((folder / "progress.json").read_text())
    tensors = load_file(folder / "state.safetensors")
    weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        prefix = f"optimizer.{i}."
        for name, value in tensors.items():
            if name.startswith(prefix):
                j, key = name[len(prefix) :].split(".")
                state.setdefault(int(j), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(progress["step"]), list(progress["rows"])


def _write_model(out: Path, model: Any, tokenizer: Any) -> None:
    """The final model as bfloat16 safetensors with its tokenizer."""
    from transformers import GenerationConfig, LlamaForCausalLM

    final = LlamaForCausalLM(model.config)
    final.load_state_dict(model.state_dict())
    final.generation_config = GenerationConfig(
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        max_length=model.config.max_position_embeddings,
    )
    final.to(torch.bfloat16).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


def _write_log(out: Path, rows: list[list[Any]]) -> None:
    with (out / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for step, tokens, seconds, now, loss, held_out in rows:
            writer.writerow([step, tokens, seconds, now, f"{loss:.4f}", f"{held_out:.4f}"])
    if rows:
        _plot(out)


def _plot(out: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "qlab"}):
        from matplotlib.figure import Figure

        with (out / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        millions = [int(r["tokens"]) / 1e6 for r in rows]
        axes.plot(millions, [float(r["loss"]) for r in rows], label="training mixture")
        axes.plot(millions, [float(r["validation_loss"]) for r in rows], label="validation stories")
        axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats a token)")
        axes.legend()
        figure.savefig(out / "loss.svg", metadata={"Date": None})
