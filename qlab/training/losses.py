"""What training makes small: surprise at the next token, and the distance to a teacher.

    task       - mean log p_student(token)
    distance   τ² · mean KL(p_teacher ‖ p_student), both at temperature τ

Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2 (soft targets; the factor τ²
keeps the size of the gradient when τ changes).

Chapter: Quantization-aware training.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn.functional import cross_entropy, log_softmax


class Teacher(Protocol):
    """What can stand for a teacher model: it says how far a student is from it.

    ``qlab.compress.distill.Lesson`` is one; it keeps a teacher's answers, so that they are computed
    once and not in each run.
    """

    def distance(self, logits: torch.Tensor, ids: torch.Tensor, step: int) -> torch.Tensor:
        """Mean distance of a batch, a scalar in nats a token.

        Args:
            logits: of the student, (rows, length, vocabulary).
            ids: the batch, int64 (rows, length).
            step: from 0.
        """


def task_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of each next token, in nats.

    Args:
        logits: (rows, length, vocabulary), any floating dtype; computed in float32.
        ids: int64 (rows, length).
    """
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """τ² · KL(teacher ‖ student) a token, in nats, at each position but the last.

    The last position is left out because it predicts what lies beyond the row, so that both losses
    speak of the same tokens.

    Args:
        logits, teacher_logits: (rows, length, vocabulary), computed in float32.
        temperature: τ; above 1 the unlikely tokens weigh more.
    """
    ours = log_softmax(logits[:, :-1].float() / temperature, dim=-1)
    theirs = log_softmax(teacher_logits[:, :-1].float() / temperature, dim=-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    return temperature**2 * kl.mean()
