"""The plain loop: steps of AdamW on a fake-quantized model, or on any other.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qlab.bars import bar
from qlab.errors import QlabError
from qlab.files import new_file
from qlab.training.blame import bad_gradient, finite, first_bad
from qlab.training.checkpoint import load_checkpoint, save_checkpoint
from qlab.training.losses import Teacher, distillation_loss, task_loss
from qlab.training.options import TrainOptions, build_optimizer, rate

# step (from 0) -> token ids, int64 (rows, length): a function of the step alone, so that an
# interrupted run goes on with the rows that it would have seen.
Batches = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One step of the log.

    Attributes:
        step: from 1.
        rate: what the learning rates were multiplied by.
        loss: what was made small, in nats a token.
        task: surprise at the next token, in nats.
        distance: KL from the teacher, in nats; None without one.
        grad_norm: before it was clipped.
        evaluation: what ``evaluate`` returned after this step, or None.
    """

    step: int
    rate: float
    loss: float
    task: float
    distance: float | None
    grad_norm: float
    evaluation: float | None = None


def train(
    model: nn.Module,
    batches: Batches,
    options: TrainOptions | None = None,
    *,
    teacher: nn.Module | Teacher | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    evaluate: Callable[[nn.Module], float] | None = None,
    evaluate_every: int = 0,
    stop_after: int | None = None,
    progress: bool = False,
) -> list[Row]:
    """Train the parameters of ``model`` that ask for a gradient, in place.

    Args:
        model: a transformers causal language model, usually from ``prepare``.
        batches: step (from 0) -> token ids, int64 (rows, length); ``qlab.training.story_batches``
            makes one.
        options: see ``TrainOptions``.
        teacher: the full-precision model, for ``options.distill``; it is not changed. Or what
            stands for one: an object with a method ``distance`` (``losses.Teacher``).
        checkpoint: a folder, written every ``checkpoint_every`` steps and at the end, whole or not.
            If it exists, training goes on from it, to the same numbers as without a stop.
        evaluate: called with the model in evaluation mode every ``evaluate_every`` steps and after
            the last.
        stop_after: stop after this many steps of the ``options.steps`` (to go on another time).
        progress: show a bar.

    Returns: a Row for each step, those before a resumption included. The model is left in
        evaluation mode.

    Raises: QlabError if a loss or gradient is not finite (names step and layer), if there is
        nothing to train or no teacher to learn from, or for a checkpoint of another scheme, method
        or other options.

    Chapter: Quantization-aware training.
    """
    options = options or TrainOptions()
    if options.distill and teacher is None:
        raise QlabError(f"distill {options.distill} needs a teacher: pass the full-precision model")
    optimizer = build_optimizer(model, options)
    highest = [float(group["lr"]) for group in optimizer.param_groups]
    rows: list[Row] = []
    if checkpoint is not None:
        rows = [Row(**r) for r in load_checkpoint(checkpoint, model, optimizer, options)]
    device = next(model.parameters()).device
    last = min(options.steps, stop_after or options.steps)
    for step in bar(range(len(rows), last), "training", "step", progress):
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * rate(step, options)
        model.train()
        ids = batches(step).to(device)
        # Dropout draws from a seed of the step, and what the caller draws is not disturbed.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(options.seed * 1_000_003 + step)
            loss, task, distance = losses_of(model, ids, options, teacher, step)
            loss.backward()
        trained = [p for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
        check_gradient(model, norm, step)  # before it is scaled: NaN times anything is NaN
        torch.nn.utils.clip_grads_with_norm_(trained, options.clip_norm, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done, value = step + 1, None
        if evaluate and (done == last or (evaluate_every and done % evaluate_every == 0)):
            value = float(evaluate(model.eval()))
        rows.append(
            Row(
                done, rate(step, options), loss.item(), task.item(),
                None if distance is None else distance.item(), norm.item(), value,
            )
        )  # fmt: skip
        if checkpoint is not None and (done % checkpoint_every == 0 or done == last):
            save_checkpoint(checkpoint, model, optimizer, options, [asdict(r) for r in rows])
    model.eval()
    return rows


def losses_of(
    model: nn.Module,
    ids: torch.Tensor,
    options: TrainOptions,
    teacher: nn.Module | Teacher | None,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(loss, task loss, distance from the teacher) of one batch, as scalars.

    Raises: QlabError with the step and the layer if the loss is not finite.
    """
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    except QlabError as error:
        raise QlabError(f"step {step + 1}: {error}") from None
    task = task_loss(logits, ids)
    loss, distance = task, None
    if options.distill and teacher is not None:
        if isinstance(teacher, nn.Module):
            with torch.no_grad():
                theirs = teacher(input_ids=ids, use_cache=False).logits
            distance = distillation_loss(logits, theirs, options.temperature)
        else:
            distance = teacher.distance(logits, ids, step)
        loss = (1 - options.distill) * task + options.distill * distance
        # A share of 0 does not hide what is not finite: 0 · inf is NaN.
    if not finite(loss):
        raise QlabError(
            f"the loss became {loss.item()} at step {step + 1}: what is not finite first is the "
            f"{first_bad(model, ids)}; lower lr ({options.lr:g}), or mend that layer"
        )
    return loss, task, distance


def check_gradient(model: nn.Module, norm: torch.Tensor, step: int) -> None:
    """Raise QlabError with the step and the parameter if the gradient is not finite."""
    if not finite(norm):
        raise QlabError(
            f"the gradient became {norm.item()} at step {step + 1}, first that of "
            f"'{bad_gradient(model)}': lower lr, or mend that layer"
        )


def write_log(path: str | Path, rows: Sequence[Row]) -> None:
    """The log as a CSV file, a line a step."""
    names = [f.name for f in fields(Row)]
    with new_file(Path(path)) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            values: list[Any] = [getattr(row, name) for name in names]
            writer.writerow(
                "" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in values
            )
