"""Is the difference real? For counts of right answers, and for perplexities of a few texts.

- A share of right answers has Wilson's interval.
- Two models that answered the same questions are compared by McNemar's test: only the questions
  that one of them got right and the other wrong say anything.
- How many texts a change of perplexity needs follows from how much the texts disagree about it.

The bootstrap for perplexities is in ``qlab.evaluate.bootstrap``.

Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference";
McNemar 1947, "Note on the sampling error of the difference between correlated proportions";
Miller 2024, "Adding error bars to evals", arXiv:2411.00640, section 5, for the number of questions.

Chapter: Measuring a quantized model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qlab.errors import QlabError
from qlab.evaluate.bootstrap import Interval
from qlab.evaluate.perplexity import TextScore


@dataclass(frozen=True)
class Paired:
    """McNemar's test of two models on the same questions.

    Attributes:
        gained: questions that only the second model got right.
        lost: questions that only the first got right.
        p_value: chance of a split at least as uneven, if neither model were better.
    """

    gained: int
    lost: int
    p_value: float


def wilson(right: int, count: int, confidence: float = 0.95) -> Interval:
    """A share of right answers, with Wilson's interval.

    Args:
        right: how many were right.
        count: of how many.
        confidence: such as 0.95.

    Raises: QlabError for a count below 1, more right than asked, or a confidence outside 0 to 1.
    """
    if count < 1 or not 0 <= right <= count:
        raise QlabError(f"{right} right of {count}: give a count of 1 or more, and no more right")
    z = _z(confidence)
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    # At 0 and at 1 the ends are exact; rounding must not put them beyond.
    low = 0.0 if right == 0 else middle - half
    high = 1.0 if right == count else middle + half
    return Interval(share, low, high, confidence)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """McNemar's exact test, two-sided.

    Args:
        first, second: whether each model got each question right; same order.

    Raises: QlabError for different numbers of answers, or none.
    """
    if len(first) != len(second) or not len(first):
        raise QlabError(f"{len(first)} and {len(second)} answers: ask both models the same")
    gained = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    lost = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    n = gained + lost
    # If neither is better, each of the n is a fair coin.
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    return Paired(gained, lost, min(1.0, 2 * tail))


def texts_needed(
    scores: Sequence[TextScore],
    baseline: Sequence[TextScore] | None = None,
    change: float = 0.01,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int:
    """How many texts of this kind show a change of the perplexity.

        n = ((z_confidence + z_power) · σ / log(1 + change))²

    With a baseline, σ is the standard deviation over texts of the difference of log-perplexity
    between the two models: paired. Without one, each model would read texts of its own, so the
    variances add and σ² is twice that of one model's log-perplexity.

    Args:
        scores: of one model, a score a text.
        baseline: of the other on the same texts, or None.
        change: relative change of perplexity to be seen, such as 0.01.
        confidence: of the two-sided test.
        power: chance to see the change where it is there.

    Returns: number of texts, for each model.

    Raises: QlabError for fewer than two texts, different texts, or numbers out of range.
    """
    if len(scores) < 2:
        raise QlabError(f"{len(scores)} texts: at least two are needed to see how they differ")
    if not change > 0:
        raise QlabError(f"change {change}: a relative change above 0, such as 0.01")
    nll = np.array([s.nll for s in scores])
    tokens = np.array([s.tokens for s in scores])
    if baseline is not None:
        if [s.tokens for s in baseline] != [s.tokens for s in scores]:
            raise QlabError("the two models were scored on different texts: score both on the same")
        nll = nll - np.array([s.nll for s in baseline])
    # The log-perplexity is a ratio of sums; its linear part gives each text's share of the error.
    residual = nll - nll.sum() / tokens.sum() * tokens
    sigma = float(np.std(residual, ddof=1) / tokens.mean())
    if baseline is None:
        sigma *= math.sqrt(2)
    z = _z(confidence) + NormalDist().inv_cdf(_checked(power, "power"))
    return max(2, math.ceil((z * sigma / math.log1p(change)) ** 2))


def _z(confidence: float) -> float:
    """Of a two-sided interval."""
    return NormalDist().inv_cdf((1 + _checked(confidence, "confidence")) / 2)


def _checked(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise QlabError(f"{name} {value}: a number between 0 and 1")
    return value
