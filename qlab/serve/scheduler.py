"""Continuous batching: before every step it is decided anew which texts take part in it.

A step reads some tokens of some texts in one call of the model, and a text whose tokens are all
read gets its next token. Requests wait in a line. Before a step

1. those at the head of the line are admitted while there is a place and the cache has blocks for
   their prompts. A prompt that begins like a text that is there already shares its blocks;
2. every text gets as many of its unread tokens into the step as the step has room for: one while it
   writes, many while its prompt is read (long prompts are read in several steps, so that those who
   write need not wait);
3. where a text needs a block and none is free, the text that came last is preempted: it loses its
   blocks, goes back to the head of the line, and is read again later.

The first of those that run is never preempted, and every request fits into the cache alone. So each
step brings somebody forward, and everybody comes to an end.

Sources: Yu et al. 2022, Orca, OSDI 2022 (a new batch each step); Kwon et al. 2023,
arXiv 2309.06180, section 4.5 (preemption by reading again); Agrawal et al. 2023, SARATHI,
arXiv 2308.16369, section 4 (long prompts in parts).

Chapter: Serving.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qlab.errors import QlabError
from qlab.serve.blocks import BlockPool, Table

ENDINGS = ("stop", "length", "cancelled", "error")


class Model(Protocol):
    """What the scheduler needs of a model: ``qlab.serve.paged.PagedEngine``, or a toy."""

    context: int
    vocabulary: int
    ends: tuple[int, ...]
    block_size: int
    blocks: int

    def read(self, rows: np.ndarray, tables: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Read rows (token, text, position); logits float32 (wanted, vocabulary)."""

    def copy(self, source: int, target: int) -> None:
        """Copy what is in one block to another."""


@dataclass(frozen=True)
class Request:
    """What somebody asks for.

    Attributes:
        prompt: token ids; at least one.
        max_tokens: write at most this many; at least 1.
        temperature, top_k, top_p, min_p, repetition_penalty: as for ``Engine.generate``;
            temperature 0 is greedy.
        seed: of the draws. The same seed gives the same tokens, whatever runs beside it.
        stop: ids that end the text and are not given (None: the model's).
        logprobs: how many of the likeliest tokens to name at each place (None: no log
            probabilities at all).

    Chapter: Serving.
    """

    prompt: Sequence[int]
    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: Sequence[int] | None = None
    logprobs: int | None = None
    repetition_penalty: float = 1.0


@dataclass(eq=False)
class Handle:
    """A request on its way.

    Attributes:
        id: 0, 1, ... in the order of arrival.
        request: what was asked for.
        tokens: what has been written so far.
        finish_reason: None while it goes on, then ``stop``, ``length``, ``cancelled``, ``error``.
        preempted: how many times its blocks were taken away.
        shared: tokens of its prompt that another text had read already.
        arrived, first_token, finished: times by the scheduler's clock, in seconds, or None.
        note: room for what its owner wants to remember.

    Chapter: Serving.
    """

    id: int
    request: Request
    arrived: float
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    preempted: int = 0
    shared: int = 0
    first_token: float | None = None
    finished: float | None = None
    note: Any = None
    # Below: the scheduler's own.
    text: list[int] = field(default_factory=list)  # the prompt, and what has been written
    table: Table | None = None
    state: Any = None  # of the generator
    how: Any = None  # the Choice
    ends: frozenset[int] = frozenset()

    @property
    def unread(self) -> int:
        """Tokens of the text that are not in the cache."""
        return len(self.text) - (self.table.length if self.table else 0)


