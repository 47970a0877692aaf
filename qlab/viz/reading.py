"""Figure: a blind reading of two tellers."""

from __future__ import annotations

import html
from collections.abc import Sequence

from qlab.errors import QlabError
from qlab.evaluate.significance import wilson
from qlab.viz.interactive import figure
from qlab.viz.style import Picture


def reading(
    openings: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    names: tuple[str, str] = ("full precision", "quantized"),
) -> Picture:
    """Read two continuations of each opening without knowing whose they are, and vote.

    The page decides by chance which of the two stands left, shows who was who after the last vote,
    and says what the votes show. Votes stay in the page: they are sent nowhere and kept nowhere.

    Args:
        openings: how the stories begin.
        first, second: the continuations of each opening by the two tellers.
        names: of the tellers.

    Raises: QlabError without openings, for lists of different lengths, or two equal names. Pairs of
        equal continuations are left out, since no vote on them would mean anything; if none is
        left, an error says so.
    """
    if not openings or not len(openings) == len(first) == len(second):
        raise QlabError(
            f"{len(openings)} openings, {len(first)} and {len(second)} continuations: "
            "give two of them for each opening"
        )
    if names[0] == names[1]:
        raise QlabError(f"two tellers named '{names[0]}': give them different names")
    pairs = [
        (o, a, b) for o, a, b in zip(openings, first, second, strict=True) if a.split() != b.split()
    ]
    if not pairs:
        raise QlabError("the two tellers say the same everywhere: there is nothing to vote on")
    table = [
        [[wilson(k, n).low, wilson(k, n).high] for k in range(n + 1)]
        for n in range(1, len(pairs) + 1)
    ]
    fallback = "".join(
        f"<p><b>{html.escape(o)}</b></p><p>A: {html.escape(a)}</p><p>B: {html.escape(b)}</p>"
        for o, a, b in pairs[:1]
    )
    return figure(
        "reading",
        {
            "openings": [o for o, _, _ in pairs],
            "texts": [[a, b] for _, a, b in pairs],
            "names": list(names),
            # Interval of the share for each number of votes: computed here, looked up there.
            "intervals": [[[round(x, 4) for x in ends] for ends in row] for row in table],
        },
        alt="Two continuations of the same opening, marked A and B in a random order, with buttons "
        "to vote for one of them; the tellers are named after the last vote.",
        caption="Which of the two would you rather read on? Vote on each pair; whose stories they "
        "were is told afterwards. Nothing leaves this page.",
        fallback=fallback + "<p>The order of A and B is drawn where scripts run.</p>",
    )
