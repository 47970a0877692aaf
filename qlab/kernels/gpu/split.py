"""Split-K: several programs share the inputs of the same outputs, and the last adds up.

With few rows there are fewer programs than the GPU has processors. Then the inputs are cut into
``SPLIT`` parts. Each program writes its partial sums to memory and counts itself in. The one that
finds itself last adds all parts, always in the same order: the result does not depend on who was
last, and one launch is enough.

Source: Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix
Multiplication on the GPU", 2023 (arXiv 2301.03598), section 3.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from qlab.kernels.gpu.runtime import load_triton

triton, tl = load_triton()


@triton.jit
def gather(acc, offsets, ok, partial, counter, size, split, SPLIT: tl.constexpr):
    """(sum, where to store it): the whole sum in the last program of a tile, nowhere in others.

    acc: this program's part; offsets, ok: of its elements in the output of ``size`` elements;
    partial: (SPLIT, size), of acc's dtype; counter: one int32 of this tile, 0 before and after.
    """
    if SPLIT == 1:
        return acc, ok
    else:
        tl.store(partial + split * size + offsets, acc, mask=ok)
        tl.debug_barrier()  # all threads of this program have stored
        arrived = tl.atomic_add(counter, 1, sem="acq_rel")
        ok = tl.where(ok, arrived, -1) == SPLIT - 1  # nowhere, but in the last program
        total = tl.zeros_like(acc)
        for s in range(SPLIT):
            # ".cg": from the cache that all processors share, not from this one's own.
            part = tl.load(partial + s * size + offsets, mask=ok, other=0, cache_modifier=".cg")
            total += part
        tl.store(counter, 0, mask=arrived == SPLIT - 1)
        return total, ok
