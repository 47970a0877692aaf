"""Watching a model that serves: how long it takes, and whether its words are still as good.

Latencies go into a ``Sketch``, which keeps quantiles of a stream in little memory. Quality goes
into a ``Cusum``, a control chart over one number a request:

- ``kl``: mean divergence of the served model's predictions from a reference model's;
- ``surprise``: what the reference finds of the served model's words, nats a token (its exponential
  is the shadow perplexity);
- ``gap``: surprise less the served model's own, which needs no more than log-probabilities that a
  server returns; of words drawn at temperature 1 its mean is KL(served‖reference);
- ``repetition_rate``, or a consistency score of the text.

Sources: Masson, Rim and Lee 2019, arXiv 1908.10693 (the sketch); Page 1954, Continuous inspection
schemes (CUSUM).

Chapter: Keeping it good: monitoring, fallback, canary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np

from qlab.errors import QlabError


class Sketch:
    """Quantiles of a stream of positive numbers, each within a stated share of the true one.

    Bucket i counts the numbers in (γ^(i-1), γ^i], with γ = (1 + error) / (1 - error). Every number
    x of a bucket is at most ``error`` x away from 2 γ^i / (γ + 1).

    Args:
        error: the largest relative error of a quantile.
        smallest: numbers below it count as 0.

    Raises: QlabError for an error outside 0 to 1, or a smallest that is not positive.

    Source: Masson, Rim and Lee 2019, arXiv 1908.10693, section 2.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    def __init__(self, error: float = 0.01, smallest: float = 1e-6) -> None:
        if not 0 < error < 1:
            raise QlabError(f"error {error}: a share between 0 and 1, such as 0.01")
        if not (0 < smallest < math.inf):
            raise QlabError(f"smallest {smallest}: a positive number, such as 1e-6")
        self.error, self.smallest = error, smallest
        self.gamma = (1 + error) / (1 - error)
        self.counts: Counter[int] = Counter()
        self.zeros = self.count = 0

    def add(self, x: float) -> None:
        """Raises: QlabError for a number that is negative, infinite or NaN."""
        if not (math.isfinite(x) and x >= 0):
            raise QlabError(f"{x} in a sketch: finite numbers from 0 up only")
        self.count += 1
        if x < self.smallest:
            self.zeros += 1
        else:
            self.counts[math.ceil(math.log(x) / math.log(self.gamma))] += 1

    def quantile(self, q: float) -> float:
        """The number of rank floor(q · (count - 1)), counted from 0 at the smallest.

        Raises: QlabError for q outside 0 to 1, or an empty sketch.
        """
        if not 0 <= q <= 1:
            raise QlabError(f"quantile {q}: a number from 0 to 1, such as 0.95")
        if not self.count:
            raise QlabError("a quantile of an empty sketch: add numbers first")
        seen, rank = self.zeros, math.floor(q * (self.count - 1))
        if seen > rank:
            return 0.0
        for i in sorted(self.counts):
            seen += self.counts[i]
            if seen > rank:
                break
        return 2 * self.gamma**i / (self.gamma + 1)

    def merge(self, other: Sketch) -> None:
        """Add all that another sketch has counted, such as one of another minute or machine.

        Raises: QlabError where the two have other buckets.
        """
        if (self.error, self.smallest) != (other.error, other.smallest):
            raise QlabError(
                f"sketches of error {self.error} and {other.error}, smallest {self.smallest} and "
                f"{other.smallest}: merge needs the same of both"
            )
        self.counts.update(other.counts)
        self.zeros += other.zeros
        self.count += other.count


@dataclass(frozen=True)
class Timing:
    """How long an answer took.

    Attributes:
        first: seconds until the first token came.
        each: seconds a token after the first, mean; None for an answer of one token.
        tokens: how many came.
    """

    first: float
    each: float | None
    tokens: int


def timed(stream: Iterable[Any]) -> tuple[list[Any], Timing | None]:
    """Read a stream to its end: what came, and how long it took; None for an empty stream.

    The clock starts with the call. What was done before, such as sending the request, is not in it.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    began, pieces, at = perf_counter(), [], []
    for piece in stream:
        pieces.append(piece)
        at.append(perf_counter())
    if not pieces:
        return [], None
    each = (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else None
    return pieces, Timing(at[0] - began, each, len(at))


class Latency:
    """Time to the first token, and time a token, over many answers.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    def __init__(self, error: float = 0.01) -> None:
        self.first, self.each = Sketch(error), Sketch(error)

    def add(self, timing: Timing) -> None:
        self.first.add(timing.first)
        if timing.each is not None:
            self.each.add(timing.each)

    def quantiles(self, qs: Sequence[float] = (0.5, 0.95, 0.99)) -> dict[str, list[float]]:
        """Seconds: ``first`` and ``each``, a number for each of ``qs``."""
        return {
            name: [sketch.quantile(q) for q in qs]
            for name, sketch in (("first", self.first), ("each", self.each))
            if sketch.count
        }


