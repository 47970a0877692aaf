"""A token's way through a Llama-style decoder, in one compiled function.

    x = embedding[token]
    for each layer:
        q, k, v = norm(x) W_qkvᵀ          k, v go to the cache, after RoPE on q and k
        x = x + attention(q, cache) W_oᵀ
        x = x + swiglu(norm(x) W_gate_upᵀ) W_downᵀ
    logits = norm(x) W_headᵀ

A row is a token of a sequence at a position. All tokens of a prompt (prefill) and the next token of
one or several sequences (decode) are the same loop over rows; with many rows a weight that was read
is used as many times.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from qlab.engine import layers
from qlab.engine.kernels import call
from qlab.engine.layers import LANES
from qlab.engine.linear import ROWS, linear
from qlab.kernels.cpu.jit import jit

# Matrices of a layer, in this order in ``matrices``; the head comes after all layers.
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
Q, K, V, OUT, GATE, UP, DOWN = range(len(MATRICES))
# Vectors of a layer, in this order in ``places``: where they begin in ``numbers``, or -1.
VECTORS = ("attn_norm", "ffn_norm", "qkv_bias", "o_bias", "gate_up_bias", "down_bias")
HEAD_VECTORS = ("q_norm", "k_norm")
ATTN_NORM, FFN_NORM, QKV_BIAS, O_BIAS, GATE_UP_BIAS, DOWN_BIAS, Q_NORM, K_NORM = range(8)
# Columns of the rows that ``forward`` takes.
TOKEN, SLOT, POSITION = range(3)
# What makes a loop over rows and heads worth a parallel region: multiplications.
PARALLEL_WORK = 1 << 19


class Counts(NamedTuple):
    """Whole numbers of a model and its cache.

    ``room``: tokens of a sequence in the cache, a multiple of 32. ``as_int8``: whether keys and
    values are kept as int8. ``threads``: processors that may work together. ``embed``, ``prepare``
    and ``attend``: where these functions begin (``kernels``).
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    room: int
    as_int8: bool
    threads: int
    embed: int
    prepare: int
    attend: int


class Weights(NamedTuple):
    """All that is read and never written.

    Attributes:
        arena: uint8, the packed matrices one behind the other, each at a multiple of 64 bytes.
        matrices: int64 (7 layers + 1, 7): what lies where.
        numbers: float32, all vectors one behind the other.
        places: int64 (layers + 1, 8): where the vectors begin, or -1.
        turns: float32 (context, 2, head_dim/2), cosines and sines of RoPE.
        table: uint8 (vocabulary, bytes), the rows of the embedding.
    """

    arena: Any
    matrices: Any
    numbers: Any
    places: Any
    turns: Any
    table: Any


class Store(NamedTuple):
    """Keys and values of all layers and sequences, as float32 or as int8 with a scale a token.

    Attributes:
        keys: uint8 (layers, sequences, kv_heads, bytes), of tiles (tiles, head_dim, 32).
        values: the same, of (room, head_dim rounded up to 16).
        key_scales, value_scales: float32 (layers, sequences, kv_heads, room), of int8.
    """

    keys: Any
    key_scales: Any
    values: Any
    value_scales: Any


@jit()
def project(x, first, last, arena, matrices, bias, numbers, out, s):
    """out = x Wᵀ + b for the matrices ``first`` ... ``last``, whose rows stand below each other.

    Args:
        x: (rows, in).
        bias: where b begins in ``numbers``, or -1.
        out: (rows, out of all of them).
    """
    at = 0
    for i in range(first, last + 1):
        count = matrices[i, ROWS]
        if count == out.shape[1]:
            linear(x, arena, matrices[i], out, s)
        elif count:
            part = np.empty((len(x), count), np.float32)
            linear(x, arena, matrices[i], part, s)
            for t in range(len(x)):
                for j in range(count):
                    out[t, at + j] = part[t, j]
        at += count
    if bias >= 0:
        b = numbers[bias : bias + out.shape[1]]
        for t in range(len(out)):
            y = out[t]
            for j in range(len(b)):
                y[j] += b[j]


@jit()
def _copy(x, y):
    for t in range(len(x)):
        for j in range(x.shape[1]):
            y[t, j] = x[t, j]


@jit()
def add(x, y):
    """x = x + y."""
    for t in range(len(x)):
        a, b = x[t], y[t]
        for j in range(len(b)):
            a[j] += b[j]


