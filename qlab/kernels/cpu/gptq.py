"""The inner loop of GPTQ: quantize the columns of a block in order, push the errors to the right.

Rows are independent. A thread takes 64 of them at a time, turned so that the rows lie side by side:
one processor instruction then works on many rows, and the tile stays in the cache. Product and
difference are rounded separately, in the order of the columns, as in the plain loop over columns.
So the result is that of the plain loop, bit for bit, for any number of threads.

Chapter: GPTQ.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from qlab.kernels.cpu.jit import jit

ROWS = 64  # with 32 the loops over rows take twice as long


@jit(parallel=True)
def quantize_columns(w, u, p, start, stop, which, scale, factor, zero, low, high, levels, bounds):
    """Quantize columns start ... stop - 1 of a block. All arrays but ``which`` are float32.

    Args:
        w: (rows, n), the block as it stands. Changed in place: a column that is done holds its
            quantized value (up to rounding), those after it have taken over the errors.
        u: (n, n), the rows and columns of the block in the upper factor of the inverse Hessian.
        p: (n, n), what GPTAQ adds, or (0, 0).
        which: int64 (n,), the column of ``scale`` and ``zero`` that belongs to each column.
        scale, factor, zero: (rows, groups). Integers: code = clip(round(w / factor) + zero), and
            its value (code - zero) * scale. Levels: the level nearest to w * factor, times scale.
        low, high: smallest and largest integer code.
        levels: ascending, at scale 1, or empty for integers.
        bounds: one less: y belongs to the level with as many bounds below y.

    Returns: codes (places in ``levels``), int16 (rows, stop - start), and the errors
        (w - value) / u[i, i], float32 (rows, stop - start).
    """
    rows, n = w.shape
    codes = np.empty((rows, stop - start), np.int16)
    errors = np.empty((rows, stop - start), np.float32)
    for part in prange((rows + ROWS - 1) // ROWS):
        top = part * ROWS
        count = min(ROWS, rows - top)
        tile = np.zeros((n, ROWS), np.float32)
        for r in range(count):
            for j in range(start, n):
                tile[j, r] = w[top + r, j]
        s, f, z = np.ones(ROWS, np.float32), np.ones(ROWS, np.float32), np.zeros(ROWS, np.float32)
        value, error, before = (
            np.zeros(ROWS, np.float32),
            np.zeros(ROWS, np.float32),
            np.zeros(ROWS, np.float32),
        )
        group = -1
        for i in range(start, stop):
            if which[i] != group:
                group = which[i]
                for r in range(count):
                    s[r], f[r] = scale[top + r, group], factor[top + r, group]
                    z[r] = zero[top + r, group]
            here = tile[i]
            if levels.size:
                for r in range(count):
                    place = np.searchsorted(bounds, here[r] * f[r])
                    codes[top + r, i - start] = place
                    value[r] = levels[place] * s[r]
            else:
                for r in range(ROWS):
                    code = np.rint(here[r] / f[r]) + z[r]
                    code = min(max(code, low), high)
                    value[r] = (code - z[r]) * s[r]
                    before[r] = code  # only to store it below, out of the vector loop
                for r in range(count):
                    codes[top + r, i - start] = np.int16(before[r])
            d = u[i, i]
            for r in range(ROWS):
                before[r] = here[r]
                error[r] = (here[r] - value[r]) / d
            for r in range(count):
                errors[top + r, i - start] = error[r]
            if p.size:
                for j in range(i, n):
                    a, b = u[i, j], p[i, j]
                    for r in range(ROWS):
                        tile[j, r] -= error[r] * a - before[r] * b
            else:
                for j in range(i, n):
                    a = u[i, j]
                    for r in range(ROWS):
                        tile[j, r] -= error[r] * a
        for r in range(count):
            for j in range(start, n):
                w[top + r, j] = tile[j, r]
    return codes, errors
