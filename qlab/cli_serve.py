"""The command ``qlab serve``; the other commands are in ``qlab.cli``."""

from __future__ import annotations

import argparse
from typing import Any


def add_serve(commands: Any) -> None:
    """Add the command to those of ``qlab``.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    c = commands.add_parser(
        "serve",
        help="Serve a model over HTTP, in the form of OpenAI's API.",
        description="Serve a model over HTTP, in the form of OpenAI's API, with continuous "
        "batching on a paged cache. Stop it with Ctrl-C: open answers are brought to an end.",
        epilog="example:\n  qlab serve story --scheme int4-g128 --port 8000\n"
        "  curl localhost:8000/v1/completions -H 'content-type: application/json' \\\n"
        '    -d \'{"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}\'',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.set_defaults(run=_serve)
    c.add_argument("source", metavar="SRC", help="story, a model folder, a GGUF file, or a hub id")
    c.add_argument("--scheme", help="quantize the weights first, such as int4-g128")
    c.add_argument("--method", default="rtn", help="how codes are chosen (default: rtn)")
    c.add_argument("--name", help="of the model in requests (default: SRC)")
    c.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for all networks")
    c.add_argument("--port", type=int, default=8000, help="default: 8000")
    c.add_argument("--max-running", type=int, default=8, help="texts in a step (default: 8)")
    c.add_argument("--max-waiting", type=int, default=128, help="then 429 (default: 128)")
    c.add_argument("--blocks", type=int, help="of 32 tokens in the cache (default: enough for all)")
    c.add_argument("--step-tokens", type=int, default=256, help="read in a step (default: 256)")
    c.add_argument("--cache", default="fp32", choices=("fp32", "int8"), help="of keys and values")
    c.add_argument("--threads", type=int, help="for a step (default: all processors)")
    c.add_argument("--api-key", metavar="KEY", help="refuse requests without it")


def _serve(args: argparse.Namespace) -> None:
    from qlab.core import Scheme
    from qlab.errors import QlabError
    from qlab.serve.app import make_app
    from qlab.serve.running import listen, serve

    if not 0 <= args.port < 1 << 16:
        raise QlabError(f"--port {args.port}: from 0 (any free one) to 65535")
    if args.scheme:
        Scheme.parse(args.scheme)  # bad words are refused before a large model is read
    socket = listen(args.host, args.port)
    app = make_app(
        args.source,
        name=args.name,
        scheme=args.scheme,
        method=args.method,
        max_running=args.max_running,
        max_waiting=args.max_waiting,
        blocks=args.blocks,
        step_tokens=args.step_tokens,
        kind=args.cache,
        threads=args.threads,
        api_key=args.api_key,
    )
    names = ", ".join(app.state.services)
    print(f"serving {names} on http://{args.host}:{socket.getsockname()[1]}", flush=True)
    serve(app, socket)
