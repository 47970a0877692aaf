"""Who answers: the small model, the exact one that stands by, or a candidate on trial.

- ``Switch`` decides between two models by the results of checks. It goes over to the fallback after
  a few failures and comes back after more successes and some rest, so that it does not flutter.
- ``Canary`` gives a fixed share of the requests to a candidate, by a hash of the request's id.
- ``SequentialTest`` compares two models while the answers come in. You may look at it after every
  answer: the chance that it ever rejects a true hypothesis stays below alpha.
- ``Router`` joins them with a control chart (``qlab.serve.monitor.Cusum``).

Sources: Robbins 1970, Statistical methods related to the law of the iterated logarithm; Johari,
Pekelis and Walsh 2015, arXiv 1512.04922 (the mixture sequential probability ratio test).

Chapter: Keeping it good: monitoring, fallback, canary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlab.errors import QlabError
from qlab.serve.health import Health, check_answer
from qlab.serve.monitor import Cusum


@dataclass(frozen=True)
class Change:
    """A line of a switch's log: when (by the caller's clock), to which model, and why."""

    when: float
    to: str
    why: str


class Switch:
    """Which of two models is in charge.

    Args:
        primary, fallback: their names.
        down: failures in a row after which the fallback takes over.
        up: successes in a row, while the fallback is in charge, after which the primary is back.
        rest: seconds that the fallback stays in charge at least.

    Attributes:
        current: the name of the model in charge.
        log: all changes.

    Raises: QlabError for counts below 1, a negative rest, or equal names.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    def __init__(
        self, primary: str, fallback: str, down: int = 2, up: int = 3, rest: float = 0.0
    ) -> None:
        if primary == fallback:
            raise QlabError(f"primary and fallback are both '{primary}': name two models")
        if down < 1 or up < 1 or not rest >= 0:
            raise QlabError(f"down {down}, up {up}, rest {rest}: at least 1, 1 and 0")
        self.primary, self.fallback = primary, fallback
        self.down, self.up, self.rest = down, up, rest
        self.current, self.log = primary, list[Change]()
        self._run, self._since = 0, -math.inf

    def report(self, ok: bool, why: str, now: float, grave: bool = False) -> str:
        """Take the result of a check of the primary. Returns: the name of the model in charge.

        Args:
            ok: whether it passed.
            why: goes into the log, if this result changes something.
            now: seconds, by a clock that does not go back.
            grave: a failure that needs no second one, such as NaN.
        """
        if self.current == self.primary:
            self._run = 0 if ok else self._run + 1
            if not ok and (grave or self._run >= self.down):
                self._change(self.fallback, why, now)
        else:
            self._run = self._run + 1 if ok else 0
            if self._run >= self.up and now - self._since >= self.rest:
                self._change(self.primary, f"{self._run} checks passed in a row", now)
        return self.current

    def _change(self, to: str, why: str, now: float) -> None:
        self.current, self._run, self._since = to, 0, now
        self.log.append(Change(now, to, why))


def share_of(key: str, salt: str = "") -> float:
    """A number from [0, 1) that belongs to a key: always the same, and even over many keys.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    # 53 bits: what a float holds exactly.
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


@dataclass(frozen=True)
class Canary:
    """A share of the requests goes to a candidate.

    A key (a request's or a user's id) always goes to the same side, and when the share grows, those
    that had the candidate keep it.

    Attributes:
        share: from 0 to 1.
        salt: name of the trial. Another trial with another salt splits the keys anew.

    Raises: QlabError for another share.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    share: float
    salt: str = "canary"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise QlabError(f"share {self.share}: a number from 0 to 1, such as 0.05")

    def takes(self, key: str) -> bool:
        """Whether the candidate answers this key."""
        return share_of(key, self.salt) < self.share


