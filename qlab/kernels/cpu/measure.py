"""What this machine can do at most: reading, integer products, float products.

Each is a loop that does one thing and nothing else, so that what it reaches is a ceiling for any
kernel. The fastest of many short runs counts: a run can be disturbed, never helped.

Chapter: Why it is fast, or isn't.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import prange

from qlab.kernels.cpu.integer_kernels import ask_ahead
from qlab.kernels.cpu.jit import jit
from qlab.kernels.cpu.simd import (
    dot4_small,
    fma,
    load_bytes,
    load_floats,
    load_ints,
    splat_float,
    splat_int,
    store,
)

PIECE = 4 << 20  # bytes read in a run where more are asked for; four times as many by threads
STEPS = 20_000  # of the loops that compute
DOT_OPERATIONS = 8 * 2 * 64  # in a step: eight registers, 64 products and additions each
FMA_OPERATIONS = 8 * 2 * 16


@jit(parallel=True)
def _read(data, sums, parts):
    """Add up all bytes, as int32: four sums, so that none waits for another.

    It asks ahead as the kernels do, or it would be no ceiling for them.
    """
    size = data.size // parts // 256 * 256
    for part in prange(parts):
        a = splat_int(0)
        b, c, d = a, a, a
        for at in range(part * size, (part + 1) * size, 256):
            ask_ahead(np.int64(4), data, at)
            a = a + load_ints(data, at)
            b = b + load_ints(data, at + 64)
            c = c + load_ints(data, at + 128)
            d = d + load_ints(data, at + 192)
        store(sums, part * 64, a + b + c + d)


@jit(parallel=True)
def _dot(data, sums, steps, parts):
    """Products of bytes: registers in, registers out, no memory in the loop."""
    for part in prange(parts):
        x, y = load_bytes(data, 0), load_bytes(data, 64)
        a = splat_int(0)
        b, c, d, e, f, g, h = a, a, a, a, a, a, a
        for _ in range(steps):
            a, b = dot4_small(a, x, y), dot4_small(b, x, y)
            c, d = dot4_small(c, x, y), dot4_small(d, x, y)
            e, f = dot4_small(e, x, y), dot4_small(f, x, y)
            g, h = dot4_small(g, x, y), dot4_small(h, x, y)
        store(sums, part * 64, a + b + c + d + e + f + g + h)


@jit(parallel=True)
def _multiply_add(data, sums, steps, parts):
    """Float products, likewise. Its sums shrink towards a limit: nothing overflows."""
    for part in prange(parts):
        x = load_floats(data, 0)
        a = splat_float(np.float32(0))
        b, c, d, e, f, g, h = a, a, a, a, a, a, a
        for _ in range(steps):
            a, b, c, d = fma(a, x, x), fma(b, x, x), fma(c, x, x), fma(d, x, x)
            e, f, g, h = fma(e, x, x), fma(f, x, x), fma(g, x, x), fma(h, x, x)
        store(sums, part * 64, a + b + c + d + e + f + g + h)


def fastest(runs: list[Callable[[], Any]], seconds: float = 0.2) -> float:
    """Seconds of the fastest call, the functions taken by turns.

    Args:
        runs: functions without arguments; several that do the same on different memory.
        seconds: how long to try; each is called at least once after a first round.

    Chapter: Why it is fast, or isn't.
    """
    for run in runs[:2]:
        run()
    best, count, until = np.inf, 0, time.perf_counter() + seconds
    while count < len(runs) or time.perf_counter() < until:
        run = runs[count % len(runs)]
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
        count += 1
    return float(best)


def read_bandwidth(megabytes: float = 128, threads: int = 1, seconds: float = 0.3) -> float:
    """Bytes a second that can be read, of a working set of a given size.

    Args:
        megabytes: of the array that is read again and again. Small ones stay in a cache; to measure
            the memory it must be larger than all caches.
        threads: that read at once, at most Numba's.

    Chapter: Why it is fast, or isn't.
    """
    size = max(256 * threads, int(megabytes * 1e6) // 256 * 256)
    data, sums = np.ones(size, np.uint8), np.empty(64 * threads, np.uint8)
    # To wake threads takes microseconds, which must not count; a long run is disturbed more often.
    count = max(1, size // (PIECE if threads == 1 else 4 * PIECE))
    pieces = np.array_split(data[: size // count * count], count)
    runs = [lambda p=piece: _read(p, sums, threads) for piece in pieces]
    return _with_threads(threads, lambda: pieces[-1].nbytes / fastest(runs, seconds))


def integer_peak(threads: int = 1, seconds: float = 0.2) -> float:
    """Operations a second of int8 products that are added up in int32 (``dot4``).

    Chapter: Why it is fast, or isn't.
    """
    return _peak(_dot, np.ones(128, np.uint8), DOT_OPERATIONS, threads, seconds)


def float_peak(threads: int = 1, seconds: float = 0.2) -> float:
    """Operations a second of float32 products and sums (``fma``).

    Chapter: Why it is fast, or isn't.
    """
    half = np.full(16, 0.5, np.float32).view(np.uint8)
    return _peak(_multiply_add, half, FMA_OPERATIONS, threads, seconds)


def _peak(loop: Any, data: np.ndarray, each: int, threads: int, seconds: float) -> float:
    sums = np.empty(64 * threads, np.uint8)

    def measure() -> float:
        took = fastest([lambda: loop(data, sums, STEPS, threads)], seconds)
        return threads * STEPS * each / took

    return _with_threads(threads, measure)


def _with_threads(threads: int, run: Callable[[], float]) -> float:
    """Run with that many of Numba's threads."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        return run()
    finally:
        numba.set_num_threads(before)


def product_runs(packed: Any, x: np.ndarray, copies: int = 1) -> list[Callable[[], np.ndarray]]:
    """Functions that multiply a packed weight by inputs, each with a copy of the weight.

    Args:
        packed: a ``PackedWeight``.
        x: float32 (tokens, in_features).
        copies: of the weight, so that by turns they do not stay in a near cache (cold).

    Each returns float32 (tokens, out_features), quantizing the inputs included.

    Chapter: Why it is fast, or isn't.
    """
    from qlab.kernels.cpu import linear
    from qlab.kernels.cpu.pack import aligned

    tokens, kind = len(x), int(packed.kind)
    work = np.empty(linear.work_bytes(x.shape[1], tokens), np.uint8)
    out = np.empty((tokens, packed.out_features), np.float32)
    shape = packed.arguments[2:]

    def of(buffer: np.ndarray) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            if tokens == 1:
                linear.quantize_input(kind, x[0], work)
                linear.gemv(kind, buffer, *shape, work, out[0])
            else:
                linear.quantize_inputs(kind, x, work)
                linear.gemm(kind, buffer, *shape, tokens, work, out)
            return out

        return run

    runs = [of(packed.buffer)]
    for _ in range(copies - 1):
        buffer = aligned(packed.nbytes)
        buffer[:] = packed.buffer
        runs.append(of(buffer))
    return runs
