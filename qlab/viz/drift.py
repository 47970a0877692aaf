"""Figure: how soon a control chart finds a drift, against how often it rings for nothing."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

WINDOWS = (1, 5, 20, 50)
DRIFTS = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0)  # in standard deviations of a reading; 0 is no drift
LIMITS = tuple(round(0.5 * i, 1) for i in range(1, 41))
HORIZON = 1000  # readings
OLD = 200  # readings of the baseline
STREAMS = 300


@cache
def simulate(seed: int = 0) -> dict[str, Any]:
    """Charts of ranks on simulated readings of a skewed law (log-normal, like divergences).

    Returns: ``false``: window -> chance of an alarm within ``HORIZON`` readings without drift, for
        each of ``LIMITS``; ``delay``: window -> for each drift above 0, for each limit, the median
        of readings until the alarm; None where it is beyond ``HORIZON``.
    """
    from qlab.serve.monitor import RankCusum

    rng = np.random.default_rng(seed)
    old, new = (rng.lognormal(0, 0.6, (STREAMS, n)) for n in (OLD, HORIZON))
    sd = math.sqrt((math.exp(0.36) - 1) * math.exp(0.36))  # of that law
    false: dict[str, list[float]] = {str(w): [] for w in WINDOWS}
    delay: dict[str, list[list[int | None]]] = {str(w): [] for w in WINDOWS}
    charts = [RankCusum(row, 1.0) for row in old]
    for drift in DRIFTS:
        # Scores of whole streams at once; no two readings are equal.
        z = np.stack(
            [
                c._scores[c.baseline.searchsorted(x + drift * sd)]
                for c, x in zip(charts, new, strict=True)
            ]
        )
        for window in WINDOWS:
            first = _first_alarms(z, window, charts[0].slack)
            if drift == 0:
                false[str(window)] = [round(float((f < math.inf).mean()), 4) for f in first.T]
            else:
                middle = np.median(first, axis=0)
                delay[str(window)].append([int(m) if m < math.inf else None for m in middle])
    return {"false": false, "delay": delay}


def _first_alarms(z: np.ndarray, window: int, slack: float) -> np.ndarray:
    """(streams, limits): readings until the sum exceeds each limit; infinite if it does not."""
    steps = z.shape[1] // window
    means = z[:, : steps * window].reshape(len(z), steps, window).sum(2) / math.sqrt(window)
    total, peaks = np.zeros(len(z)), np.empty((len(z), steps))
    for i in range(steps):
        total = np.maximum(0.0, total + means[:, i] - slack)
        peaks[:, i] = total
    peaks = np.maximum.accumulate(peaks, axis=1)
    # The largest sum so far never falls, so the first step above a limit is found by bisection.
    at = np.stack([row.searchsorted(LIMITS, side="right") for row in peaks]).astype(float)
    at[at == steps] = np.inf
    return (at + 1) * window


def drift_alarm() -> Picture:
    """Choose drift, window and limit; read the delay of the alarm and the chance of a false one.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    found = simulate()
    rows = []
    for window in WINDOWS:
        for limit in (5.0, 10.0):
            i = LIMITS.index(limit)
            cells = [found["delay"][str(window)][DRIFTS.index(d) - 1][i] for d in (0.5, 1.0, 2.0)]
            false = f"{100 * found['false'][str(window)][i]:.0f}%"
            rows.append((window, limit, false, *("-" if c is None else c for c in cells)))
    return figure(
        "drift",
        {
            **found,
            "windows": WINDOWS,
            "drifts": DRIFTS[1:],
            "limits": LIMITS,
            "horizon": HORIZON,
            "start": [1, 2, LIMITS.index(8.0)],
        },
        alt="Curves of the readings until an alarm against the chance of a false alarm within "
        f"{HORIZON} readings, one curve for each window; a ring marks the chosen limit.",
        caption="What does an early alarm cost? Choose the size of the drift, how many readings "
        "are averaged, and the limit of the chart. Down is a quick alarm, left is a rare false "
        "one. Simulated readings of a skewed law.",
        fallback=table(
            (
                "readings averaged",
                "limit",
                f"false alarm within {HORIZON}",
                *(f"delay at a drift of {d} sd" for d in (0.5, 1, 2)),
            ),
            rows,
        ),
    )
