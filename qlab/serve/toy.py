"""The scheduler without a model: what it decides, step by step, and what another way would cost.

Chapter: Serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.serve.scheduler import Handle, Request, Scheduler


class Toy:
    """A model that always writes token 1, and never ends a text by itself.

    Chapter: Serving.
    """

    vocabulary, ends = 100, ()

    def __init__(self, blocks: int, block_size: int, context: int = 1 << 20) -> None:
        self.blocks, self.block_size, self.context = blocks, block_size, context

    def copy(self, source: int, target: int) -> None:
        """Nothing is kept in the blocks."""

    def read(self, rows: np.ndarray, tables: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Logits for token 1."""
        logits = np.zeros((len(wanted), self.vocabulary), np.float32)
        logits[:, 1] = 1.0
        return logits


@dataclass(frozen=True)
class Frame:
    """What stood where after a step.

    Attributes:
        said: what the scheduler did, in words.
        states: a letter for each request: ``-`` not there yet, ``w`` waits, ``r`` reads its prompt,
            ``t`` writes a token, ``i`` has a place but did not take part, ``e`` has ended.
        owners: the requests that list each block.
        filled: how many tokens are in each block.

    Chapter: Serving.
    """

    said: tuple[str, ...]
    states: str
    owners: tuple[tuple[int, ...], ...]
    filled: tuple[int, ...]

    @property
    def used(self) -> int:
        """Tokens in the cache; shared ones count once."""
        return sum(self.filled)


def watch(
    scheduler: Scheduler,
    requests: Sequence[Request],
    arrivals: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    most: int = 10_000,
) -> list[Frame]:
    """Serve requests, and write down every step.

    Args:
        scheduler: of any model.
        requests: in the order of their arrival.
        arrivals: the step before which each comes, not falling (default: all before the first).
        names: of the requests, for what is said (default: A, B, ...).
        most: steps after which something must be wrong.

    Raises: QlabError for arrivals that fall, or are too few; or where it takes too many steps.

    Chapter: Serving.
    """
    arrivals = [0] * len(requests) if arrivals is None else list(arrivals)
    if len(arrivals) != len(requests) or arrivals != sorted(arrivals):
        raise QlabError("one arrival for each request, in order: none may come before the last")
    names = [chr(65 + i % 26) for i in range(len(requests))] if names is None else names
    handles: list[Handle] = []
    frames: list[Frame] = []
    while len(handles) < len(requests) or scheduler.busy:
        if len(frames) >= most:
            raise QlabError(f"not done after {most} steps: allow more")
        while len(handles) < len(requests) and arrivals[len(handles)] <= len(frames):
            handles.append(scheduler.submit(requests[len(handles)]))
        whose = {handle: i for i, handle in enumerate(handles)}
        listed = {h: list(h.table.blocks) if h.table else [] for h in handles}
        said, reads = [], {}
        for event in scheduler.step():
            i = whose[event.handle]
            name = names[i]
            if event.kind == "admitted":
                shared = f" and shares {event.count} tokens" if event.count else ""
                said.append(f"{name} is admitted{shared}")
            elif event.kind == "preempted":
                said.append(f"{name} is preempted: no block was free")
            elif event.kind == "copied":
                said.append(f"{name} copies a block before it writes")
            elif event.kind == "read":
                reads[i] = event.count
                if event.count > 1:
                    said.append(f"{name} reads {event.count} tokens")
            elif event.kind == "finished":
                said.append(f"{name} has ended")
        frames.append(_frame(scheduler, handles, len(requests), said, reads, listed))
    return frames


def _frame(
    scheduler: Scheduler,
    handles: list[Handle],
    count: int,
    said: list[str],
    reads: dict[int, int],
    before: dict[Handle, list[int]],
) -> Frame:
    pool = scheduler.pool
    owners: list[list[int]] = [[] for _ in range(pool.count)]
    filled = [0] * pool.count
    states = []
    for i, handle in enumerate(handles):
        if i in reads:
            states.append("t" if reads[i] == 1 else "r")
        elif handle.finish_reason is not None:
            states.append("e")
        else:
            states.append("i" if handle in scheduler.running else "w")
        if handle.table is None:
            continue
        for j, block in enumerate(handle.table.blocks):
            owners[block].append(i)
            here = min(pool.size, handle.table.length - j * pool.size)
            filled[block] = max(filled[block], here)
    return Frame(
        tuple(said),
        "".join(states).ljust(count, "-"),
        tuple(map(tuple, owners)),
        tuple(filled),
    )


@dataclass(frozen=True)
class Cost:
    """What serving some requests took.

    Attributes:
        steps: of the model.
        working: share of the places that gave a token, over all steps.
        held: tokens of cache that were held for texts, summed over the steps.
        used: tokens that were in it, summed over the steps.

    Chapter: Serving.
    """

    steps: int
    working: float
    held: int
    used: int

    @property
    def waste(self) -> float:
        """Share of the held cache that nothing was in."""
        return 1 - self.used / self.held


def static_cost(
    prompts: Sequence[int], new: Sequence[int], places: int, room: int | None = None
) -> Cost:
    """Static batching: the next batch starts when the last text of this one has ended.

    A step reads the prompts of a batch, or one token of each text. Cache is held for each text of a
    batch until the batch ends.

    Args:
        prompts, new: tokens that each text reads and writes; in the order of their arrival.
        places: texts of a batch.
        room: tokens of cache held for each text (default: what the longest of the batch needs).

    Chapter: Serving.
    """
    steps = worked = held = used = 0
    for start in range(0, len(prompts), places):
        here = list(zip(prompts, new, strict=True))[start : start + places]
        most = max(n for _, n in here)
        size = max(p + n for p, n in here) if room is None else room
        steps += most
        worked += sum(n for _, n in here)
        held += most * size * len(here)
        # In step s, 0 ... most - 1, the tokens of the prompt and those written before are there.
        used += sum(p + min(s, n - 1) for s in range(most) for p, n in here)
    return Cost(steps, worked / (steps * places), held, used)


def continuous_cost(
    prompts: Sequence[int], new: Sequence[int], places: int, block_size: int
) -> Cost:
    """Continuous batching on a paged cache, as ``Scheduler`` does it with room for all.

    Chapter: Serving.
    """
    longest = max(p + n for p, n in zip(prompts, new, strict=True))
    toy = Toy(places * (-(-longest // block_size) + 1), block_size)
    scheduler: Any = Scheduler(toy, places, step_tokens=sum(prompts) + places, share=False)
    held = used = worked = steps = 0
    for length, count in zip(prompts, new, strict=True):
        scheduler.submit(Request([0] * length, count, stop=()))
    read = toy.read

    def counting(rows: np.ndarray, tables: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        nonlocal held, used, worked
        held += (scheduler.pool.count - scheduler.pool.free) * block_size
        used += sum(h.table.length for h in scheduler.running)
        worked += len(wanted)
        return read(rows, tables, wanted)

    toy.read = counting  # type: ignore[method-assign]
    while scheduler.busy:
        scheduler.step()
        steps += 1
    return Cost(steps, worked / (steps * places), held, used)
