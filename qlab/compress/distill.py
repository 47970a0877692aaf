"""Distillation: a smaller student learns to predict what its teacher predicts.

The student's loss for one token, with p the teacher's probabilities and q the student's, both of
logits over the temperature T:

    T² · Σ_v p_v log(p_v / q_v)

A text gives one right token; the teacher gives a probability to each. The teacher is asked once:
its k likeliest tokens are kept with their probabilities, and all others as one remainder. The loss
over these k + 1 outcomes is never above the full one, since merging outcomes cannot raise the
divergence, and equal to it for k = the whole vocabulary.

Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2; a student that begins as some
of the teacher's layers: Sanh et al. 2019 (arXiv 1910.01108), section 3. Chapter: Pruning, low rank,
distillation: what quantization is combined with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlab.calibrate.blocks import decoder_blocks
from qlab.errors import QlabError
from qlab.training import TrainOptions, train


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """What a teacher says to some texts, kept for training.

    Attributes:
        ids: token ids that both models read, int64 (rows, length).
        places: ids of the k likeliest next tokens, int32 (rows, length, k).
        logs: log-probabilities of these at the temperature, float16 (rows, length, k).
        temperature: T.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """

    ids: torch.Tensor
    places: torch.Tensor
    logs: torch.Tensor
    temperature: float

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return int(self.ids.nbytes + self.places.nbytes + self.logs.nbytes)


@torch.no_grad()
def teacher_cache(
    teacher: Any, ids: torch.Tensor, *, k: int = 64, temperature: float = 1.0, batch: int = 8
) -> TeacherCache:
    """Ask a teacher once.

    Args:
        teacher: a transformers causal language model.
        ids: token ids, int64 (rows, length), without padding.
        k: likeliest tokens to keep, 1 to the vocabulary.
        temperature: above 0; higher makes the unlikely ones count more.
        batch: rows at a time.

    Raises: QlabError for ids of another kind, a k or a temperature out of range.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    if ids.ndim != 2 or ids.is_floating_point() or ids.shape[0] < 1 or ids.shape[1] < 2:
        raise QlabError(
            f"ids: expected token ids, int64 (rows, length of 2 or more), got {tuple(ids.shape)}"
        )
    if not 0 < temperature < math.inf:
        raise QlabError(f"temperature {temperature}: it is above 0 (1 changes nothing)")
    places, logs = [], []
    for part in torch.split(ids, batch):
        logits = teacher(input_ids=part.to(teacher.device)).logits.float()
        if not 1 <= k <= logits.shape[-1]:
            raise QlabError(f"k {k}: the teacher has {logits.shape[-1]} tokens to choose from")
        found = (logits / temperature).log_softmax(dim=-1).topk(k, dim=-1)
        places.append(found.indices.int().cpu())
        # Below this, float16 has no more numbers; e^-60 of a token is nothing.
        logs.append(found.values.clamp(min=-60).half().cpu())
    return TeacherCache(ids, torch.cat(places), torch.cat(logs), temperature)


