"""Perplexity: how surprised a language model is by a text.

    PPL = exp( - (1/N) Σ log p(token_i | what came before it in its window) )

Each text is scored by itself. Its tokens are cut into windows; each window begins with BOS (if the
tokenizer has one) and holds at most ``context`` tokens, BOS included. Windows advance by ``stride``
tokens. With a stride shorter than the window, neighbors overlap: the tokens of the overlap are
context only and are scored once, in the window where they have most context before them.
Every token of the text but the first is scored; the first too if a BOS stands before it.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlab.errors import QlabError


@dataclass(frozen=True)
class Window:
    """Token ids of a window (BOS included), and how many of its last tokens are scored."""

    ids: list[int]
    scored: int


@dataclass(frozen=True)
class TextScore:
    """Negative log-likelihood of a text in nats, and the number of tokens scored."""

    nll: float
    tokens: int


def perplexity(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str],
    context: int | None = None,
    stride: int | None = None,
    batch: int = 8,
) -> float:
    """Perplexity of the texts together (each token counts the same).

    Args:
        model: a transformers causal language model (quantized or not).
        tokenizer: its tokenizer.
        texts: one text or several.
        context: tokens a window, BOS included (default: the model's context).
        stride: tokens that a window advances (default: no overlap).
        batch: windows computed at a time; changes speed, not the result beyond rounding.

    Raises: QlabError for empty text, a context the model does not have, a bad stride.
    """
    scores = score_texts(model, tokenizer, texts, context, stride, batch)
    return math.exp(sum(s.nll for s in scores) / sum(s.tokens for s in scores))


def score_texts(
    model: Any,
    tokenizer: Any,
    texts: str | Sequence[str],
    context: int | None = None,
    stride: int | None = None,
    batch: int = 8,
) -> list[TextScore]:
    """The same, a score a text; the parts of a bootstrap."""
    import torch

    from qlab.nn import dequantize_model

    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts or not all(t.strip() for t in texts):
        raise QlabError("perplexity of an empty text: give at least one text with words in it")
    limit = int(getattr(model.config, "max_position_embeddings", 0) or context or 2048)
    context = context or limit
    if not 2 <= context <= limit:
        raise QlabError(f"context {context}: this model takes 2 to {limit} tokens")
    windows = [(i, w) for i, t in enumerate(texts) for w in cut(tokenizer, t, context, stride)]
    if not windows:
        raise QlabError("the text has too few tokens to score: give a longer one")
    windows.sort(key=lambda pair: -len(pair[1].ids))  # like lengths together: little padding
    nll, tokens = [0.0] * len(texts), [0] * len(texts)
    plain = dequantize_model(model)
    with torch.no_grad():
        for start in range(0, len(windows), batch):
            part = windows[start : start + batch]
            for (i, window), loss in zip(part, _losses(plain, [w for _, w in part]), strict=True):
                nll[i] += loss
                tokens[i] += window.scored
    return [TextScore(a, b) for a, b in zip(nll, tokens, strict=True)]


def cut(tokenizer: Any, text: str, context: int, stride: int | None = None) -> list[Window]:
    """The windows of a text, in order."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = context - len(bos)
    stride = room if stride is None else stride
    if not 1 <= stride <= room:
        raise QlabError(f"stride {stride}: it must be 1 to {room} for a context of {context}")
    windows, done = [], 0 if bos else 1
    for start in range(0, len(ids), stride):
        end = min(start + room, len(ids))
        # Without BOS nothing predicts the first token of a window.
        scored = end - max(done, start if bos else start + 1)
        if scored > 0:
            windows.append(Window([*bos, *ids[start:end]], scored))
            done = end
        if end == len(ids):
            break
    return windows


def _losses(model: Any, windows: list[Window]) -> list[float]:
    """Summed negative log-likelihood of the scored tokens of each window, in one batch."""
    import torch

    longest = max(len(w.ids) for w in windows)
    ids = torch.zeros(len(windows), longest, dtype=torch.long)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
    # Padding stands at the right, where causal attention cannot see it: no mask is needed.
    logits = model(input_ids=ids.to(model.device)).logits
    losses = []
    for row, window in enumerate(windows):
        n = len(window.ids)
        # In float32, as the model computes; the sum over tokens is exact enough only in float64.
        nll = torch.nn.functional.cross_entropy(
            logits[row, n - 1 - window.scored : n - 1].float(),
            ids[row, n - window.scored : n].to(logits.device),
            reduction="none",
        )
        losses.append(float(nll.double().sum()))
    return losses
