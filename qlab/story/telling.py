"""Tell a story: continue an opening with a language model.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

from typing import Any

from qlab.errors import QlabError


def tell(
    model: Any,
    tokenizer: Any,
    opening: str,
    max_tokens: int = 200,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
) -> str:
    """The opening and its continuation, up to the end of the story or ``max_tokens`` pieces.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        opening: how the story begins; not empty.
        max_tokens: at most this many new pieces, and never beyond the model's context.
        temperature: 0 chooses the likeliest piece each time (greedy), so the story is always the
            same; above 0 it samples.
        top_k: sample among the k likeliest pieces only (0: all).
        seed: of the sampling.

    Raises: QlabError for an empty opening, or one that fills the context.
    """
    import torch

    if not opening.strip():
        raise QlabError('the opening is empty: give a few words, such as "Once upon a time"')
    ids = tokenizer(opening, return_tensors="pt")["input_ids"].to(model.device)
    context = int(getattr(model.config, "max_position_embeddings", 2048))
    room = min(max_tokens, context - ids.shape[1])
    if room <= 0:
        raise QlabError(f"the opening has {ids.shape[1]} pieces and the context only {context}")
    generator = torch.Generator().manual_seed(seed)
    end = tokenizer.eos_token_id
    new: list[int] = []
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=True)
        for i in range(room):
            piece = _choose(out.logits[0, -1].float().cpu(), temperature, top_k, generator)
            if piece == end:
                break
            new.append(piece)
            if i + 1 < room:
                step = torch.tensor([[piece]], device=model.device)
                out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
    return str(tokenizer.decode([*ids[0].tolist(), *new], skip_special_tokens=True))


def _choose(logits: Any, temperature: float, top_k: int, generator: Any) -> int:
    import torch

    if temperature <= 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k > 0:
        smallest = torch.topk(logits, min(top_k, len(logits))).values[-1]
        logits = torch.where(logits < smallest, float("-inf"), logits)
    return int(torch.multinomial(torch.softmax(logits, 0), 1, generator=generator))
