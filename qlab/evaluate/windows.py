"""Losses of single tokens, over windows of any length and stride.

``qlab.perplexity`` is the number to report. These two functions show what it is made of: which
window scores which token, and how surprised the model was there.

Chapter: Measuring a quantized model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def windows(tokens: int, room: int, stride: int, bos: bool) -> list[list[int]]:
    """[first token, end, first scored] of each window.

    Args:
        tokens: of the text.
        room: text tokens that a window holds.
        stride: tokens that a window advances.
        bos: whether a BOS stands before each window; without it nothing predicts its first token.

    Chapter: Measuring a quantized model.
    """
    found, done = [], 0
    for start in range(0, tokens, stride):
        end = min(start + room, tokens)
        first = max(done, start + (not bos))
        if first < end:
            found.append([start, end, first])
            done = end
        if end == tokens:
            break
    return found


def token_losses(
    model: Any, ids: Sequence[int], cuts: Sequence[Sequence[int]], bos_id: int | None
) -> list[float | None]:
    """Negative log-probability of each token in nats; None for those that no window scores.

    Args:
        model: a transformers causal language model, its layers quantized or not.
        ids: token ids of one text.
        cuts: of ``windows``.
        bos_id: stands before each window; None: nothing does.

    Chapter: Measuring a quantized model.
    """
    import torch

    from qlab.nn import dequantize_model

    plain = dequantize_model(model)
    losses: list[float | None] = [None] * len(ids)
    head = [] if bos_id is None else [bos_id]
    with torch.no_grad():
        for batch in (cuts[i : i + 16] for i in range(0, len(cuts), 16)):
            longest = max(end - start for start, end, _ in batch) + len(head)
            rows = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, (start, end, _) in enumerate(batch):
                rows[row, : end - start + len(head)] = torch.tensor([*head, *ids[start:end]])
            # Padding stands at the right, where causal attention cannot see it.
            log_p = torch.log_softmax(plain(input_ids=rows).logits.float(), -1)
            for row, (start, end, first) in enumerate(batch):
                for i in range(first, end):
                    losses[i] = -float(log_p[row, i - start + len(head) - 1, ids[i]])
    return losses