# --- one number a request ----------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What a reference model says of one answer; means over its tokens, in nats.

    Attributes:
        surprise: the reference's negative log-probability of the served model's tokens.
        gap: that less the served model's own.
        kl: KL(reference‖served) of the predictions.
        agreement: share of tokens where both find the same token likeliest.
        repetition: share of the answer's 4-grams that stood in it before.
    """

    surprise: float
    gap: float
    kl: float
    agreement: float
    repetition: float


def shadow(reference: Any, served: Any, prompt: Sequence[int], answer: Sequence[int]) -> Reading:
    """Score an answer of the served model by a reference model: one pass through each.

    Args:
        reference, served: engines (or anything with ``logits(ids)`` -> (tokens, vocabulary)).
        prompt, answer: token ids; neither is empty.

    Numbers are NaN or infinite where a model's are: ``Cusum`` takes them for an alarm.

    Raises: QlabError for an empty prompt or answer.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    if not len(prompt) or not len(answer):
        raise QlabError("an empty prompt or answer: there is nothing to score")
    ids = [*prompt, *answer]
    with np.errstate(all="ignore"):
        p, q = (
            _log_softmax(model.logits(ids)[len(prompt) - 1 : -1].astype(np.float64))
            for model in (reference, served)
        )
        rows = np.arange(len(answer))
        surprise, own = (-float(x[rows, list(answer)].mean()) for x in (p, q))
        kl = float((np.exp(p) * (p - q)).sum(1).mean())
        same = float((p.argmax(1) == q.argmax(1)).mean())
    return Reading(surprise, surprise - own, kl, same, repetition_rate(answer))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    found: np.ndarray = x - np.log(np.exp(x).sum(1, keepdims=True))
    return found