class SequentialTest:
    """Is the mean of differences zero? A test that may be read after every one of them.

    The mixture likelihood ratio of n differences with mean m and variance v against mean zero is

        Λ = sqrt(v / (v + n τ²)) · exp(n² τ² m² / (2 v (v + n τ²))),

    and the test rejects when Λ ≥ 1/alpha. Under a mean of zero, Λ ever gets there with a chance of
    at most alpha (Ville's inequality). That is exact for normal differences of known variance. With
    an estimated one, simulated rates for alpha 0.05 stay below it from 50 differences on, for
    normal, exponential and heavy-tailed ones alike; from 30 on they do not (0.07, exponential).

    Args:
        alpha: the chance of an error of the first kind, over all looks together.
        scale: τ, the size of difference that is expected; any value is valid, a good one quick.
        variance: of a difference; None estimates it from those that came.
        least: differences before the first look, where the variance is estimated.

    Attributes:
        count, mean: of the differences so far.
        rejected: whether Λ has ever reached 1/alpha.

    Raises: QlabError for an alpha outside 0 to 1, or a scale or variance that is not positive.

    Source: Johari, Pekelis and Walsh 2015, arXiv 1512.04922, section 4.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    def __init__(
        self, alpha: float, scale: float, variance: float | None = None, least: int = 50
    ) -> None:
        if not 0 < alpha < 1:
            raise QlabError(f"alpha {alpha}: a chance between 0 and 1, such as 0.05")
        if not 0 < scale < math.inf or (variance is not None and not 0 < variance < math.inf):
            raise QlabError(f"scale {scale}, variance {variance}: positive numbers")
        self.alpha, self.scale, self.known = alpha, scale, variance
        self.least = 1 if variance is not None else max(least, 2)
        self.count, self.mean, self._squares = 0, 0.0, 0.0
        self.rejected, self.log_ratio, self._largest = False, 0.0, 0.0

    def add(self, difference: float) -> bool:
        """Take one difference. Returns: whether the test has rejected.

        Raises: QlabError for one that is not finite.
        """
        if not math.isfinite(difference):
            raise QlabError(f"a difference of {difference}: a broken model is no matter for a test")
        self.count += 1
        step = difference - self.mean
        self.mean += step / self.count  # Welford's way: no large sums that cancel
        self._squares += step * (difference - self.mean)
        variance = self.variance
        if self.count >= self.least and variance > 0:
            spread = self.count * self.scale**2
            total = variance + spread
            self.log_ratio = 0.5 * math.log(variance / total) + (
                self.count * spread * self.mean**2 / (2 * variance * total)
            )
            self._largest = max(self._largest, self.log_ratio)
            self.rejected = self.rejected or self.log_ratio >= -math.log(self.alpha)
        return self.rejected

    @property
    def variance(self) -> float:
        """Of a difference, as given or as estimated; 0 where there are too few."""
        if self.known is not None:
            return self.known
        return self._squares / (self.count - 1) if self.count > 1 else 0.0

    @property
    def p_value(self) -> float:
        """The smallest alpha with which it would have rejected by now."""
        return math.exp(-self._largest)

    @property
    def interval(self) -> tuple[float, float]:
        """All means that are not rejected now. It holds at all times together with 1 - alpha."""
        if self.count < self.least or self.variance == 0:
            return -math.inf, math.inf
        v, n, s = self.variance, self.count, self.scale**2
        total = v + n * s
        half = math.sqrt(2 * v * total / (n**2 * s) * math.log(math.sqrt(total / v) / self.alpha))
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        model: its name.
        tokens: ids of the answer.
        reading: what the monitor saw of it, if it was among the sample.
    """

    model: str
    tokens: list[int]
    reading: float | None = None


