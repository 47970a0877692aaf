"""The thread that steps a scheduler for as long as there is somebody to serve.

The web server runs in one thread, and must not wait for a model. It hands requests over, and hears
of every event through a function that it gave with the request.

Chapter: Serving.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from qlab.errors import QlabError
from qlab.serve.scheduler import Event, Handle, Request, Scheduler

Listener = Callable[[Event], None]
# Workers of several models take turns: a step uses all processors, and Numba's simplest way of
# starting threads allows one caller at a time.
_TURN = threading.Lock()


class Full(QlabError):
    """Too many requests wait: come back later."""


class Worker:
    """Steps one scheduler in a thread of its own.

    Args:
        scheduler: used by this thread alone from now on.
        max_waiting: requests that may wait in the line.
        observe: called in the worker's thread with each handle that has ended.

    Attributes:
        failure: the last exception that a step raised, or None. All texts that ran then ended
            with ``error``; the worker goes on with new ones. One of ``observe`` is kept here, too,
            and ends nothing.

    Chapter: Serving.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        max_waiting: int = 128,
        observe: Callable[[Handle], None] | None = None,
    ) -> None:
        self.scheduler, self.max_waiting, self.observe = scheduler, max_waiting, observe
        self.failure: Exception | None = None
        self._inbox: list[tuple[str, Handle]] = []
        self._listeners: dict[Handle, Listener] = {}
        self._bell = threading.Condition()
        self._ending = False
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread is not None and self._thread.is_alive() and not self._ending

    @property
    def waiting(self) -> int:
        """Requests that are in the line, or on their way to it."""
        coming = sum(what == "submit" for what, _ in self._inbox)
        return len(self.scheduler.waiting) + coming

    def start(self) -> None:
        """Start the thread; nothing happens where it runs already."""
        if not self.alive:
            self._ending = False
            self._thread = threading.Thread(target=self._loop, name="qlab-worker", daemon=True)
            self._thread.start()

    def submit(self, request: Request, listener: Listener) -> Handle:
        """Put a request into the line. The listener is called in the worker's thread.

        Raises: QlabError for a request that cannot be served; ``Full`` where too many wait.
        """
        handle = self.scheduler.handle(request)
        with self._bell:
            if not self.alive:
                raise Full("the server is going down: send the request to another")
            if self.waiting >= self.max_waiting:
                raise Full(f"{self.waiting} requests wait already: try again later")
            self._listeners[handle] = listener
            self._inbox.append(("submit", handle))
            self._bell.notify()
        return handle

    def cancel(self, handle: Handle) -> None:
        """End a text; its listener hears of that."""
        with self._bell:
            self._inbox.append(("cancel", handle))
            self._bell.notify()

    def stop(self, timeout: float | None = None) -> None:
        """Take no more requests, bring to an end what runs, and end the thread.

        Args:
            timeout: seconds after which what still runs is cancelled (None: no limit).
        """
        with self._bell:
            self._ending = True
            self._bell.notify()
        if self._thread is None or not self._thread.is_alive():
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            for handle in list(self._listeners):
                self.cancel(handle)
            self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._bell:
                while not (self._inbox or self.scheduler.busy or self._ending):
                    self._bell.wait()
                inbox, self._inbox = self._inbox, []
                if self._ending and not (inbox or self.scheduler.busy):
                    return
                events = []
                for what, handle in inbox:
                    if what == "submit":
                        self.scheduler.submit(handle)
                    else:
                        events += self.scheduler.cancel(handle)
            try:
                with _TURN:
                    events += self.scheduler.step()
            except Exception as error:  # the server must outlive it, and say it
                self.failure = error
                for handle in [*self.scheduler.running, *self.scheduler.waiting]:
                    events += self.scheduler.cancel(handle, "error")
            self._tell(events)
            time.sleep(0)  # let the web server's thread have a turn

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            listener = self._listeners.get(event.handle)
            if event.kind == "finished":
                self._listeners.pop(event.handle, None)
                if self.observe is not None:
                    try:
                        self.observe(event.handle)
                    except Exception as error:  # who looks on must not stop the answers
                        self.failure = error
            if listener is not None and event.kind in ("token", "finished"):
                listener(event)


def wait_for(worker: Worker, request: Request, timeout: float | None = None) -> Any:
    """Serve one request and wait for its end. Returns: its ``Handle``.

    Raises: QlabError where it cannot be served, or is not ended in time.
    """
    done = threading.Event()
    handle = worker.submit(request, lambda event: done.set() if event.kind == "finished" else None)
    if not done.wait(timeout):
        worker.cancel(handle)
        raise QlabError(f"no answer within {timeout} s: give it more time, or ask for fewer tokens")
    return handle
