"""Work on the pieces of a tensor, on as many threads as torch has.

torch divides each single operation among its threads, which meet again at its end. On pieces that
fit the cache that is a meeting every few microseconds, and where another program holds a core, each
meeting waits for that program. So here a thread takes a whole piece instead, and torch does not
divide what the thread does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qlab.core._array import Array, is_torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor | None] = {}  # number of threads -> its pool, or None
if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pools.clear)


def each(work: Callable[[Piece], Result], pieces: Sequence[Piece], x: Array) -> list[Result]:
    """``[work(p) for p in pieces]``, on torch's number of threads where that is safe.

    Safe are plain torch tensors on the CPU without a gradient: what torch keeps for each thread
    (recording gradients, inference mode, tracing) does not matter to them. ``work`` must not depend
    on the order of the pieces.
    """
    pool = _pool(x) if len(pieces) > 1 else None
    return [work(p) for p in pieces] if pool is None else list(pool.map(work, pieces))


def _pool(x: Array) -> ThreadPoolExecutor | None:
    if not is_torch(x):
        return None
    import torch

    plain = type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == "cpu"
    if not plain or x.is_inference() or (x.requires_grad and torch.is_grad_enabled()):
        return None
    count = torch.get_num_threads()
    if count == 1 or threading.current_thread().name.startswith("qlab-"):
        return None
    with _lock:
        if count not in _pools:
            _pools[count] = _start(count)
        return _pools[count]


def _start(count: int) -> ThreadPoolExecutor | None:
    """Threads that each count as one for torch; None where torch does not keep that per thread.

    A thread takes over torch's number of threads when it first asks for it, so that number is 1
    while they start.
    """
    import torch

    started = threading.Barrier(count)

    def ask(_: int) -> int:
        started.wait()  # each thread once
        return int(torch.get_num_threads())

    pool = ThreadPoolExecutor(count, thread_name_prefix="qlab-")
    torch.set_num_threads(1)
    try:
        list(pool.map(ask, range(count)))
    finally:
        torch.set_num_threads(count)
    if list(pool.map(ask, range(count))) == [1] * count:
        return pool
    pool.shutdown()
    return None