class Router:
    """Sends each request to the model in charge, and watches.

    Args:
        models: name -> function of a prompt (token ids) that returns the tokens of an answer.
        switch: between two of the names.
        examine: examines the primary, in charge or not; called by ``check``.
        score: (prompt, answer) -> a number for the chart, such as the KL of ``monitor.shadow``.
        chart: of these numbers.
        sample: share of the primary's answers that are scored, by a hash of the request's id.
        canary: share of the requests that ``candidate`` answers; None for no trial.
        candidate: its name.

    Raises: QlabError for a name that is not among the models.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    def __init__(
        self,
        models: dict[str, Callable[[list[int]], list[int]]],
        switch: Switch,
        examine: Callable[[], Health],
        score: Callable[[list[int], list[int]], float] | None = None,
        chart: Cusum | None = None,
        sample: float = 0.1,
        canary: Canary | None = None,
        candidate: str | None = None,
    ) -> None:
        names = [switch.primary, switch.fallback, *([candidate] if canary else [])]
        for name in names:
            if name not in models:
                raise QlabError(f"no model '{name}': there are {', '.join(models)}")
        if (score is None) != (chart is None):
            raise QlabError("a score and a chart go together: give both or neither")
        self.models, self.switch, self.examine = models, switch, examine
        self.score, self.chart, self.sampled = score, chart, Canary(sample, "sample")
        self.canary, self.candidate = canary, candidate

    def choose(self, key: str) -> str:
        """The name of the model that shall answer a request; ``key`` is the request's id."""
        if self.switch.current == self.switch.primary and self.canary and self.canary.takes(key):
            return str(self.candidate)
        return self.switch.current

    def answer(self, key: str, prompt: list[int], now: float) -> Answer:
        """Answer a request; where a model fails, by the fallback.

        Args:
            key: the request's id.
            prompt: token ids.
            now: seconds, for the log.
        """
        name = self.choose(key)
        try:
            tokens = self.models[name](prompt)
        except Exception as error:  # whatever it is, the reader gets an answer
            if name == self.switch.fallback:
                raise
            if name == self.switch.primary:
                self._failed(error, now)
            name = self.switch.fallback
            tokens = self.models[name](prompt)
        return Answer(name, tokens, self.observe(key, name, prompt, tokens, now))

    def observe(
        self, key: str, name: str, prompt: list[int], tokens: list[int], now: float
    ) -> float | None:
        """Look at an answer that a model gave. Returns: the reading, if it is of the sample.

        ``answer`` calls it; a server that answers by itself calls it afterwards.
        """
        primary = self.switch.primary
        if name == primary:
            finding = check_answer(tokens)
            if not finding.passed:
                self.switch.report(False, f"{finding.check}: {finding.why}", now)
        if self.score is None or self.chart is None or not self.sampled.takes(key):
            return None
        if name != primary:
            # Shadow traffic: the primary answers too, and nobody sees it. So the chart goes on
            # while others are in charge.
            try:
                tokens = self.models[primary](prompt)
            except Exception as error:
                self._failed(error, now)
                return None
        if not tokens:
            return None
        reading = self.score(prompt, tokens)
        if self.chart.add(reading):
            why = f"the chart rang; its last reading is {reading:.3g}"
            self.switch.report(False, why, now, grave=True)
        return reading

    def _failed(self, error: Exception, now: float) -> None:
        why = f"it failed with {type(error).__name__}: {error}"
        self.switch.report(False, why, now, grave=True)

    def check(self, now: float) -> Health:
        """Examine the primary, and let the switch know."""
        health = self.examine()
        grave = any(f.check == "finite" and not f.passed for f in health.findings)
        self.switch.report(health.ok, health.why, now, grave)
        return health


def peeking(differences: Any, alpha: float = 0.05, least: int = 50) -> int | None:
    """What not to do: a z-test after every difference, as if it were the only one.

    Args:
        differences: numbers, in order.
        alpha: of each single test.
        least: differences before the first look.

    Returns: after how many it rejects for the first time; None if never.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    from statistics import NormalDist

    import numpy as np

    x = np.asarray(differences, np.float64)
    n = np.arange(1, len(x) + 1)
    mean = x.cumsum() / n
    variance = np.maximum((x * x).cumsum() / n - mean**2, 0) * n / np.maximum(n - 1, 1)
    with np.errstate(all="ignore"):
        z = np.abs(mean) * np.sqrt(n / variance)
    hits = np.flatnonzero((n >= least) & (z > NormalDist().inv_cdf(1 - alpha / 2)))
    return int(n[hits[0]]) if len(hits) else None
