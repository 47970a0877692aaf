"""Counts and times of a server, in the text form that Prometheus reads.

A histogram says for some limits how many values were not above each; from two readings of it
Prometheus computes rates and quantiles.

Source: Prometheus, "Text-based format", version 0.0.4.

Chapter: Serving.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

from qlab.serve.scheduler import ENDINGS, Handle, Scheduler

# Seconds, each 2 to 2.5 times the one before it.
LIMITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)


class Histogram:
    """How many values were at most each limit, and their sum."""

    def __init__(self, limits: Sequence[float] = LIMITS) -> None:
        self.limits = tuple(limits)
        self.counts = [0] * (len(self.limits) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """One value more."""
        self.counts[bisect_left(self.limits, value)] += 1
        self.total += value


class Metrics:
    """What one model has done.

    Args:
        model: its name.
        scheduler: whose counts are read when somebody asks.

    Attributes:
        ended_by: requests that have ended, by how.
        first: seconds from arrival to the first token.
        each: seconds a token after the first.
        whole: seconds from arrival to the end.

    Chapter: Serving.
    """

    def __init__(self, model: str, scheduler: Scheduler) -> None:
        self.model, self.scheduler = model, scheduler
        self.ended_by = dict.fromkeys(ENDINGS, 0)
        self.first, self.each, self.whole = Histogram(), Histogram(), Histogram()
        self.lock = threading.Lock()

    def ended(self, handle: Handle) -> None:
        """Count a text that has ended."""
        with self.lock:
            self.ended_by[handle.finish_reason or "error"] += 1
            if handle.finished is None:
                return
            self.whole.add(handle.finished - handle.arrived)
            if handle.first_token is not None:
                self.first.add(handle.first_token - handle.arrived)
                if len(handle.tokens) > 1:
                    took = handle.finished - handle.first_token
                    self.each.add(took / (len(handle.tokens) - 1))


def render(all_of_them: Sequence[Metrics]) -> str:
    """The text for ``/metrics``.

    Chapter: Serving.
    """
    lines: list[str] = []

    def family(name: str, kind: str, about: str) -> None:
        lines.append(f"# HELP qlab_{name} {about}")
        lines.append(f"# TYPE qlab_{name} {kind}")

    def numbers(name: str, kind: str, about: str, of: Sequence[float]) -> None:
        family(name, kind, about)
        for m, value in zip(all_of_them, of, strict=True):
            lines.append(f"qlab_{name}{_labels(model=m.model)} {value}")

    schedulers = [m.scheduler for m in all_of_them]
    numbers(
        "requests_running", "gauge", "Texts in the batch.", [len(s.running) for s in schedulers]
    )
    numbers("requests_waiting", "gauge", "Texts in the line.", [len(s.waiting) for s in schedulers])
    used = [1 - s.pool.free / s.pool.count for s in schedulers]
    numbers("cache_usage_ratio", "gauge", "Share of the cache's blocks in use, 0 to 1.", used)
    for name, about, of in (
        ("steps_total", "Steps of the scheduler.", [s.steps for s in schedulers]),
        ("read_tokens_total", "Tokens that were read.", [s.read_tokens for s in schedulers]),
        ("written_tokens_total", "Tokens written.", [s.written_tokens for s in schedulers]),
        (
            "shared_tokens_total",
            "Tokens of prompts that were in the cache already.",
            [s.shared_tokens for s in schedulers],
        ),
        ("preemptions_total", "Times a text lost its blocks.", [s.preemptions for s in schedulers]),
    ):
        numbers(name, "counter", about, of)
    family("requests_ended_total", "counter", "Texts that have ended, by how.")
    for m in all_of_them:
        for reason, count in m.ended_by.items():
            labels = _labels(model=m.model, reason=reason)
            lines.append(f"qlab_requests_ended_total{labels} {count}")
    for name, about in (
        ("first", "time_to_first_token_seconds"),
        ("each", "time_per_token_seconds"),
        ("whole", "request_seconds"),
    ):
        family(about, "histogram", f"{about.removesuffix('_seconds').replace('_', ' ')}, seconds.")
        for m in all_of_them:
            with m.lock:
                one: Histogram = getattr(m, name)
                counts, total = list(one.counts), one.total
            so_far = 0
            for limit, count in zip((*one.limits, "+Inf"), counts, strict=True):
                so_far += count
                labels = _labels(model=m.model, le=str(limit))
                lines.append(f"qlab_{about}_bucket{labels} {so_far}")
            lines.append(f"qlab_{about}_sum{_labels(model=m.model)} {total}")
            lines.append(f"qlab_{about}_count{_labels(model=m.model)} {so_far}")
    return "\n".join(lines) + "\n"


def _labels(**pairs: str) -> str:
    """Such as {model="story"}, with the three characters escaped that must be."""
    words = []
    for key, value in pairs.items():
        safe = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        words.append(f'{key}="{safe}"')
    return "{" + ",".join(words) + "}"
