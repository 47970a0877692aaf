"""Figure: where in a matrix the error lies, for each way to cut it into blocks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

LARGEST = 1 << 16  # elements; as 16-bit integers in base64 these are 175 kB
HALF = 16  # bits of a scale


@dataclass(frozen=True)
class Cut:
    """A matrix that was quantized in blocks.

    Attributes:
        restored: the values, float64 (rows, columns).
        scale: float64 (rows / block rows, columns / block columns).
        sqnr: in dB; infinite if nothing was lost.
        bits_per_weight: with a scale of 16 bits a block.
    """

    restored: np.ndarray
    scale: np.ndarray
    sqnr: float
    bits_per_weight: float


def error_map(weight: Any, name: str = "the weights") -> Picture:
    """A heat map of the error of a matrix, with the granularity, its size and the bits to choose.

    Args:
        weight: NumPy array or torch tensor (rows, columns) of at most 65,536 finite elements, with
            both sides multiples of 4. It is embedded as 16-bit integers.
        name: what the matrix is, for the caption.

    The error is that of symmetric round-to-nearest with a scale of 16 bits a block, such as
    ``int4-g32-sfp16``; the script computes it in the page.

    Raises: QlabError for another shape, or a matrix of zeros.

    Chapter: Granularity.
    """
    w = to_numpy(weight).astype(np.float64)
    if w.ndim != 2 or w.size > LARGEST or 0 in w.shape or any(s % 4 for s in w.shape):
        raise QlabError(
            f"error_map takes a matrix of at most {LARGEST:,} elements with sides that 4 divides, "
            f"got shape {w.shape}: cut one out of it"
        )
    if not np.isfinite(w).all() or not w.any():
        raise QlabError("error_map needs finite weights that are not all zero")
    whole, unit = as_integers(w)
    w = whole * unit
    far = np.unravel_index(int(np.abs(w).argmax()), w.shape)
    sizes = sizes_of(w.shape)
    middle = sizes[len(sizes) // 2]
    rows = []
    for label, block in (
        ("one scale for the matrix", w.shape),
        ("a scale a row", (1, w.shape[1])),
        ("a scale a column", (w.shape[0], 1)),
        (f"groups of {middle} in a row", (1, middle)),
        (f"blocks of {middle} x {middle}", (middle, middle)),
    ):
        cut = cut_into_blocks(w, 4, block)
        rows.append((label, f"{cut.sqnr:.1f}", f"{cut.bits_per_weight:.3f}"))
    return figure(
        "heatmap",
        {
            "weights": base64.b64encode(whole.astype("<i2").tobytes()).decode("ascii"),
            "unit": unit,
            "rows": w.shape[0],
            "columns": w.shape[1],
            "sizes": sizes,
            "far": [int(i) for i in far],
            "name": name,
        },
        alt=f"Heat map of the quantization error of {name}, a matrix of {w.shape[0]} rows and "
        f"{w.shape[1]} columns, with a magnified part in which the borders of blocks are drawn.",
        caption="Where does the error sit, and what does it cost to move it? Choose which weights "
        "share a scale, how many, and the bits. The lens magnifies the marked square: click into "
        "the map, or move it with the arrow keys.",
        fallback=table(("4 bits, with", "SQNR (dB)", "bits per weight"), rows),
    )


def as_integers(w: np.ndarray) -> tuple[np.ndarray, float]:
    """``w`` as integers of 16 bits times a unit: its largest magnitude becomes 32767."""
    unit = float(np.abs(w).max()) / 32767
    return np.rint(w / unit).astype(np.int64), unit


def sizes_of(shape: tuple[int, ...]) -> list[int]:
    """Powers of two, from 4, that divide both sides."""
    return [2**k for k in range(2, 17) if all(s % 2**k == 0 for s in shape)]


def cut_into_blocks(w: np.ndarray, bits: int, block: tuple[int, ...]) -> Cut:
    """Symmetric round-to-nearest of ``w``, float64 (rows, columns), with float16 scales.

    The script of the figure computes the same in the same order; a test compares the two.
    """
    q = 2 ** (bits - 1) - 1
    (r, c), (rows, columns) = w.shape, block
    parts = w.reshape(r // rows, rows, c // columns, columns)
    amax = np.abs(parts).max(axis=(1, 3))
    scale = np.maximum(np.float16(amax / q).astype(np.float64), 2.0**-24)
    scale = np.where(amax == 0, 1.0, scale)
    wide = scale[:, None, :, None]
    restored = (np.clip(np.rint(parts / wide), -q, q) * wide).reshape(r, c)
    noise = float(((w - restored) ** 2).sum())
    sqnr = float("inf") if noise == 0 else 10 * float(np.log10((w**2).sum() / noise))
    return Cut(restored, scale, sqnr, bits + HALF / (rows * columns))
