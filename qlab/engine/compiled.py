"""The two compiled functions that Python calls, and the line that is shown while they compile.

``forward`` reads tokens, ``write`` chooses and reads in turn. Each is compiled once for a machine,
which takes a minute or so, and is kept on disk (``kernels/cpu/jit.py``).

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from qlab.engine.forward import POSITION, TOKEN
from qlab.engine.forward import forward as forward
from qlab.engine.sample import choose, penalize
from qlab.kernels.cpu.jit import jit

PATIENCE = 2.0  # seconds before a line is shown


@jit()
def write(rows, logits, over, last, s, eps, w, store, how, state, seen, ends, out):
    """Choose a token for each sequence and read it, ``len(out)`` times.

    Args:
        rows: int64 (sequences, 3): the row that a sequence will read next; its position advances.
        logits: float32 (sequences, vocabulary), of the tokens read last; written.
        over: bool (sequences,), which sequences have ended; written.
        last: whether nothing comes after these, so that the last tokens need not be read.
        how, state: the ``Choice``, and uint64 (sequences,), the states of the generators.
        seen: bool (sequences, vocabulary), which tokens a text has; written. It is looked at where
            there is a penalty for them.
        ends: int64, tokens that end a text.
        out: int64 (steps, sequences), -1 at first: the tokens, where there are any.
    """
    n = len(rows)
    kept, weights = np.empty(s.vocabulary, np.int64), np.empty(s.vocabulary, np.float32)
    live, trace = np.empty(n, np.int64), np.empty((0, 0, 0), np.float32)
    for step in range(len(out)):
        count = 0
        for i in range(n):
            if over[i]:
                continue
            if how.repetition_penalty != 1.0:
                penalize(logits[i], seen[i], how.repetition_penalty)
            token = choose(logits[i], how, state[i : i + 1], kept, weights)
            seen[i, token] = True
            for end in ends:
                if token == end:
                    over[i] = True
            if not over[i]:
                out[step, i], rows[i, TOKEN], live[count] = token, token, i
                count += 1
        if count == 0 or (last and step == len(out) - 1):
            return
        if count == n:
            forward(rows, np.arange(n), s, eps, w, store, trace, logits)
        else:
            some = np.empty((count, s.vocabulary), np.float32)
            forward(rows[live[:count]], np.arange(count), s, eps, w, store, trace, some)
            for i in range(count):
                for j in range(s.vocabulary):
                    logits[live[i], j] = some[i, j]
        for i in range(count):
            rows[live[i], POSITION] += 1


def call(function: Any, progress: bool | None, *args: Any) -> None:
    """Call a compiled function; say so on standard error while it is compiled.

    ``progress``: whether to say it; None: where a person looks on.
    """
    if function.signatures:  # it is in this process already
        function(*args)
        return
    with _line(sys.stderr.isatty() if progress is None else progress):
        function(*args)


@contextlib.contextmanager
def _line(shown: bool) -> Iterator[None]:
    """A line that counts the seconds, once there are more than two."""
    done, began = threading.Event(), time.monotonic()
    again = "\r" if sys.stderr.isatty() else "\n"

    def count() -> None:
        pause = PATIENCE
        while not done.wait(pause):
            seconds = int(time.monotonic() - began)
            said = f"compiling the engine for this machine, once: {seconds} s"
            print(said, end=again, file=sys.stderr, flush=True)
            pause = 1.0 if again == "\r" else 15.0

    thread = threading.Thread(target=count, daemon=True)
    if shown:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if shown:
            thread.join()
            if time.monotonic() - began > PATIENCE and again == "\r":
                print(file=sys.stderr)
