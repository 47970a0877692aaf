"""Where bytes, operations and time of one token go: the stages of ``forward``, one by one.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qlab.engine import forward as f
from qlab.engine import layers
from qlab.engine.engine import Engine
from qlab.engine.kernels import call
from qlab.engine.linear import COLUMNS, ROWS, START, STOP, TILE
from qlab.kernels.cpu.jit import jit

REPEATS, ROUNDS = 50, 7


@dataclass(frozen=True)
class Stage:
    """One stage of a token's way, for all layers together.

    Attributes:
        name: such as ``attention``.
        formula: what it computes.
        shapes: of what goes in and comes out.
        times: how often a token passes it: once, or once a layer.
        bytes: weights, keys and values that are read.
        operations: multiplications and additions.
        seconds: the fastest of several measurements on this machine.
    """

    name: str
    formula: str
    shapes: str
    times: int
    bytes: int
    operations: int
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations for each byte that is read."""
        return self.operations / self.bytes if self.bytes else 0.0


@jit()
def _calls(n, at, arguments):
    for _ in range(n):
        call(at, arguments)


@jit()
def _norms(n, x, weight, eps, out):
    for _ in range(n):
        layers.rms_norm(x, weight, eps, out)


@jit()
def _keeps(n, x, heads, kv_heads, turns, pair, keys, scales, values, more, position, as_int8):
    for _ in range(n):
        layers.rotate(x, heads + kv_heads, turns)
        for _ in range(kv_heads):
            layers.store(pair, keys, scales, values, more, position, as_int8)


@jit()
def _swiglus(n, gate_up, out):
    for _ in range(n):
        layers.swiglu(gate_up, out)


def stages(engine: Engine, position: int = 0, kind: str = "fp32") -> list[Stage]:
    """The stages of the token at a position, measured on one processor on random numbers.

    The first layer stands for all, so kinds that differ between layers are counted as its.

    Args:
        position: tokens that came before.
        kind: of the cache.

    Raises: QlabError for a position beyond the context.

    Chapter: An engine in one file's worth of Python.
    """
    s, w = engine.sizes, engine.arrays
    cache = engine.cache(position + 1, kind=kind)
    counts, eps = engine.counts(cache), np.float32(s.eps)
    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:
        return rng.standard_normal(n).astype(np.float32)

    hidden, out, pair = draw(s.hidden), draw(s.hidden), draw(2 * s.head_dim).reshape(2, -1)
    qkv, attended = draw(s.queries + 2 * s.keys), draw(s.queries)
    gate_up, inner, logits = draw(2 * s.inner), draw(s.inner), draw(s.vocabulary)
    keys, scales, values, more = (part[0, 0, 0] for part in cache.store)
    scores, mixed = draw(cache.room), draw(-(-s.head_dim // layers.LANES) * layers.LANES)
    n, depth, head = s.hidden, s.layers, s.layers * len(f.MATRICES)
    kept = 2 * s.keys * (position + 1) * (4 if kind == "fp32" else 1)

    def stage(
        name: str,
        formula: str,
        shapes: str,
        times: int,
        held: int,
        operations: int,
        seconds: float,
    ) -> Stage:
        return Stage(
            name, formula, shapes, times, times * held, times * operations, times * seconds
        )

    def project(
        name: str, formula: str, x: np.ndarray, y: np.ndarray, first: int, last: int, times: int
    ) -> Stage:
        used = [m for m in w.matrices[first : last + 1] if m[ROWS]]
        seconds = sum(_time_of(m, w.arena, counts.prepare, x) for m in used)
        held = sum(int(m[STOP] - m[START]) for m in used)
        operations = sum(int(2 * m[ROWS] * m[COLUMNS]) for m in used)
        return stage(name, formula, f"{x.size} → {y.size}", times, held, operations, seconds)

    return [
        stage(
            *("embedding", "x = E[token]", f"token → {n}", 1, int(w.table.shape[1]), 0),
            _fastest(lambda k: _calls(k, counts.embed, (w.table[0], out))),
        ),
        stage(
            *("RMSNorm", "x / √(mean x² + ε) · w", f"{n} → {n}", 2 * depth + 1, 4 * n, 4 * n),
            _fastest(lambda k: _norms(k, hidden, w.numbers[:n], eps, out)),
        ),
        project("queries, keys, values", "W_q x, W_k x, W_v x", hidden, qkv, f.Q, f.V, depth),
        stage(
            *("RoPE, into the cache", "turn each pair by its angle"),
            *(f"{s.queries + s.keys} → {s.queries + s.keys}", depth),
            *(4 * s.head_dim, 3 * (s.queries + s.keys)),
            _fastest(
                lambda k: _keeps(
                    *(k, qkv, s.heads, s.kv_heads, w.turns[position], pair),
                    *(keys, scales, values, more, position, kind == "int8"),
                )
            ),
        ),
        stage(
            *("attention", "softmax(q Kᵀ / √d) V"),
            *(f"{s.queries} and {position + 1} · {2 * s.keys} → {s.queries}", depth),
            *(kept, 4 * s.queries * (position + 1)),
            s.heads
            * _fastest(
                lambda k: _calls(
                    k,
                    counts.attend,
                    (hidden[: s.head_dim], keys, scales, values, more, position + 1, scores, mixed),
                )
            ),
        ),
        project("output of attention", "x + W_o a", attended, out, f.OUT, f.OUT, depth),
        project("gate and up", "W_gate x, W_up x", hidden, gate_up, f.GATE, f.UP, depth),
        stage(
            *("SwiGLU", "silu(gate) · up", f"{2 * s.inner} → {s.inner}", depth, 0, 20 * s.inner),
            _fastest(lambda k: _swiglus(k, gate_up, inner)),
        ),
        project("down", "x + W_down h", inner, out, f.DOWN, f.DOWN, depth),
        project("head", "W_head x", hidden, logits, head, head, 1),
    ]


def _time_of(matrix: np.ndarray, arena: np.ndarray, prepare: int, x: np.ndarray) -> float:
    """Seconds to prepare the inputs of a matrix, and to multiply it."""
    kind, rows, columns, group, start, stop, address = (int(v) for v in matrix)
    work, y = np.empty(-(-columns // 256) * 1024, np.uint8), np.empty(rows, np.float32)
    sizes = (arena[start:stop], rows, columns, group, 1, work, y, 0, -(-rows // TILE))
    return _fastest(lambda k: _calls(k, prepare, (kind, x, work, 0, 1))) + _fastest(
        lambda k: _calls(k, address, sizes)
    )


def _fastest(run: Callable[[int], None]) -> float:
    """Seconds of one pass, from the fastest of some rounds."""
    run(1)
    best = np.inf
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run(REPEATS)
        best = min(best, (time.perf_counter() - began) / REPEATS)
    return float(best)
