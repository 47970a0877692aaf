"""KL divergence: how far a model's predictions moved from a reference model's.

    KL(P‖Q) = Σ_v P(v) (log P(v) - log Q(v)), averaged over positions; P the reference, Q the model

Chapter: The case study, first telling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlab.errors import QlabError


@dataclass(frozen=True)
class Divergence:
    """Attributes:
    kl: mean over positions, in nats.
    agreement: share of positions where both models find the same token likeliest.
    tokens: positions compared.
    """

    kl: float
    agreement: float
    tokens: int


def divergence(
    reference: Any, model: Any, tokenizer: Any, texts: Sequence[str], context: int | None = None
) -> Divergence:
    """Compare the next-token distributions of two models on the same texts.

    Raises: QlabError for empty text or different vocabularies.
    """
    import torch

    from qlab.evaluate.perplexity import cut
    from qlab.nn import dequantize_model

    if reference.config.vocab_size != model.config.vocab_size:
        raise QlabError(
            f"vocabularies differ: {reference.config.vocab_size} and {model.config.vocab_size} "
            "tokens; KL needs a reference with the same tokenizer"
        )
    context = context or int(getattr(model.config, "max_position_embeddings", 2048))
    first, second = dequantize_model(reference), dequantize_model(model)
    windows = [w for text in texts for w in cut(tokenizer, text, context)]
    kl, same, count = 0.0, 0, 0
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([window.ids])
            # float32 carries a position's KL to about 1e-6 nats; the sum runs in float64.
            p = torch.log_softmax(first(input_ids=ids).logits[0, :-1].float(), -1)
            q = torch.log_softmax(second(input_ids=ids).logits[0, :-1].float(), -1)
            kl += float((p.exp() * (p - q)).sum(-1).double().sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
            count += p.shape[0]
    if count == 0:
        raise QlabError("no text to compare on: give at least one text with words in it")
    return Divergence(kl / count, same / count, count)
