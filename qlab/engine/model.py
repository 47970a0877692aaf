"""An engine in the place of a transformers model, for ``qlab.evaluate``.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from qlab.engine.engine import Engine


class EngineModel(torch.nn.Module):
    """Answers ``model(input_ids=ids).logits`` by the engine, one sequence at a time.

    Sequences are filled up at the right, where causal attention does not look.

    Chapter: An engine in one file's worth of Python.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(
            max_position_embeddings=engine.context, vocab_size=engine.sizes.vocabulary
        )

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """input_ids int64 (batch, tokens) -> logits, float32 (batch, tokens, vocabulary)."""
        rows = [torch.from_numpy(self.engine.logits(ids)) for ids in input_ids]
        return SimpleNamespace(logits=torch.stack(rows))
