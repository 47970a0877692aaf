"""Tell a story: continue an opening with a language model, or with the compiled engine.

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
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
    repetition_penalty: float = 1.0,
) -> str:
    """The opening and its continuation, up to the end of the story or ``max_tokens`` pieces.

    Args:
        model: a transformers causal language model, or an engine (``qlab.engine.load``).
        tokenizer: its tokenizer.
        opening: how the story begins; not empty.
        max_tokens: at most this many new pieces, and never beyond the model's context.
        temperature: 0 chooses the likeliest piece each time (greedy), so the story is always the
            same; above 0 it samples.
        top_k: sample among the k likeliest pieces only (0: all).
        seed: of the sampling. An engine draws other numbers from a seed than torch does.
        repetition_penalty: 1: none; above, pieces that the story has already become less likely
            (``qlab.engine.sample`` says how). A small model goes in circles without.

    Raises: QlabError for an empty opening, one that fills the context, a temperature that is no
        finite number, or a penalty that is not positive.
    """
    ids, room = _checked(model, tokenizer, opening, max_tokens, temperature, repetition_penalty)
    how = temperature, top_k, seed, repetition_penalty
    new = list(_pieces(model, tokenizer, ids, room, *how))
    return str(tokenizer.decode([*ids, *new], skip_special_tokens=True))


def stream(
    model: Any,
    tokenizer: Any,
    opening: str,
    max_tokens: int = 200,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    repetition_penalty: float = 1.0,
) -> Iterator[str]:
    """The same story in parts of text, as they are written; joined they are what ``tell`` gives.

    Raises: QlabError, at once, as ``tell`` does.
    """
    ids, room = _checked(model, tokenizer, opening, max_tokens, temperature, repetition_penalty)
    return _parts(model, tokenizer, ids, room, temperature, top_k, seed, repetition_penalty)


def open_teller(source: str | Path, progress: bool = False) -> tuple[Any, Any]:
    """A model that tells quickly, and its tokenizer: the engine where it knows the model.

    Args:
        source: as for ``qlab.load``.
        progress: say on standard error that the engine is being compiled, where it has to be.

    Returns: an engine or, where the engine does not compute such a model, a transformers model.

    Raises: QlabError for a source that cannot be loaded at all.
    """
    from qlab.engine import load as load_engine
    from qlab.sources import load

    path = Path(source)
    if path.is_file():
        try:
            engine = load_engine(path, progress=progress)
            return engine, engine.tokenizer
        except QlabError:
            pass  # what qlab.load says about it is to the point
    found = load(source)
    try:
        return load_engine(found, progress=progress), found.tokenizer
    except QlabError:
        return found.model, found.tokenizer


def _checked(
    model: Any,
    tokenizer: Any,
    opening: str,
    max_tokens: int,
    temperature: float,
    repetition_penalty: float,
) -> tuple[list[int], int]:
    """Token ids of the opening, and how many more there may be."""
    if not opening.strip():
        raise QlabError('the opening is empty: give a few words, such as "Once upon a time"')
    if not math.isfinite(temperature):
        raise QlabError(f"temperature {temperature}: 0 (greedy) or a number above")
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise QlabError(f"repetition_penalty {repetition_penalty}: 1 (none) or more, up to about 2")
    ids = list(tokenizer(opening)["input_ids"])
    if _is_engine(model):
        context = model.context
    else:
        context = int(getattr(model.config, "max_position_embeddings", 2048))
    room = min(max_tokens, context - len(ids))
    if room <= 0:
        raise QlabError(f"the opening has {len(ids)} pieces and the context only {context}")
    return ids, room


def _is_engine(model: Any) -> bool:
    """Without importing the engine, which brings the compiler with it."""
    return bool(getattr(model, "is_engine", False))


def _pieces(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    room: int,
    temperature: float,
    top_k: int,
    seed: int,
    repetition_penalty: float,
) -> Iterator[int]:
    """The new tokens, one by one, without the one that ends the story."""
    end = tokenizer.eos_token_id
    if _is_engine(model):
        stop = [] if end is None else [end]
        yield from model.generate(
            ids,
            room,
            temperature=max(temperature, 0.0),
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
        )
        return
    import torch

    generator, told = torch.Generator().manual_seed(seed), list(ids)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
        for i in range(room):
            logits = _penalized(out.logits[0, -1].float().cpu(), told, repetition_penalty)
            piece = _choose(logits, temperature, top_k, generator)
            if piece == end:
                return
            told.append(piece)
            yield piece
            if i + 1 < room:
                step = torch.tensor([[piece]], device=model.device)
                out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)


def _parts(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    room: int,
    temperature: float,
    top_k: int,
    seed: int,
    repetition_penalty: float,
) -> Iterator[str]:
    told = str(tokenizer.decode(ids, skip_special_tokens=True))
    yield told
    written = list(ids)
    how = temperature, top_k, seed, repetition_penalty
    for piece in _pieces(model, tokenizer, ids, room, *how):
        written.append(piece)
        text = str(tokenizer.decode(written, skip_special_tokens=True))
        # A character may be cut between two pieces: it is told when it is whole.
        if text.startswith(told) and not text.endswith("\ufffd"):
            yield text[len(told) :]
            told = text
    text = str(tokenizer.decode(written, skip_special_tokens=True))
    if text.startswith(told) and len(text) > len(told):
        yield text[len(told) :]


def _penalized(logits: Any, told: list[int], penalty: float) -> Any:
    """The logits, with pieces that were told made less likely, as ``qlab.engine.sample`` says."""
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    return RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([told]), logits[None])[0]


def _choose(logits: Any, temperature: float, top_k: int, generator: Any) -> int:
    import torch

    if temperature <= 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k > 0:
        smallest = torch.topk(logits, min(top_k, len(logits))).values[-1]
        logits = torch.where(logits < smallest, float("-inf"), logits)
    return int(torch.multinomial(torch.softmax(logits, 0), 1, generator=generator))
