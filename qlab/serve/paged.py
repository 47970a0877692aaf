"""The engine on a paged cache: each row finds its keys and values through its table of blocks.

It is ``engine/forward.py`` with another place for keys and values. A block holds ``TILE`` = 32
tokens of all layers and heads. Attention brings the blocks of a text and a head together, which
costs one copy, and then is the engine's own: the same sums in the same order, so the same bits.

A product with one row adds in another order than a product with several, so that its last bits
differ. Here every call has at least two rows (a row alone is read twice); then the logits of a text
depend on nothing that is computed beside it.

Chapter: Serving.
"""

from __future__ import annotations

import numpy as np

from qlab.engine import compiled, layers
from qlab.engine.cache import KVCache
from qlab.engine.engine import Engine
from qlab.engine.forward import (
    ATTN_NORM,
    DOWN,
    DOWN_BIAS,
    FFN_NORM,
    GATE,
    GATE_UP_BIAS,
    K_NORM,
    MATRICES,
    O_BIAS,
    OUT,
    POSITION,
    Q_NORM,
    QKV_BIAS,
    SLOT,
    TOKEN,
    UP,
    Q,
    V,
    add,
    norm_rows,
    project,
    swiglu_rows,
)  # fmt: skip
from qlab.engine.kernels import call
from qlab.engine.layers import LANES, TILE
from qlab.errors import QlabError
from qlab.kernels.cpu.jit import jit


