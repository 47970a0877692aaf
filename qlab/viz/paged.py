"""Figure: what a scheduler decides, step by step, and which blocks of the cache belong to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture


def paged(
    runs: dict[str, Sequence[Any]], about: dict[str, Sequence[str]], block_size: int
) -> Picture:
    """The blocks and the texts after each step of some runs.

    Args:
        runs: title -> frames, as ``qlab.serve.toy.watch`` gives them.
        about: title -> a few words on each request; they are called A, B, ...
        block_size: tokens of a block.

    Chapter: Serving.
    """
    first = next(iter(runs.values()))
    rows = [
        (i + 1, "; ".join(f.said) or "each text writes a token", f.used, _taken(f))
        for i, f in enumerate(first)
    ]
    return figure(
        "paged",
        {
            "size": block_size,
            "runs": [
                {
                    "title": title,
                    "names": [chr(65 + i) for i in range(len(about[title]))],
                    "about": list(about[title]),
                    "frames": [
                        {
                            "said": list(f.said),
                            "states": f.states,
                            "owners": [list(o) for o in f.owners],
                            "filled": list(f.filled),
                        }
                        for f in frames
                    ],
                }
                for title, frames in runs.items()
            ],
        },
        alt="Two pictures of a server's cache and its requests after a step: squares for the "
        "blocks of the cache with the letters of the texts that list them, and a row for each "
        "request that shows in which steps it waited, read its prompt and wrote.",
        caption="Which texts take part in a step, and whose block is whose? Move the step with the "
        "slider, the buttons or the arrow keys, and choose the run.",
        fallback=table(("step", "what happens", "tokens in the cache", "blocks in use"), rows),
    )


def _taken(frame: Any) -> int:
    return sum(bool(o) for o in frame.owners)
