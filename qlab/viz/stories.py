"""Figure: two continuations of the same opening, side by side."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from qlab.viz.interactive import figure
from qlab.viz.style import Picture


def side_by_side(openings: Sequence[str], continuations: Mapping[str, Sequence[str]]) -> Picture:
    """Choose an opening and two tellers; words that differ are marked.

    Args:
        openings: how the stories begin.
        continuations: teller -> its continuation of each opening.
    """
    names = list(continuations)
    for name in names:
        if len(continuations[name]) != len(openings):
            raise ValueError(
                f"'{name}' has {len(continuations[name])} continuations for "
                f"{len(openings)} openings"
            )
    first = "".join(
        f"<p><b>{html.escape(n)}</b>: {html.escape(openings[0])} "
        f"{html.escape(continuations[n][0])}</p>"
        for n in names
    )
    return figure(
        "stories",
        {
            "openings": list(openings),
            "names": names,
            "texts": [list(continuations[n]) for n in names],
        },
        alt="Two continuations of the same opening beside each other, with the words that differ "
        "marked.",
        caption="Where do two tellers part? Choose an opening and two tellers. Words that the "
        "other text does not have in the same order are marked.",
        fallback=first,
    )
