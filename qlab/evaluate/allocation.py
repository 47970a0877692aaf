"""Bit allocation: which layer gets which scheme, when the whole may take so many bytes.

Each layer has some choices, each with a size and a cost. The cheapest set of choices within the
budget is the multiple-choice knapsack problem. It is solved exactly: layer by layer, keep every
pair (size, cost) that no other pair beats in both, and at the end take the cheapest that fits.

Source: Sinha and Zoltners 1979, "The multiple-choice knapsack problem"; the dominance of pairs is
from Nemhauser and Ullmann 1969, "Discrete dynamic programming and capital allocation".

Chapter: Sensitivity and mixed precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qlab.errors import QlabError


@dataclass(frozen=True)
class Choice:
    """One way to store one layer.

    Attributes:
        scheme: in one word; "" keeps the layer as it is.
        nbytes: of the layer then.
        cost: what it does to the model, in whatever unit; costs of layers are added.
    """

    scheme: str
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Allocation:
    """The cheapest choices within a budget.

    Attributes:
        schemes: layer -> scheme.
        nbytes: of all layers together.
        cost: the sum of the costs.
    """

    schemes: dict[str, str]
    nbytes: int
    cost: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> Allocation:
    """The choices of least total cost whose bytes are at most ``budget``.

    Raises: QlabError if a layer has no choice, a cost is not finite, or the smallest choices
        together are over the budget (says how many bytes they take).
    """
    points = frontier(choices)
    fitting = [point for point in points if point.nbytes <= budget]
    if not fitting:
        raise QlabError(
            f"a budget of {budget:,} bytes is too small: the smallest choices together take "
            f"{points[0].nbytes:,} bytes"
        )
    return fitting[-1]


def frontier(choices: Mapping[str, Sequence[Choice]]) -> list[Allocation]:
    """Every allocation that no other beats in bytes and cost, from the smallest to the cheapest."""
    if not choices:
        raise QlabError("no layers to allocate bits to")
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # of each pair: where it came from, the choice
    for layer, options in choices.items():
        if not options:
            raise QlabError(f"layer '{layer}' has no choice: give it at least one")
        if bad := [c for c in options if not math.isfinite(c.cost)]:
            raise QlabError(f"layer '{layer}': the cost of '{bad[0].scheme}' is {bad[0].cost}")
        all_sizes = (sizes[:, None] + np.array([c.nbytes for c in options])).ravel()
        all_costs = (costs[:, None] + np.array([c.cost for c in options])).ravel()
        # Smallest first, then cheapest; a pair stays if it is cheaper than all smaller ones.
        order = np.lexsort((all_costs, all_sizes))
        cheapest = np.minimum.accumulate(all_costs[order])
        stays = np.append(True, all_costs[order][1:] < cheapest[:-1])
        kept = order[stays]
        sizes, costs = all_sizes[kept], all_costs[kept]
        steps.append((kept // len(options), kept % len(options)))
    return [_trace(choices, steps, i, sizes[i], costs[i]) for i in range(len(sizes))]


def _trace(
    choices: Mapping[str, Sequence[Choice]],
    steps: list[tuple[np.ndarray, np.ndarray]],
    index: int,
    nbytes: np.int64,
    cost: np.float64,
) -> Allocation:
    """Walk back from a final pair to the choice of each layer."""
    schemes = {}
    at = index
    for layer, (before, which) in zip(reversed(choices), reversed(steps), strict=True):
        schemes[layer] = choices[layer][int(which[at])].scheme
        at = int(before[at])
    return Allocation({layer: schemes[layer] for layer in choices}, int(nbytes), float(cost))
