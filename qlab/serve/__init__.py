"""Serving: many requests on one engine, with a paged cache and continuous batching.

    with qlab.serve.RunningServer(qlab.serve.make_app("story")) as server:
        httpx.post(server.url + "/v1/completions", json={"prompt": "Once upon a time"})

Chapter: Serving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qlab.serve.blocks import BlockPool, Table
from qlab.serve.scheduler import Event, Handle, Request, Scheduler

if TYPE_CHECKING:
    from qlab.serve.app import make_app
    from qlab.serve.running import RunningServer

__all__ = [
    "BlockPool",
    "Event",
    "Handle",
    "Request",
    "RunningServer",
    "Scheduler",
    "Table",
    "make_app",
]


def __getattr__(name: str) -> Any:
    """The server's parts need the extra ``serve``: they are imported when they are asked for."""
    if name == "make_app":
        from qlab.serve.app import make_app

        return make_app
    if name == "RunningServer":
        from qlab.serve.running import RunningServer

        return RunningServer
    raise AttributeError(f"module 'qlab.serve' has no attribute '{name}'")
