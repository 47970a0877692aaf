"""Figure: one model, one text, many perplexities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qlab.errors import QlabError
from qlab.evaluate.windows import token_losses, windows
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# A window advances by this share of the tokens that it has room for.
STRIDES = (1.0, 0.5, 0.25)
STRIDE_NAMES = ("a whole window", "half a window", "a quarter of a window")
UNITS = ("token: perplexity", "word: perplexity", "character: bits", "byte: bits")


def perplexity_traps(
    model: Any, tokenizer: Any, text: str, contexts: Sequence[int] = (16, 32, 64, 512)
) -> Picture:
    """Choose context, stride, BOS and unit; see the number, and which tokens are scored.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer; it needs a BOS token, to leave out.
        text: one text, of at least as many tokens as the shortest context.
        contexts: tokens a window, BOS included. Those beyond the text are one window, whatever the
            stride.

    Raises: QlabError for a tokenizer without BOS, a context the model does not have, or a text that
        is too short.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    limit = int(getattr(model.config, "max_position_embeddings", 2048))
    if tokenizer.bos_token_id is None:
        raise QlabError("perplexity_traps needs a tokenizer with a BOS token")
    if not contexts or min(contexts) < 2 or max(contexts) > limit:
        raise QlabError(f"contexts {list(contexts)}: each must be 2 to {limit} tokens")
    if len(ids) < min(contexts):
        raise QlabError(f"a text of {len(ids)} tokens: give one of at least {min(contexts)}")
    runs: list[dict[str, Any]] = []
    for context in contexts:
        for bos in (True, False):
            done: dict[int, tuple[list[list[int]], list[float | None]]] = {}
            for share in STRIDES:
                room = context - bos
                stride = max(1, int(room * share)) if room < len(ids) else room
                if stride not in done:
                    cuts = windows(len(ids), room, stride, bos)
                    bos_id = tokenizer.bos_token_id if bos else None
                    done[stride] = (cuts, token_losses(model, ids, cuts, bos_id))
                cuts, losses = done[stride]
                runs.append(
                    {
                        "windows": cuts,
                        "losses": [None if x is None else round(x, 4) for x in losses],
                    }
                )
    counts = {"words": len(text.split()), "characters": len(text), "bytes": len(text.encode())}
    rows = [
        (context, "yes" if bos else "no", STRIDE_NAMES[k], f"{_perplexity(run['losses']):.2f}")
        for run, (context, bos, k) in zip(
            runs,
            ((c, b, k) for c in contexts for b in (True, False) for k in range(len(STRIDES))),
            strict=True,
        )
    ]
    return figure(
        "perplexitytraps",
        {
            "pieces": [tokenizer.decode([i]) for i in ids],
            "contexts": list(contexts),
            "strides": list(STRIDE_NAMES),
            "units": list(UNITS),
            "counts": counts,
            "runs": runs,
        },
        alt="A text in pieces, shaded by how surprised the model was by each under the chosen way "
        "of measuring, and the perplexity that comes of it.",
        caption="How many perplexities has one model on one text? Choose how it is measured. "
        "Pieces that are not scored are struck through; a line stands where a new window begins to "
        "score. "
        "Point at a piece, or move with the arrow keys, to see how much the model saw before it.",
        fallback=table(("context (tokens)", "BOS", "a window advances by", "perplexity"), rows),
    )


def _perplexity(losses: Sequence[float | None]) -> float:
    scored = [x for x in losses if x is not None]
    return math.exp(sum(scored) / len(scored))
