"""Keys and values of the tokens that were read, for the compiled decoder.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

import numpy as np

from qlab.engine.forward import Store
from qlab.engine.layers import LANES, TILE
from qlab.engine.sizes import Sizes
from qlab.errors import QlabError

KINDS = ("fp32", "int8")


class KVCache:
    """Room for the keys and values of some sequences, and how many tokens of each are in it.

    Args:
        sizes: of the model.
        context: tokens that each sequence may have.
        sequences: how many.
        kind: ``fp32``, or ``int8`` with a float32 scale for each token, head and layer.

    Raises: QlabError for another kind, or more tokens than the model takes.

    Chapter: An engine in one file's worth of Python.
    """

    def __init__(
        self, sizes: Sizes, context: int | None = None, sequences: int = 1, kind: str = "fp32"
    ) -> None:
        if kind not in KINDS:
            raise QlabError(f"a cache of kind '{kind}': choose {' or '.join(KINDS)}")
        context = sizes.context if context is None else context
        if not 1 <= context <= sizes.context:
            raise QlabError(f"a cache of {context} tokens: this model takes 1 to {sizes.context}")
        if sequences < 1:
            raise QlabError(f"a cache for {sequences} sequences: at least 1")
        self.kind, self.context = kind, context
        self.lengths = [0] * sequences
        self.room = -(-context // TILE) * TILE
        lead = (sizes.layers, sequences, sizes.kv_heads)
        wide, size = -(-sizes.head_dim // LANES) * LANES, 4 if kind == "fp32" else 1
        scales = self.room if kind == "int8" else 0
        # The system gives out pages of zeros when they are first written, so that a long cache
        # takes memory as it fills. Keys that were never written must be numbers: they are
        # multiplied with the rest of their tile, and the products left out.
        self.store = Store(
            np.zeros((*lead, self.room * sizes.head_dim * size), np.uint8),
            np.zeros((*lead, scales), np.float32),
            np.zeros((*lead, self.room * wide * size), np.uint8),
            np.zeros((*lead, scales), np.float32),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole room."""
        return sum(part.nbytes for part in self.store)

    def clear(self) -> None:
        """Forget all tokens."""
        self.lengths = [0] * len(self.lengths)
