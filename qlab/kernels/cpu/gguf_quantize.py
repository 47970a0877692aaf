"""The compiled quantizers and dequantizers by name, and their division among threads.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.kernels.cpu import gguf_decode, gguf_iq1, gguf_iq_grid
from qlab.kernels.cpu.gguf_iq4 import encode_iq4
from qlab.kernels.cpu.gguf_k import encode_affine, encode_q3_k, encode_q6_k
from qlab.kernels.cpu.gguf_simple import all_finite, encode_affine_32, encode_q8_0, encode_symmetric

Array = NDArray[Any]

# name: (kernel, its last arguments, block size for kernels that take blocks, else 0 for rows)
_KERNELS: dict[str, tuple[Callable[..., Any], tuple[int, ...], int]] = {
    "Q4_0": (encode_symmetric, (8,), 0),
    "Q5_0": (encode_symmetric, (16,), 0),
    "Q4_1": (encode_affine_32, (15,), 0),
    "Q5_1": (encode_affine_32, (31,), 0),
    "Q8_0": (encode_q8_0, (), 0),
    "Q2_K": (encode_affine, (2,), 256),
    "Q3_K": (encode_q3_k, (), 256),
    "Q4_K": (encode_affine, (4,), 256),
    "Q5_K": (encode_affine, (5,), 256),
    "Q6_K": (encode_q6_k, (), 256),
    "IQ4_NL": (encode_iq4, (32,), 32),
    "IQ4_XS": (encode_iq4, (256,), 256),
}
# The types with a table of points: name: (kernel, its last arguments)
_GRID_KERNELS: dict[str, tuple[Callable[..., bool], tuple[int, ...]]] = {
    "IQ2_XXS": (gguf_iq_grid.encode_grid, (gguf_iq_grid.IQ2_XXS,)),
    "IQ2_XS": (gguf_iq_grid.encode_grid, (gguf_iq_grid.IQ2_XS,)),
    "IQ2_S": (gguf_iq_grid.encode_grid, (gguf_iq_grid.IQ2_S,)),
    "IQ3_XXS": (gguf_iq_grid.encode_grid, (gguf_iq_grid.IQ3_XXS,)),
    "IQ3_S": (gguf_iq_grid.encode_grid, (gguf_iq_grid.IQ3_S,)),
    "IQ1_S": (gguf_iq1.encode_iq1_s, ()),
    "IQ1_M": (gguf_iq1.encode_iq1_m, ()),
}
# name: (kernel, its last arguments)
_DECODERS: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
    "F16": (gguf_decode.decode_f16, ()),
    "BF16": (gguf_decode.decode_bf16, ()),
    "Q4_0": (gguf_decode.decode_symmetric, (8,)),
    "Q5_0": (gguf_decode.decode_symmetric, (16,)),
    "Q4_1": (gguf_decode.decode_affine_32, (15,)),
    "Q5_1": (gguf_decode.decode_affine_32, (31,)),
    "Q8_0": (gguf_decode.decode_q8_0, ()),
    "Q2_K": (gguf_decode.decode_q2_k, ()),
    "Q3_K": (gguf_decode.decode_q3_k, ()),
    "Q4_K": (gguf_decode.decode_q4_k, ()),
    "Q5_K": (gguf_decode.decode_q5_k, ()),
    "Q6_K": (gguf_decode.decode_q6_k, ()),
    "IQ4_NL": (gguf_decode.decode_iq4, (32,)),
    "IQ4_XS": (gguf_decode.decode_iq4, (256,)),
}
_MIN_WEIGHTS = 1 << 16  # for a thread of its own


# What a compiled quantizer returns. If not FINE, its output is not to be used.
FINE, NOT_FINITE, OVERFLOW = range(3)


def kernel(name: str) -> Callable[[Array, Array | None, Array, int | None], int] | None:
    """The compiled quantizer of a type, or None: called with (rows, importance, out, threads).

    It returns FINE, NOT_FINITE if a weight is not, or OVERFLOW if a square of one is not.
    """
    if name in _GRID_KERNELS:
        function, extra, block = *_GRID_KERNELS[name], 256
    elif name in _KERNELS:
        function, extra, block = _KERNELS[name]
    else:
        return None

    def run(x: Array, importance: Array | None, out: Array, threads: int | None) -> int:
        tables = _tables(name) if name in _GRID_KERNELS else ()
        weights = np.empty(0, np.float32) if importance is None else importance
        if block:
            weights = weights.reshape(-1, block)

        def part(rows: slice) -> int:
            a, b = x[rows], out[rows]
            if not block:  # these look for themselves
                return FINE if function(a, weights, b, *extra) else NOT_FINITE
            if not all_finite(a):
                return NOT_FINITE
            a = a.reshape(-1, block)
            done = function(a, weights, b.reshape(len(a), -1), *tables, *extra)
            return OVERFLOW if done is False else FINE  # most return nothing

        found = in_threads(part, len(x), x.size, threads)
        return NOT_FINITE if NOT_FINITE in found else max(found)

    return run


@functools.cache
def _tables(name: str) -> gguf_iq_grid.Tables:
    from qlab.gguf.blocks._grids import quantizer_grid

    grid = quantizer_grid(name)
    worth = (-1, 0, 1) if name.startswith("IQ1") else tuple(range(1, 2 * grid.levels, 2))
    return gguf_iq_grid.lay_out(grid, worth)


def decoder(name: str) -> Callable[[Array, Array, int | None], None] | None:
    """The compiled dequantizer of a type, or None: called with (blocks, out, threads)."""
    if name not in _DECODERS:
        return None
    function, extra = _DECODERS[name]

    def run(data: Array, out: Array, threads: int | None) -> None:
        if name in ("F16", "BF16"):
            data, out = data.reshape(-1).view("<u2"), out.reshape(-1)

        def part(blocks: slice) -> None:
            function(data[blocks], out[blocks], *extra)

        in_threads(part, len(data), out.size, threads)

    return run


def in_threads(
    part: Callable[[slice], Any], count: int, weights: int, threads: int | None
) -> list[Any]:
    """What ``part`` returns for slices of ``count`` things that hold so many weights in all."""
    wanted = threads or len(os.sched_getaffinity(0))
    pieces = max(1, min(wanted, count, weights // _MIN_WEIGHTS))
    if pieces == 1:
        return [part(slice(0, count))]
    edges = np.linspace(0, count, pieces + 1).astype(int)
    with ThreadPoolExecutor(pieces) as pool:
        return list(pool.map(part, [slice(a, b) for a, b in itertools.pairwise(edges)]))
