"""The engine's one door to the kernels: Y = X Wᵀ for a matrix in the arena.

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from qlab.engine.kernels import call
from qlab.kernels.cpu.jit import jit

# Columns of ``Weights.matrices``. A matrix that is joined to the one before it has 0 rows.
KIND, ROWS, COLUMNS, GROUP, START, STOP, ADDRESS = range(7)
TILE = 16  # rows that a kernel computes at a time
# Multiplications below which one processor is quicker than waking the others.
ALONE = 1 << 21


@jit(parallel=True)
def _prepare_in_parallel(where, kind, x, work):
    for t in prange(len(x)):
        call(where, (kind, x[t], work, t, len(x)))


@jit(parallel=True)
def _multiply_in_parallel(matrix, weight, tokens, work, out, parts):
    tiles = (matrix[ROWS] + TILE - 1) // TILE
    for part in prange(parts):
        first, last = part * tiles // parts, (part + 1) * tiles // parts
        sizes = matrix[ROWS], matrix[COLUMNS], matrix[GROUP]
        call(matrix[ADDRESS], (weight, *sizes, tokens, work, out, first, last))


@jit()
def linear(x, arena, matrix, out, s):
    """out (rows, out_features) = x (rows, in_features) Wᵀ, W given by its row of ``matrices``.

    The inputs are quantized as the kernel wants them, once for all rows of the matrix.
    """
    kind, rows, columns, tokens = matrix[KIND], matrix[ROWS], matrix[COLUMNS], len(x)
    weight = arena[matrix[START] : matrix[STOP]]
    work = np.empty((columns + 255) // 256 * 256 * 4 * tokens, np.uint8)
    tiles = (rows + TILE - 1) // TILE
    alone = s.threads == 1 or rows * columns * tokens < ALONE
    if alone or tokens == 1:
        for t in range(tokens):
            call(s.prepare, (kind, x[t], work, t, tokens))
    else:
        _prepare_in_parallel(s.prepare, kind, x, work)
    if alone:
        sizes = rows, columns, matrix[GROUP]
        call(matrix[ADDRESS], (weight, *sizes, tokens, work, out, 0, tiles))
    else:
        _multiply_in_parallel(matrix, weight, tokens, work, out, min(s.threads, tiles))
