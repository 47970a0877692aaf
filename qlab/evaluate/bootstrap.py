"""Bootstrap: is one model better than another, or were the texts kind to it?

The texts are a sample. Drawing as many again from them, with replacement, and measuring each time,
shows how far the figure would move on other texts of the same kind. For two models the same texts
are drawn for both: what makes a text hard is hard for both, and drops out of the difference.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife"; Koehn 2004, "Statistical
significance tests for machine translation evaluation", for the paired form.

Chapter: Sensitivity and mixed precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlab.errors import QlabError
from qlab.evaluate.perplexity import TextScore


@dataclass(frozen=True)
class Interval:
    """A figure and where it would lie on other texts.

    Attributes:
        value: on the texts themselves.
        low, high: ends of the interval that holds ``confidence`` of the resamples.
        confidence: such as 0.95.
    """

    value: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def perplexity_interval(
    scores: Sequence[TextScore], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Perplexity of ``score_texts``, with its interval over texts.

    Raises: QlabError for fewer than two texts, or a confidence outside 0 to 1.
    """
    nll, tokens = _arrays(scores)
    draws = _draws(len(nll), resamples, seed, confidence)
    values = np.exp(nll[draws].sum(1) / tokens[draws].sum(1))
    return _interval(float(np.exp(nll.sum() / tokens.sum())), values, confidence)


def perplexity_ratio(
    scores: Sequence[TextScore],
    baseline: Sequence[TextScore],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Perplexity over the baseline's on the same texts; the paired bootstrap.

    An interval that lies below 1 says that the model is better than the baseline.

    Raises: QlabError if the two were not measured on the same tokens, or as above.
    """
    nll, tokens = _arrays(scores)
    other, same = _arrays(baseline)
    if len(nll) != len(other) or not np.array_equal(tokens, same):
        raise QlabError("the two models were scored on different texts: score both on the same")
    difference = nll - other
    draws = _draws(len(nll), resamples, seed, confidence)
    values = np.exp(difference[draws].sum(1) / tokens[draws].sum(1))
    return _interval(float(np.exp(difference.sum() / tokens.sum())), values, confidence)


def _arrays(scores: Sequence[TextScore]) -> tuple[np.ndarray, np.ndarray]:
    if len(scores) < 2:
        raise QlabError(f"{len(scores)} texts: a bootstrap needs at least two")
    return np.array([s.nll for s in scores]), np.array([s.tokens for s in scores])


def _draws(count: int, resamples: int, seed: int, confidence: float) -> np.ndarray:
    if not 0 < confidence < 1:
        raise QlabError(f"confidence {confidence}: a number between 0 and 1, such as 0.95")
    return np.random.default_rng(seed).integers(0, count, (resamples, count))


def _interval(value: float, values: np.ndarray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(value, float(low), float(high), confidence)