def repetition_rate(ids: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams of a text that stood in it before, in [0, 1); 0 for a short text.

    Raises: QlabError for n below 1.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    if n < 1:
        raise QlabError(f"n-grams of {n}: at least 1")
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


# --- the control chart -------------------------------------------------------------------------


class Cusum:
    """A cumulative sum of readings above their usual mean; it alarms when the sum is large.

        S ← max(0, S + z - slack),    alarm when S > limit

    z is the mean of (x - mean) / sd over ``window`` numbers x, times √window: in units of its own
    standard deviation. After an alarm the sum begins anew at 0. A number that is not finite is an
    alarm by itself.

    Args:
        mean, sd: of the numbers while all is well.
        limit: of the sum.
        slack: half of the shift that shall be found quickly, in units of z.
        window: numbers averaged to a reading.

    Attributes:
        value: S now.
        alarms: how many there were.

    Raises: QlabError for an sd or limit that is not positive, a negative slack, a window below 1.

    Source: Page 1954, Biometrika 41, section 2.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    def __init__(
        self, mean: float, sd: float, limit: float, slack: float = 0.5, window: int = 1
    ) -> None:
        if not (math.isfinite(mean) and 0 < sd < math.inf and 0 < limit < math.inf):
            raise QlabError(
                f"a chart of mean {mean}, sd {sd}, limit {limit}: sd and limit above 0, all finite"
            )
        if not 0 <= slack < math.inf or window < 1:
            raise QlabError(f"slack {slack} and window {window}: at least 0 and 1")
        self.mean, self.sd, self.limit, self.slack, self.window = mean, sd, limit, slack, window
        self.value, self.alarms = 0.0, 0
        self._part: list[float] = []

    def score(self, x: float) -> float:
        """How far a number lies above the usual mean, in standard deviations."""
        return (x - self.mean) / self.sd

    def add(self, x: float) -> bool:
        """Whether this number rings the alarm."""
        if math.isfinite(x):
            self._part.append(self.score(x))
            if len(self._part) < self.window:
                return False
            z = sum(self._part) / math.sqrt(self.window)
            self.value = max(0.0, self.value + z - self.slack)
        else:
            self.value = math.inf
        self._part = []
        if self.value <= self.limit:
            return False
        self.alarms += 1
        self.value = 0.0
        return True


class RankCusum(Cusum):
    """The same chart of ranks: how many of the good old readings lie below the new one?

    Of n old readings, r are below; the score is the normal quantile of (r + 1/2) / (n + 1), and of
    equal ones half are taken to be below. While all is well every r from 0 to n is equally likely,
    whatever the law of the readings, so that skew and far values cannot spoil the rate of alarms.

    Args:
        baseline: readings from a time when all was well; at least 20.
        limit, slack, window: as for ``Cusum``.

    Raises: QlabError for too few readings, or some that are not finite.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """

    def __init__(
        self, baseline: Sequence[float], limit: float, slack: float = 0.5, window: int = 1
    ) -> None:
        super().__init__(0.0, 1.0, limit, slack, window)
        self.baseline = np.sort(np.asarray(baseline, np.float64))
        if self.baseline.ndim != 1 or len(self.baseline) < 20:
            raise QlabError(
                f"{self.baseline.size} readings: give at least 20 from a time when all was well"
            )
        if not np.isfinite(self.baseline).all():
            raise QlabError("some of the baseline's readings are not finite: all was not well")
        self._scores = _normal_scores(len(self.baseline))

    def score(self, x: float) -> float:
        low, high = (int(self.baseline.searchsorted(x, side)) for side in ("left", "right"))
        return float(self._scores[low] + self._scores[high]) / 2


@cache
def _normal_scores(n: int) -> np.ndarray:
    """Of ranks 0 to n, scaled to variance 1."""
    from statistics import NormalDist

    scores = np.array([NormalDist().inv_cdf((r + 0.5) / (n + 1)) for r in range(n + 1)])
    found: np.ndarray = scores / scores.std()
    return found


def fit_cusum(
    readings: Sequence[float],
    horizon: int = 1000,
    alarms: float = 0.05,
    slack: float = 0.5,
    window: int = 1,
) -> RankCusum:
    """A chart that rings within ``horizon`` numbers, while all is well, with chance ``alarms``.

    That chance is over old and new readings together: few old ones may happen to lie low or high,
    and the limit makes up for it. It holds for independent readings of any one law.

    Args:
        readings: from a time when all was well; at least 20.
        horizon: numbers that the chance speaks of.
        alarms: that chance, between 0 and 1.
        slack, window: as for ``Cusum``.

    Raises: QlabError for too few readings, some that are not finite, or a chance outside 0 to 1.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    chart = RankCusum(readings, 1.0, slack, window)
    chart.limit = rank_limit(len(chart.baseline), horizon, alarms, slack, window)
    return chart


@cache
def rank_limit(
    count: int,
    horizon: int,
    alarms: float,
    slack: float = 0.5,
    window: int = 1,
    streams: int = 2000,
    seed: int = 0,
) -> float:
    """The limit of ``fit_cusum`` for ``count`` old readings, by simulation.

    Ranks do not change when readings are replaced by their place in their law, which is uniform. So
    one simulation with uniform numbers serves all laws.

    Args:
        streams: simulated; each has old readings of its own.
        seed: of the simulation.

    Raises: QlabError for a chance outside 0 to 1, or a horizon shorter than the window.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    if not 0 < alarms < 1 or window < 1 or horizon < window:
        raise QlabError(f"chance {alarms} within {horizon}: 0 to 1, within one window or more")
    rng, scores = np.random.default_rng(seed), _normal_scores(count)
    steps = horizon // window
    z = np.empty((streams, steps))
    for i in range(streams):
        old = np.sort(rng.random(count))
        new = scores[old.searchsorted(rng.random(steps * window))]
        z[i] = new.reshape(steps, window).sum(1) / math.sqrt(window) - slack
    total, peak = np.zeros(streams), np.zeros(streams)
    for column in z.T:
        total = np.maximum(0.0, total + column)
        peak = np.maximum(peak, total)
    return max(float(np.quantile(peak, 1 - alarms, method="higher")), 1e-9)


def average_run_length(limit: float, slack: float = 0.5, shift: float = 0.0) -> float:
    """Mean number of readings until a one-sided CUSUM of normal readings rings.

    With L(z) the mean number from a sum of z on, and Φ, φ the normal distribution and density,

        L(z) = 1 + L(0) Φ(slack - shift - z) + ∫₀^limit L(y) φ(y + slack - shift - z) dy.

    Args:
        limit, slack: as for ``Cusum``.
        shift: of the mean, in sd; 0 for false alarms.

    Raises: QlabError for a limit that is not positive.

    Source: Page 1954, Biometrika 41, section 6; solved on Gauss-Legendre points.

    Chapter: Keeping it good: monitoring, fallback, canary.
    """
    from statistics import NormalDist

    if not 0 < limit < math.inf:
        raise QlabError(f"limit {limit}: a positive number, such as 5")
    points, weights = np.polynomial.legendre.leggauss(64)
    y, w = (points + 1) * limit / 2, weights * limit / 2
    z = np.concatenate([[0.0], y])  # L(0) first, then L at the points
    below = np.array([NormalDist().cdf(slack - shift - one) for one in z])
    density = np.exp(-((y[None] + slack - shift - z[:, None]) ** 2) / 2) / math.sqrt(2 * math.pi)
    a = np.column_stack([below, w * density])
    return float(np.linalg.solve(np.eye(len(z)) - a, np.ones(len(z)))[0])
