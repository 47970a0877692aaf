"""The one way in which this package compiles with Numba.

Machine code is kept between runs. Numba puts it beside the source, or into the user's cache folder
where the package is read-only, or where ``NUMBA_CACHE_DIR`` says. Where none of them can be written
it refuses to compile at all; here it then compiles for this run only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(*, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compile without the interpreter lock, IEEE arithmetic in the order as written.

    No ``fastmath``: sums must not be reordered, so that results are the same on every machine and
    for every number of threads.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        options = {"parallel": parallel, "nogil": True, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache
            return numba.njit(**options)(function)

    return decorate
