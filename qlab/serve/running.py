"""A web server: in a thread for a chapter, a notebook or a test, or for as long as the process.

Chapter: Serving.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from qlab.errors import QlabError

PATIENCE = 30.0  # seconds for the start
GRACE = 10  # seconds that open answers have at the end


def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket on a port; 0 is any free one. Raises: QlabError where it cannot be had."""
    # The protocol is named, since asyncio turns off Nagle's algorithm only where it says TCP: small
    # pieces of a stream would wait for one another, 40 ms each.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(128)
    except OSError as error:
        found.close()
        reason = error.strerror or error
        raise QlabError(f"port {port} of '{host}': {reason}; choose another, or 0") from None
    return found


def serve(app: Any, found: socket.socket, grace: int = GRACE) -> None:
    """Serve until the process is told to stop (Ctrl-C, SIGTERM). Open answers come to an end."""
    _server(app, grace).run(sockets=[found])


def _server(app: Any, grace: int) -> Any:
    try:
        import uvicorn
    except ImportError:
        raise QlabError("serving needs Starlette and uvicorn: pip install 'qlab[serve]'") from None
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=grace
    )
    return uvicorn.Server(config)


class RunningServer:
    """An application on a free port of this machine, for as long as a ``with`` block lasts.

    Args:
        app: a Starlette application, such as ``make_app`` returns.
        port: 0 is any free one.
        grace: seconds that open answers have when it stops.

    Attributes:
        url: such as ``http://127.0.0.1:43210``.

    Raises: QlabError where the port is taken, or the server does not start.

    Chapter: Serving.
    """

    def __init__(self, app: Any, port: int = 0, grace: int = GRACE) -> None:
        self.app = app
        self._server = _server(app, grace)
        self._socket = listen("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> RunningServer:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()

    def start(self) -> RunningServer:
        """Start it without a ``with`` block; ``stop`` must follow. Returns: itself."""
        self._thread.start()
        began = time.monotonic()
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() - began > PATIENCE:
                self.stop()
                raise QlabError("the server did not start: see its message above")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Bring open answers to an end, and stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