def divergence(
    logits: torch.Tensor, places: torch.Tensor, logs: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """T² · KL(teacher ‖ student) over the k kept tokens and the remainder: mean over tokens, nats.

    Args:
        logits: of the student, float (..., vocabulary).
        places, logs: of the teacher, (..., k), as ``TeacherCache`` has them.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    p_log = logs.to(logits.device).float()
    q_log = (logits.float() / temperature).log_softmax(dim=-1)
    q_log = q_log.gather(-1, places.to(logits.device).long())
    kept = (p_log.exp() * (p_log - q_log)).sum(dim=-1)
    p_rest, q_rest = (_remainder(one) for one in (p_log, q_log))
    rest = p_rest * (p_rest / q_rest).log()
    return temperature**2 * (kept + rest).mean()


def _remainder(logs: torch.Tensor) -> torch.Tensor:
    """1 - Σ p, but never below what float32 can tell from 0: where all is kept, nothing is left."""
    rest = 1 - logs.exp().sum(dim=-1)
    # A teacher's float16 may sum to a little more than 1. The same floor for both gives 0 = log 1.
    return rest.clamp(min=1e-6)


def shallow_student(teacher: Any, keep: Sequence[int]) -> Any:
    """A copy of a decoder with some of its blocks, such as every other one.

    Args:
        teacher: a transformers causal language model; left as it is.
        keep: places of the blocks that stay, ascending, such as ``(0, 1, 3)``.

    Raises: QlabError for a model without a list of blocks, or places that it does not have.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    blocks = decoder_blocks(teacher)
    if blocks[0][0] == "":
        raise QlabError("the model has no list of blocks to take from")
    keep = list(keep)
    if not keep or sorted(set(keep)) != keep or not 0 <= keep[0] <= keep[-1] < len(blocks):
        raise QlabError(f"keep {keep}: ascending places among {len(blocks)} blocks, from 0")
    student = copy.deepcopy(teacher)
    path = blocks[0][0].rpartition(".")[0]
    parent, _, last = path.rpartition(".")
    old: Any = student.get_submodule(path)
    new = torch.nn.ModuleList([old[i] for i in keep])
    setattr(student.get_submodule(parent), last, new)
    for place, block in enumerate(new):
        part: Any
        for part in block.modules():  # where a block finds its keys and values in a cache
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = place
    config = student.config
    config.num_hidden_layers = len(keep)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in keep]
    return student


@dataclass(frozen=True, eq=False)
class Lesson:
    """Batches of a cache in the order of a seed, and the teacher that remembers its answers.

    For ``qlab.training.train``: it is the batches (a function of the step) and the teacher (with
    ``distance``) in one.

    Attributes:
        cache: what the teacher said.
        batch: rows a step.
        seed: of their order; each row is read once before any is read again.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """

    cache: TeacherCache
    batch: int
    seed: int

    def rows(self, step: int) -> torch.Tensor:
        """Rows of a step (from 0), int64 (batch,): a function of the step alone."""
        count, place = len(self.cache.ids), step * self.batch
        found: list[torch.Tensor] = []
        while (have := sum(len(f) for f in found)) < self.batch:
            turn, start = divmod(place + have, count)
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            order = torch.randperm(count, generator=random)
            found.append(order[start : start + self.batch - have])
        return torch.cat(found)

    def __call__(self, step: int) -> torch.Tensor:
        """Token ids of a step, int64 (batch, length)."""
        return self.cache.ids[self.rows(step)]

    def distance(self, logits: torch.Tensor, ids: torch.Tensor, step: int) -> torch.Tensor:
        """The divergence from the teacher at each position but the last, in nats a token."""
        rows = self.rows(step)
        places, logs = self.cache.places[rows, :-1], self.cache.logs[rows, :-1]
        return divergence(logits[:, :-1], places, logs, self.cache.temperature)


def distill(
    student: Any,
    cache: TeacherCache,
    *,
    steps: int = 100,
    batch: int = 8,
    rate: float = 1e-3,
    warmup: int = 4,
    hard: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Train a student in place on what its teacher said: ``qlab.training.train`` with a Lesson.

    The optimizer is AdamW; its rate rises over ``warmup`` steps and then falls to 0 as a cosine.
    Each step reads ``batch`` rows, in a new order each time all have been read.

    Args:
        student: a transformers causal language model.
        cache: of ``teacher_cache``.
        steps: of the optimizer.
        hard: share of the ordinary loss, the cross entropy of the token in the text, from 0 to 1:
            loss = (1 - hard) · divergence + hard · cross entropy.
        seed: of the order of rows.

    Returns: the loss at each step, in nats.

    Raises: QlabError for a share outside [0, 1], or when the loss or a gradient is no longer
        finite, with the step (from 1) and the layer.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    if not 0 <= hard <= 1:
        raise QlabError(f"hard {hard}: it is a share from 0 to 1")
    mode, lesson = student.training, Lesson(cache, batch, seed)
    options = TrainOptions(
        steps=steps, lr=rate, warmup=warmup, schedule="cosine", distill=1 - hard, seed=seed
    )
    rows = train(student, lesson, options, teacher=lesson)
    student.train(mode)
    return [row.loss for row in rows]
