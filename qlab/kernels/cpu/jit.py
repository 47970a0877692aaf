"""The one way in which this package compiles with Numba.

Machine code is kept between runs. Numba puts it beside the source, or into the user's cache folder
where the package is read-only, or where ``NUMBA_CACHE_DIR`` says. Where none of them can be written
it refuses to compile at all; here it then compiles for this run only.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import numba

from qlab.kernels.cpu.simd.path import tell_numba


def jit(*, parallel: bool = False, inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: compile without the interpreter lock, IEEE arithmetic in the order as written.

    No ``fastmath``: sums must not be reordered, so that results are the same on every machine and
    for every number of threads.

    Args:
        parallel: ``prange`` runs on Numba's threads.
        inline: put the code into each caller, where constant arguments then simplify it.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        tell_numba()
        if parallel:
            start_threads()
        options = {"parallel": parallel, "nogil": True, "error_model": "numpy"}
        if inline:
            options["forceinline"] = True
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache
            return numba.njit(**options)(function)

    return decorate


@functools.cache
def start_threads() -> None:
    """Start Numba's threads, and leave the number of threads of torch as it was.

    Starting them sets OpenMP's number of threads, and torch works with that: its sums would change
    their last bits after the first kernel. Numba itself does not need it.
    """
    from numba.np.ufunc import parallel

    torch = sys.modules.get("torch")
    if torch is not None:
        before = torch.get_num_threads()
        parallel._launch_threads()
        torch.set_num_threads(before)
        return
    # torch may be imported later, and takes over what it then finds.
    try:
        from numba.np.ufunc import omppool

        openmp = ctypes.CDLL(omppool.__file__)  # and what it is linked with
        before = openmp.omp_get_max_threads()
    except (ImportError, OSError, AttributeError):  # Numba without OpenMP: nothing to leave alone
        parallel._launch_threads()
        return
    parallel._launch_threads()
    openmp.omp_set_num_threads(before)
