"""Choose the next token from its logits; compiled.

    p_i = e^(z_i / T) / Σ e^(z_j / T)

Temperature 0 takes the likeliest token (greedy). Above 0, tokens are taken down from the likeliest
until a limit says stop, and one of them is drawn in proportion to its probability:

- ``top_k``: at most k of them;
- ``top_p``: just so many that the limit p of their probability is reached, counted among the k;
- ``min_p``: none whose probability is below this share of the likeliest one's.

Before all that, ``repetition_penalty`` θ makes what the text has already, prompt included, less
likely: z / θ where z is positive, and z θ where it is not, so that θ > 1 always takes away. Small
models need it, since the likeliest text of theirs soon goes in circles.

Sources: Keskar et al. 2019, arXiv 1909.05858, section 4.1 (the penalty; the case of negative z is
that of transformers and vLLM); Fan et al. 2018, arXiv 1805.04833, section 5 (top-k); Holtzman et
al. 2020, arXiv 1904.09751, section 3.1 (top-p); Nguyen et al. 2024, arXiv 2407.01082, section 3
(min-p).

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qlab.engine.layers import exponential, f32
from qlab.errors import QlabError
from qlab.kernels.cpu.jit import jit

u64 = np.uint64


class Choice(NamedTuple):
    """How the next token is chosen: 0, 0, 1, 0, 1 is greedy, and 1, 0, 1, 0, 1 draws from all."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


def choice(
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Choice:
    """The settings, checked.

    Raises: QlabError for one that is NaN or out of its range.

    Chapter: An engine in one file's worth of Python.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise QlabError(f"temperature {temperature}: 0 (greedy) or above, and finite")
    if top_k < 0 or int(top_k) != top_k:
        raise QlabError(f"top_k {top_k}: a whole number of tokens, or 0 for all")
    if not 0 < top_p <= 1:
        raise QlabError(f"top_p {top_p}: above 0, up to 1")
    if not 0 <= min_p <= 1:
        raise QlabError(f"min_p {min_p}: from 0 to 1")
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise QlabError(f"repetition_penalty {repetition_penalty}: 1 (none) or more, up to about 2")
    return Choice(
        float(temperature), int(top_k), float(top_p), float(min_p), float(repetition_penalty)
    )


@jit()
def penalize(logits, seen, penalty):
    """Make tokens that the text has less likely, in place.

    Args:
        logits: float32 (vocabulary,), changed.
        seen: bool (vocabulary,), which tokens the text has.
        penalty: θ.
    """
    theta = f32(penalty)
    for i in range(len(logits)):
        if seen[i]:
            z = logits[i]
            logits[i] = f32(z * theta) if z < 0 else f32(z / theta)


@jit()
def next_uniform(state):
    """A number from [0, 1) with 53 random bits; ``state`` is uint64 (1,), the seed at first.

    Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, figure 16
    (SplitMix64).
    """
    state[0] += u64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> u64(27))) * u64(0x94D049BB133111EB)
    z = z ^ (z >> u64(31))
    return float(z >> u64(11)) * 2.0**-53


@jit()
def likeliest(logits):
    """The place of the largest; of equal ones the first."""
    best = 0
    for i in range(len(logits)):
        if logits[i] > logits[best]:
            best = i
    return best


@jit()
def _sink(heap, weights, at, size):
    """Let an entry sink until none below it is heavier: ``heap`` holds places in ``weights``."""
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and weights[heap[child + 1]] > weights[heap[child]]:
            child += 1
        if weights[heap[at]] >= weights[heap[child]]:
            return
        heap[at], heap[child] = heap[child], heap[at]
        at = child


@jit()
def candidates(logits, how, kept, weights):
    """The tokens that may be drawn, the likeliest first where a limit cuts.

    Args:
        logits: float32 (vocabulary,).
        how: the ``Choice``; its temperature is above 0.
        kept: int64 (vocabulary,), filled with their ids.
        weights: float32 (vocabulary,), filled with e^((z - max z) / T) of all tokens.

    Returns: how many are kept, and the sum of their weights.
    """
    n, top = len(logits), logits[likeliest(logits)]
    factor, total = f32(1.0 / how.temperature), 0.0
    for i in range(n):
        weights[i] = exponential(f32(f32(logits[i] - top) * factor))
        total += weights[i]
        kept[i] = i
    taken = n
    if how.top_k or how.top_p < 1.0:
        # A heap gives the heaviest first without sorting those that are never looked at. They
        # gather behind it, the first at the very end.
        for at in range(n // 2 - 1, -1, -1):
            _sink(kept, weights, at, n)
        most, mass, taken = how.top_k if how.top_k else n, 0.0, 0
        stop = np.inf if how.top_k else how.top_p * total
        while taken < min(most, n) and mass < stop:
            mass += weights[kept[0]]
            taken += 1
            kept[0], kept[n - taken] = kept[n - taken], kept[0]
            _sink(kept, weights, 0, n - taken)
        order = kept[n - taken :].copy()
        for i in range(taken):
            kept[i] = order[taken - 1 - i]
        if how.top_k:  # top_p counts among the k
            stop, total, most = how.top_p * mass, 0.0, taken
            taken = 0
            while taken < most and total < stop:
                total += weights[kept[taken]]
                taken += 1
    # The likeliest weighs 1, so that min_p is the least that a token may weigh.
    size, mass = 0, 0.0
    for i in range(taken):
        if weights[kept[i]] >= how.min_p:
            kept[size] = kept[i]
            mass += weights[kept[size]]
            size += 1
    return size, mass


@jit()
def choose(logits, how, state, kept, weights):
    """The next token. ``kept`` and ``weights`` are room, see ``candidates``."""
    if how.temperature == 0.0:
        return likeliest(logits)
    size, total = candidates(logits, how, kept, weights)
    rest = next_uniform(state) * total
    for i in range(size):
        rest -= weights[kept[i]]
        if rest < 0.0:
            return kept[i]
    return kept[size - 1]