@dataclass(frozen=True)
class Event:
    """What a step did.

    Attributes:
        kind: ``admitted``, ``preempted``, ``copied`` (a block, on write), ``read`` (tokens),
            ``token`` (one was written), ``finished``.
        handle: whose.
        count: tokens shared with others (admitted) or read (read).
        token: its id.
        logprob: natural logarithm of its probability at temperature 1, where asked for.
        top: the likeliest tokens and theirs, where asked for.

    Chapter: Serving.
    """

    kind: str
    handle: Handle
    count: int = 0
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Scheduler:
    """Requests in, tokens out, step by step.

    Args:
        engine: from ``qlab.engine.load``, or any ``Model``.
        max_running: texts that may take part in a step.
        blocks: of the cache (default: enough for ``max_running`` texts as long as the context).
        step_tokens: tokens that a step reads at most; at least ``max_running``.
        kind: of the cache, ``fp32`` or ``int8``.
        share: let prompts that begin alike share blocks.
        clock: for the times of handles, in seconds.

    Attributes:
        waiting, running: handles.
        steps, read_tokens, written_tokens, shared_tokens, preemptions: counts since the start.

    Raises: QlabError for settings out of range.

    Chapter: Serving.
    """

    def __init__(
        self,
        engine: Any,
        max_running: int = 8,
        blocks: int | None = None,
        step_tokens: int = 256,
        kind: str = "fp32",
        share: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_running < 1:
            raise QlabError(f"max_running {max_running}: at least 1")
        if step_tokens < max_running:
            raise QlabError(
                f"step_tokens {step_tokens}: at least max_running, {max_running}, so that every "
                "text can go on"
            )
        if not hasattr(engine, "read"):
            from qlab.serve.paged import PagedEngine

            whole = -(-engine.context // PagedEngine.block_size)
            engine = PagedEngine(engine, blocks or whole * max_running, kind)
        self.model: Model = engine
        self.pool = BlockPool(engine.blocks, engine.block_size)
        self.max_running, self.step_tokens, self.share = max_running, step_tokens, share
        self.waiting: list[Handle] = []
        self.running: list[Handle] = []
        self.steps = self.read_tokens = self.written_tokens = 0
        self.shared_tokens = self.preemptions = 0
        self._clock, self._ids = clock, itertools.count()

    @property
    def busy(self) -> bool:
        """Whether anybody waits or runs."""
        return bool(self.waiting or self.running)

    def warm_up(self) -> None:
        """Read one token, so that the engine is compiled before somebody waits for it."""
        if not self.busy:
            rows = np.zeros((1, 3), np.int64)
            self.model.read(rows, np.zeros((1, 1), np.int64), np.zeros(1, np.int64))

    # --- coming and going ---------------------------------------------------------------------

    def handle(self, request: Request) -> Handle:
        """A handle for a request that was found good, not yet in the line. Safe in any thread.

        Raises: QlabError, with the reason, for one that could never be served.
        """
        from qlab.engine.sample import choice

        how = choice(
            request.temperature,
            request.top_k,
            request.top_p,
            request.min_p,
            request.repetition_penalty,
        )
        prompt = [int(t) for t in request.prompt]
        if not prompt:
            raise QlabError("the prompt has no tokens: give at least one")
        wrong = [t for t in prompt if not 0 <= t < self.model.vocabulary]
        if wrong:
            raise QlabError(f"token {wrong[0]}: this model knows 0 to {self.model.vocabulary - 1}")
        if request.max_tokens < 1:
            raise QlabError(f"max_tokens {request.max_tokens}: at least 1")
        if request.logprobs is not None and request.logprobs < 0:
            raise QlabError(f"logprobs {request.logprobs}: 0 or more")
        length = len(prompt) + request.max_tokens
        if length > self.model.context:
            raise QlabError(
                f"{len(prompt)} tokens of prompt and {request.max_tokens} new ones: this model "
                f"takes {self.model.context} in all; ask for fewer"
            )
        if self.pool.needed(length) > self.pool.count:
            raise QlabError(
                f"{length} tokens need {self.pool.needed(length)} blocks of the cache, which has "
                f"{self.pool.count}: ask for fewer, or give the server a larger cache"
            )
        return Handle(
            next(self._ids),
            request,
            self._clock(),
            text=prompt,
            state=np.array([request.seed % 2**64], np.uint64),
            how=how,
            ends=frozenset(self.model.ends if request.stop is None else request.stop),
        )

    def submit(self, request: Request | Handle) -> Handle:
        """Put a request at the end of the line. Raises: QlabError as ``handle`` does."""
        handle = self.handle(request) if isinstance(request, Request) else request
        self.waiting.append(handle)
        return handle

    def cancel(self, handle: Handle, reason: str = "cancelled") -> list[Event]:
        """End a text now. Nothing happens where it has ended already."""
        if handle.finish_reason is not None:
            return []
        for line in (self.waiting, self.running):
            if handle in line:
                line.remove(handle)
        return [self._finish(handle, reason)]

    def _finish(self, handle: Handle, reason: str) -> Event:
        if handle.table is not None:
            handle.table.clear()
            handle.table = None
        handle.finish_reason, handle.finished = reason, self._clock()
        return Event("finished", handle)

    # --- a step -------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Decide, read once, and write. Returns: what happened, in order."""
        events: list[Event] = []
        self._admit(events)
        plan = self._plan(events)
        if plan:
            self._run(plan, events)
        self.steps += 1
        return events

    def run(self) -> list[Event]:
        """Steps until nobody waits or runs."""
        events = []
        while self.busy:
            events += self.step()
        return events

    def _admit(self, events: list[Event]) -> None:
        while self.waiting and len(self.running) < self.max_running:
            head = self.waiting[0]
            table, count, better = self._beginning(head)
            # A text that reads the same beginning just now: with it in the cache there is more to
            # share, one step later.
            if better >= count + self.pool.size:
                table.clear()
                return
            # One block more than it needs now, so that it is not preempted at once.
            if self.running and table.cost(head.unread - count) + 1 > self.pool.free:
                table.clear()
                return
            self.waiting.pop(0)
            head.table, head.shared = table, count
            self.shared_tokens += count
            self.running.append(head)
            events.append(Event("admitted", head, count))

    def _beginning(self, new: Handle) -> tuple[Table, int, int]:
        """A table that shares what others have read, how many tokens that are, and how many it
        could be once they have read all they know."""
        best, count, later = None, 0, 0
        for other in self.running if self.share else []:
            # At least one token of one's own has to be read, for its logits.
            alike = _common(new.text[:-1], other.text)
            read = min(alike, other.table.length if other.table else 0)
            later = max(later, alike)
            if read > count:
                best, count = other, read
        if best is None or best.table is None:
            return Table(self.pool), 0, later
        return best.table.fork(count), count, later

    def _plan(self, events: list[Event]) -> dict[int, Handle]:
        """Who takes part, with room in the cache: place of its first token in the step -> whom."""
        room, counts = self.step_tokens, {}
        # Those who write come first, then prompts; among them those who came first.
        for handle in sorted(self.running, key=lambda h: (h.unread > 1, h.id)):
            if handle not in self.running:  # preempted meanwhile
                continue
            count, table = min(handle.unread, room), handle.table
            while table is not None and handle in self.running:
                if table.cost(count) <= self.pool.free:
                    copy = table.append(count)
                    if copy is not None:
                        self.model.copy(*copy)
                        events.append(Event("copied", handle))
                    counts[handle.id] = count
                    room -= count
                    break
                last = max(self.running, key=lambda h: h.id)
                room += counts.pop(last.id, 0)
                self._preempt(last, events)
        self.running.sort(key=lambda h: h.id)
        plan, at = {}, 0
        for handle in self.running:
            if counts.get(handle.id):
                plan[at] = handle
                at += counts[handle.id]
                events.append(Event("read", handle, counts[handle.id]))
        self.read_tokens += at
        return plan

    def _preempt(self, handle: Handle, events: list[Event]) -> None:
        if handle.table is not None:
            handle.table.clear()
        handle.table = None
        handle.preempted += 1
        self.preemptions += 1
        self.running.remove(handle)
        # Those who came earlier stay before it. They can be there only if they were preempted.
        before = sum(h.id < handle.id for h in self.waiting)
        self.waiting.insert(before, handle)
        events.append(Event("preempted", handle))

    def _run(self, plan: dict[int, Handle], events: list[Event]) -> None:
        starts = [*plan, sum(e.count for e in events if e.kind == "read")]
        rows = np.empty((starts[-1], 3), np.int64)
        handles = list(plan.values())
        widest = max(len(h.table.blocks) for h in handles if h.table)
        tables = np.zeros((len(handles), widest), np.int64)
        wanted, done = [], []
        for i, handle in enumerate(handles):
            assert handle.table is not None
            first, last = starts[i], starts[i + 1]
            end = handle.table.length
            begin = end - (last - first)
            rows[first:last, 0] = handle.text[begin:end]
            rows[first:last, 1] = i
            rows[first:last, 2] = np.arange(begin, end)
            tables[i, : len(handle.table.blocks)] = handle.table.blocks
            if end == len(handle.text):
                wanted.append(last - 1)
                done.append(handle)
        logits = self.model.read(rows, tables, np.array(wanted, np.int64))
        for handle, one in zip(done, logits, strict=True):
            self._write(handle, one, events)

    def _write(self, handle: Handle, logits: np.ndarray, events: list[Event]) -> None:
        token = _choose(logits, handle)
        if token in handle.ends:
            self.running.remove(handle)
            events.append(self._finish(handle, "stop"))
            return
        if handle.first_token is None:
            handle.first_token = self._clock()
        handle.text.append(token)
        handle.tokens.append(token)
        self.written_tokens += 1
        logprob, top = _logprobs(logits, token, handle.request.logprobs)
        events.append(Event("token", handle, token=token, logprob=logprob, top=top))
        if len(handle.tokens) == handle.request.max_tokens:
            self.running.remove(handle)
            events.append(self._finish(handle, "length"))


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _choose(logits: np.ndarray, handle: Handle) -> int:
    if handle.how.repetition_penalty != 1.0:
        from qlab.engine.sample import penalize

        seen = np.zeros(len(logits), np.bool_)
        seen[handle.text] = True
        logits = logits.copy()  # the log probabilities that are told are the model's own
        penalize(logits, seen, handle.how.repetition_penalty)
    if handle.how.temperature == 0.0:
        return int(np.argmax(logits))  # of equal ones the first, as the engine does
    from qlab.engine.sample import choose

    kept, weights = np.empty(len(logits), np.int64), np.empty(len(logits), np.float32)
    return int(choose(logits, handle.how, handle.state, kept, weights))


def _logprobs(
    logits: np.ndarray, token: int, count: int | None
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Natural logarithms of the probabilities of a token and of the likeliest ones."""
    if count is None:
        return None, ()
    z = logits.astype(np.float64)
    z -= z.max()
    z -= np.log(np.exp(z).sum())
    best = np.argsort(-z, kind="stable")[:count]
    return float(z[token]), tuple((int(i), float(z[i])) for i in best)