@jit()
def _head(t, h, layer, qkv, rows, s, store, scores, mixed, out):
    """Attention of one head of one row; ``scores`` and ``mixed`` are room."""
    d, slot, kv = s.head_dim, rows[t, SLOT], h // (s.heads // s.kv_heads)
    query = qkv[t, h * d : (h + 1) * d]
    keys, values = store.keys[layer, slot, kv], store.values[layer, slot, kv]
    scales, more = store.key_scales[layer, slot, kv], store.value_scales[layer, slot, kv]
    count = rows[t, POSITION] + 1
    call(s.attend, (query, keys, scales, values, more, count, scores, mixed))
    for j in range(d):
        out[t, h * d + j] = mixed[j]


@jit(parallel=True)
def _heads_in_parallel(layer, qkv, rows, s, store, out):
    for i in prange(len(rows) * s.heads):
        scores, mixed = np.empty(s.room, np.float32), np.empty(s.head_dim + LANES, np.float32)
        mixed = mixed[: (s.head_dim + LANES - 1) // LANES * LANES]
        _head(i // s.heads, i % s.heads, layer, qkv, rows, s, store, scores, mixed, out)


@jit()
def attention(layer, qkv, rows, s, store, out):
    """Attention of all heads of all rows; long ones on all processors."""
    work = 0
    for t in range(len(rows)):
        work += (rows[t, POSITION] + 1) * s.heads * s.head_dim
    if s.threads > 1 and work >= PARALLEL_WORK:
        _heads_in_parallel(layer, qkv, rows, s, store, out)
        return
    scores, mixed = np.empty(s.room, np.float32), np.empty(s.head_dim + LANES, np.float32)
    mixed = mixed[: (s.head_dim + LANES - 1) // LANES * LANES]
    for t in range(len(rows)):
        for h in range(s.heads):
            _head(t, h, layer, qkv, rows, s, store, scores, mixed, out)


@jit()
def keep(layer, qkv, rows, s, eps, w, store):
    """Normalize (Qwen3) and turn queries and keys, and put keys and values into the cache."""
    d, queries = s.head_dim, s.heads * s.head_dim
    pair = np.empty((2, d), np.float32)
    for t in range(len(rows)):
        slot, position, y = rows[t, SLOT], rows[t, POSITION], qkv[t]
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
                store.keys[layer, slot, h],
                store.key_scales[layer, slot, h],
                store.values[layer, slot, h],
                store.value_scales[layer, slot, h],
                position,
                s.as_int8,
            )


@jit()
def norm_rows(x, weight, eps, out):
    """RMSNorm of each row."""
    for t in range(len(x)):
        layers.rms_norm(x[t], weight, eps, out[t])


@jit()
def swiglu_rows(gate_up, out):
    """SwiGLU of each row."""
    for t in range(len(out)):
        layers.swiglu(gate_up[t], out[t])


@jit()
def forward(rows, wanted, s, eps, w, store, trace, logits):
    """Read tokens into the cache, and say what may come after some of them.

    Args:
        rows: int64 (rows, 3): token, sequence, position. Rows of a sequence stand in order, and
            what comes before them is in the cache.
        wanted: int64 (n,), the rows whose logits are asked for.
        s, eps, w, store: the model and the cache.
        trace: float32 (layers + 1, rows, hidden), where the state before and after each layer goes;
            with 0 rows it is left out.
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
        if trace.shape[1]:
            _copy(x, trace[layer])
        m, at = layer * len(MATRICES), w.places[layer]
        norm_rows(x, w.numbers[at[ATTN_NORM] : at[ATTN_NORM] + s.hidden], eps, h)
        project(h, m + Q, m + V, w.arena, w.matrices, at[QKV_BIAS], w.numbers, qkv, s)
        keep(layer, qkv, rows, s, eps, w, store)
        attention(layer, qkv, rows, s, store, attended)
        project(attended, m + OUT, m + OUT, w.arena, w.matrices, at[O_BIAS], w.numbers, h, s)
        add(x, h)
        norm_rows(x, w.numbers[at[FFN_NORM] : at[FFN_NORM] + s.hidden], eps, h)
        project(h, m + GATE, m + UP, w.arena, w.matrices, at[GATE_UP_BIAS], w.numbers, gate_up, s)
        swiglu_rows(gate_up, inner)
        project(inner, m + DOWN, m + DOWN, w.arena, w.matrices, at[DOWN_BIAS], w.numbers, h, s)
        add(x, h)
    if trace.shape[1]:
        _copy(x, trace[s.layers])
    if len(wanted):
        head, last = s.layers * len(MATRICES), np.empty((len(wanted), s.hidden), np.float32)
        at = w.places[s.layers, ATTN_NORM]
        for i in range(len(wanted)):
            layers.rms_norm(x[wanted[i]], w.numbers[at : at + s.hidden], eps, last[i])
        project(
            last, head, head, w.arena, w.matrices, w.places[s.layers, O_BIAS], w.numbers, logits, s
        )
