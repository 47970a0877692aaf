"""How to train: the options, the optimizer and the schedule, shared by both routes.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from qlab.errors import QlabError
from qlab.training.fake_quant import Quantizer

SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        steps: of the optimizer.
        lr: of weights, at its highest (AdamW).
        range_lr: of learned scales, clipping values and ranges; None: as ``lr``.
        warmup: steps in which the rate rises from 0.
        schedule: what comes after: ``linear`` or ``cosine`` falls to 0, ``constant`` stays.
        weight_decay: of matrices.
        range_decay: of what quantizers learn (PACT's penalty on α).
        betas: of AdamW.
        clip_norm: largest norm of the gradient; it is scaled down to that.
        distill: share of the distance to the teacher in the loss, 0 (none) to 1 (nothing else).
        temperature: τ of that distance.
        seed: of what is random in the model, such as dropout; each step has a seed of its own.
    """

    steps: int = 200
    lr: float = 3e-4
    range_lr: float | None = None
    warmup: int = 10
    schedule: str = "linear"
    weight_decay: float = 0.0
    range_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    distill: float = 0.0
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise QlabError(f"steps {self.steps}: take 1 or more")
        for name in ("lr", "range_lr", "clip_norm", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise QlabError(f"{name} {value}: it is a positive number")
        if not 0 <= self.distill <= 1:
            raise QlabError(f"distill {self.distill}: it is the teacher's share, from 0 to 1")
        if self.schedule not in SCHEDULES:
            raise QlabError(f"unknown schedule '{self.schedule}': there are {', '.join(SCHEDULES)}")


def rate(step: int, options: TrainOptions) -> float:
    """What the learning rates are multiplied by at a step (from 0), in [0, 1]."""
    rising = min(1.0, (step + 1) / (options.warmup + 1))
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    done = min(1.0, max(0.0, done))
    if options.schedule == "linear":
        return rising * (1 - done)
    if options.schedule == "cosine":
        return rising * (1 + math.cos(math.pi * done)) / 2
    return rising


def build_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW over everything that asks for a gradient, in three groups.

    Matrices, vectors (norms, biases: no weight decay), and what quantizers learn.

    Raises: QlabError if there is nothing to train.
    """
    learned = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    ranges, matrices, vectors = [], [], []
    for p in model.parameters():
        if not p.requires_grad:
            continue
        where = ranges if id(p) in learned else matrices if p.ndim > 1 else vectors
        where.append(p)
    if not (ranges or matrices or vectors):
        raise QlabError("nothing to train: no parameter of the model asks for a gradient")
    groups = [
        {"params": matrices, "lr": options.lr, "weight_decay": options.weight_decay},
        {"params": vectors, "lr": options.lr, "weight_decay": 0.0},
        {
            "params": ranges,
            "lr": options.range_lr or options.lr,
            "weight_decay": options.range_decay,
        },
    ]
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas)


def build_schedule(
    optimizer: torch.optim.Optimizer, options: TrainOptions
) -> torch.optim.lr_scheduler.LambdaLR:
    """``rate`` as a torch scheduler."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, options))
