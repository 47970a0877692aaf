"""How fast a model writes.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import time
from typing import Any


def tokens_per_second(
    model: Any, tokens: int = 32, prompt: int = 16, repeats: int = 3, seed: int = 0
) -> float:
    """Greedy decoding speed, one sequence, after the prompt was read.

    The best of ``repeats`` runs: other work on the machine can only slow a run down. Random token
    ids serve as the prompt, since speed does not depend on what the text says.

    Args:
        model: a transformers causal language model.
        tokens: tokens written in each run.
        prompt: length of the prompt in tokens.
        repeats: number of runs.
        seed: of the prompt.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (1, prompt), generator=generator)
    best = 0.0
    with torch.no_grad():
        for _ in range(repeats):
            out = model(input_ids=ids, use_cache=True)
            piece = out.logits[:, -1:].argmax(-1)
            began = time.perf_counter()
            for _ in range(tokens):
                out = model(input_ids=piece, past_key_values=out.past_key_values, use_cache=True)
                piece = out.logits[:, -1:].argmax(-1)
            best = max(best, tokens / (time.perf_counter() - began))
    return best