@jit()
def keep(layer, qkv, rows, tables, s, eps, w, store):
    """Normalize (Qwen3) and turn queries and keys, and put keys and values into their blocks."""
    d, queries = s.head_dim, s.heads * s.head_dim
    pair = np.empty((2, d), np.float32)
    for t in range(len(rows)):
        position, y = rows[t, POSITION], qkv[t]
        block = tables[rows[t, SLOT], position // TILE]
        norm = w.places[layer, Q_NORM]
        if norm >= 0:
            for h in range(s.heads + s.kv_heads):
                at = norm if h < s.heads else w.places[layer, K_NORM]
                x = y[h * d : (h + 1) * d]
                layers.rms_norm(x, w.numbers[at : at + d], eps, x)
        layers.rotate(y, s.heads + s.kv_heads, w.turns[position])
        for h in range(s.kv_heads):
            k = queries + h * d
            for j in range(d):
                pair[0, j], pair[1, j] = y[k + j], y[k + s.kv_heads * d + j]
            layers.store(
                pair,
                store.keys[layer, block, h],
                store.key_scales[layer, block, h],
                store.values[layer, block, h],
                store.value_scales[layer, block, h],
                position % TILE,
                s.as_int8,
            )


@jit()
def _gather(parts, table, count, h, out):
    """The content of a text's first blocks for one head, behind each other."""
    n = parts.shape[2]
    for i in range((count + TILE - 1) // TILE):
        here, to = parts[table[i], h], out[i * n : (i + 1) * n]
        for j in range(n):
            to[j] = here[j]


@jit()
def attention(layer, qkv, rows, tables, s, store, out):
    """Attention of all heads of all rows; rows of a text stand behind each other."""
    d, group = s.head_dim, s.heads // s.kv_heads
    most = (s.room + TILE - 1) // TILE
    keys = np.empty(most * store.keys.shape[3], np.uint8)
    values = np.empty(most * store.values.shape[3], np.uint8)
    key_scales = np.empty(most * store.key_scales.shape[3], np.float32)
    value_scales = np.empty(most * store.value_scales.shape[3], np.float32)
    scores = np.empty(s.room, np.float32)
    mixed = np.empty((d + LANES - 1) // LANES * LANES, np.float32)
    first = 0
    while first < len(rows):
        last = first  # of the rows of the same text
        while last + 1 < len(rows) and rows[last + 1, SLOT] == rows[first, SLOT]:
            last += 1
        table, longest = tables[rows[first, SLOT]], 0
        for t in range(first, last + 1):
            longest = max(longest, rows[t, POSITION] + 1)
        for kv in range(s.kv_heads):
            _gather(store.keys[layer], table, longest, kv, keys)
            _gather(store.values[layer], table, longest, kv, values)
            _gather(store.key_scales[layer], table, longest, kv, key_scales)
            _gather(store.value_scales[layer], table, longest, kv, value_scales)
            for t in range(first, last + 1):
                count = rows[t, POSITION] + 1
                for h in range(kv * group, (kv + 1) * group):
                    query = qkv[t, h * d : (h + 1) * d]
                    call(
                        s.attend,
                        (query, keys, key_scales, values, value_scales, count, scores, mixed),
                    )
                    for j in range(d):
                        out[t, h * d + j] = mixed[j]
        first = last + 1


@jit()
def forward(rows, tables, wanted, s, eps, w, store, logits):
    """Read tokens into the paged cache, and say what may come after some of them.

    Args:
        rows: int64 (rows, 3): token, text, position. Rows of a text stand together, in order.
        tables: int64 (texts, blocks), which block holds the tokens 32 i ... 32 i + 31 of a text.
        wanted: int64 (n,), the rows whose logits are asked for.
        s, eps, w, store: the model, and the blocks.
        logits: float32 (n, vocabulary), filled.
    """
    n, d = len(rows), s.head_dim
    x, h = np.empty((n, s.hidden), np.float32), np.empty((n, s.hidden), np.float32)
    qkv = np.empty((n, (s.heads + 2 * s.kv_heads) * d), np.float32)
    attended = np.empty((n, s.heads * d), np.float32)
    gate_up = np.empty((n, 2 * s.inner), np.float32)
    inner = np.empty((n, s.inner), np.float32)
    for t in range(n):
        call(s.embed, (w.table[rows[t, TOKEN]], x[t]))
    for layer in range(s.layers):
        m, at = layer * len(MATRICES), w.places[layer]
        norm_rows(x, w.numbers[at[ATTN_NORM] : at[ATTN_NORM] + s.hidden], eps, h)
        project(h, m + Q, m + V, w.arena, w.matrices, at[QKV_BIAS], w.numbers, qkv, s)
        keep(layer, qkv, rows, tables, s, eps, w, store)
        attention(layer, qkv, rows, tables, s, store, attended)
        project(attended, m + OUT, m + OUT, w.arena, w.matrices, at[O_BIAS], w.numbers, h, s)
        add(x, h)
        norm_rows(x, w.numbers[at[FFN_NORM] : at[FFN_NORM] + s.hidden], eps, h)
        project(h, m + GATE, m + UP, w.arena, w.matrices, at[GATE_UP_BIAS], w.numbers, gate_up, s)
        swiglu_rows(gate_up, inner)
        project(inner, m + DOWN, m + DOWN, w.arena, w.matrices, at[DOWN_BIAS], w.numbers, h, s)
        add(x, h)
    if len(wanted):
        head, last = s.layers * len(MATRICES), np.empty((len(wanted), s.hidden), np.float32)
        at = w.places[s.layers, ATTN_NORM]
        for i in range(len(wanted)):
            layers.rms_norm(x[wanted[i]], w.numbers[at : at + s.hidden], eps, last[i])
        project(
            last, head, head, w.arena, w.matrices, w.places[s.layers, O_BIAS], w.numbers, logits, s
        )


class PagedEngine:
    """An engine whose cache is a pool of blocks.

    Args:
        engine: from ``qlab.engine.load``.
        blocks: how many of 32 tokens.
        kind: how keys and values are kept, ``fp32`` or ``int8``.

    Attributes:
        block_size: tokens of a block.
        context, vocabulary, ends: of the engine's model.
        nbytes: of all blocks.

    Raises: QlabError for no blocks, or another kind.

    Chapter: Serving.
    """

    block_size = TILE

    def __init__(self, engine: Engine, blocks: int, kind: str = "fp32") -> None:
        if blocks < 1:
            raise QlabError(f"a cache of {blocks} blocks: at least 1")
        self.engine, self.blocks = engine, blocks
        self.context, self.vocabulary = engine.context, engine.sizes.vocabulary
        self.ends = engine.sizes.ends
        # A block is what the engine's cache calls a sequence. Its context is one tile.
        self._cache = KVCache(engine.sizes, min(TILE, engine.sizes.context), blocks, kind)
        self.nbytes = self._cache.nbytes

    def copy(self, source: int, target: int) -> None:
        """Copy what is in one block to another, in all layers."""
        for part in self._cache.store:
            part[:, target] = part[:, source]

    def read(self, rows: np.ndarray, tables: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Read tokens of some texts.

        Args:
            rows: int64 (rows, 3): token, text, position; rows of a text together, in order.
            tables: int64 (texts, blocks): the blocks of each text.
            wanted: int64 (n,), rows whose logits are asked for.

        Returns: float32 (n, vocabulary).
        """
        asked = len(wanted)
        if len(rows) == 1:
            rows = np.concatenate([rows, rows])
        if asked == 1:
            wanted = np.concatenate([wanted, wanted])
        logits = np.empty((len(wanted), self.vocabulary), np.float32)
        room = -(-self.context // TILE) * TILE
        compiled.call(
            forward,
            self.engine._progress,
            rows,
            tables,
            wanted,
            self.engine.counts(self._cache)._replace(room=room),
            np.float32(self.engine.sizes.eps),
            self.engine.arrays,
            self._cache.store,
            logits,
        )
        return logits[:asked]
