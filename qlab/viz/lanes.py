"""Figure: a block of 16 rows and 32 inputs, multiplied step by step in 16 lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

ROWS, INPUTS, STEP = 16, 32, 4


def lane_sums(codes: Any, inputs: Any) -> np.ndarray:
    """The 16 sums before each step and after the last: int64 (9, 16).

    Args:
        codes: (16, 32), 0 to 15. inputs: (32,), -127 to 127.

    Step s adds the products of inputs 4 s ... 4 s + 3. The sums begin at -8 · Σ inputs, which
    takes the offset of the codes into account.

    Raises: QlabError for other shapes or numbers.

    Chapter: A CPU kernel in Numba.
    """
    q, x = to_numpy(codes), to_numpy(inputs)
    if q.shape != (ROWS, INPUTS) or x.shape != (INPUTS,):
        raise QlabError(f"lanes: 16 x 32 codes and 32 inputs, got {q.shape} and {x.shape}")
    if q.min() < 0 or q.max() > 15 or np.abs(x.astype(np.int64)).max() > 127:
        raise QlabError("lanes: codes go from 0 to 15, inputs from -127 to 127")
    q, x = q.astype(np.int64), x.astype(np.int64)
    products = (q * x).reshape(ROWS, INPUTS // STEP, STEP).sum(axis=2).T
    start = np.full((1, ROWS), -8 * x.sum())
    return np.concatenate([start, start + np.cumsum(products, axis=0)])


def lanes(codes: Any, inputs: Any) -> Picture:
    """Where the codes of a block lie in the repacked order, and what each ``vpdpbusd`` adds.

    Args:
        codes: (16, 32), 0 to 15: the codes of 16 rows of a Q4_0 matrix, 32 inputs.
        inputs: (32,), -127 to 127: the codes of the inputs.

    Raises: QlabError for other shapes or numbers.

    Chapter: A CPU kernel in Numba.
    """
    sums = lane_sums(codes, inputs)
    q, x = to_numpy(codes).astype(int), to_numpy(inputs).astype(int)
    rows = [
        (s + 1, f"{s // 2}, {'upper' if s % 2 else 'lower'} halves",
         f"{4 * s} to {4 * s + 3}", int(sums[s + 1, 0]))
        for s in range(8)
    ]  # fmt: skip
    return figure(
        "lanes",
        {"codes": q.tolist(), "inputs": x.tolist(), "sums": sums.tolist()},
        alt="A matrix of 16 rows and 32 inputs; a step marks four columns and adds their products "
        "to 16 sums, one for each row.",
        caption="Which codes does one instruction multiply, and where do they lie in memory? Step "
        "through the block, and choose a lane to see its arithmetic.",
        fallback=table(("step", "load of 64 bytes", "inputs", "sum of row 0 after it"), rows),
    )
