"""Find the fastest configuration of a kernel for a shape, by trying.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from qlab.kernels.gpu.configs import Config, bucket, candidates
from qlab.kernels.gpu.dispatch import kernel_name, matmul
from qlab.kernels.gpu.pack import PackedWeight

Timer = Callable[[Callable[[int], Any]], float]


def tune(
    weights: Sequence[PackedWeight], x: torch.Tensor, timer: Timer, tries: Sequence[Config] = ()
) -> dict[str, Any]:
    """The entry for ``configs.json``: the fastest of the candidates for these weights and x.

    Args:
        weights: copies of one weight, enough that they do not fit the cache together.
        x: (batch, in).
        timer: takes a function of the number of a call, gives seconds a call.
        tries: configurations, by default ``configs.candidates``.

    A configuration that does not compile (too much shared memory for this GPU) is passed over.

    Chapter: A GPU kernel in Triton.
    """
    first = weights[0]
    name = kernel_name(first, x.shape[0])
    best: tuple[float, Config] | None = None
    for config in tries or candidates(name, x.shape[0]):

        def call(i: int, config: Config = config) -> torch.Tensor:
            return matmul(weights[i % len(weights)], x, config=config)

        try:
            seconds = timer(call)
        except Exception as error:  # Triton has no class of its own for each
            if type(error).__name__ not in ("OutOfResources", "CompilationError", "PTXASError"):
                raise
            continue
        if best is None or seconds < best[0]:
            best = seconds, config
    if best is None:
        raise RuntimeError(f"no configuration of {name} runs on this GPU")
    return {
        "kernel": name,
        "rows": first.out_features,
        "inputs": first.in_features,
        "batch": bucket(x.shape[0]),
        "config": best[1],
        "microseconds": round(best[0] * 1e6, 2),
    }
