"""Figure: the levels of NF4 over weights that were divided by the largest of their block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.core.formats import get_format
from qlab.core.rate import code_entropy
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

BINS = 120
SIZES = tuple(2**k for k in range(3, 13))
FORMS = {"NF4": "nf4", "int4": "int4", "FP4 (bitsandbytes)": "fp4_bnb"}


def nf4_blocks(sources: Mapping[str, Any]) -> Picture:
    """A histogram of scaled weights with the levels of a format, for blocks of 8 to 4096.

    Args:
        sources: name -> array of finite numbers, 4096 of them at least; whole blocks of 4096 are
            taken, in row-major order.

    Raises: QlabError for fewer numbers, NaN or infinity, or blocks of zeros alone.

    Chapter: NF4 and double quantization.
    """
    shown = {name: _scaled(name, values) for name, values in sources.items()}
    if not shown:
        raise QlabError("nf4_blocks needs at least one set of weights")
    cases = {
        name: [[measure(v, size, word) for word in FORMS.values()] for size in SIZES]
        for name, v in shown.items()
    }
    first = next(iter(cases))
    rows = [
        (size, *(f"{form['sqnr']:.2f}" for form in cases[first][i]), *bits_of(size))
        for i, size in enumerate(SIZES)
    ]
    return figure(
        "nf4",
        {
            "sources": list(cases),
            "sizes": list(SIZES),
            "forms": list(FORMS),
            "levels": [levels_of(word) for word in FORMS.values()],
            "histograms": [[histogram(v, size) for size in SIZES] for v in shown.values()],
            "largest": [[largest(v, size) for size in SIZES] for v in shown.values()],
            "cases": list(cases.values()),
            "bits": [bits_of(size) for size in SIZES],
        },
        alt="Histogram of weights divided by the largest of their block, with the sixteen levels "
        "of NF4 as lines, and below it how often each level is used.",
        caption="Do the levels stand where the weights are? Choose the block size: the larger the "
        "block, the farther out is its largest weight, and the more the others are squeezed "
        "towards zero. NF4's levels stay where they are. (Below, the dashed line is equal use.)",
        fallback=table(
            ("block", *(f"{f}, SQNR (dB)" for f in FORMS), "bits", "bits, doubly quantized"), rows
        ),
    )


def levels_of(word: str) -> list[float]:
    """The distinct levels of a format on [-1, 1], ascending; int4 the fifteen of -7/7 to 7/7."""
    if word == "int4":
        return [q / 7 for q in range(-7, 8)]
    return [round(v, 7) for v in get_format(word).levels()]


def measure(values: np.ndarray, size: int, word: str) -> dict[str, Any]:
    """SQNR, use of each level in percent, and entropy of the codes, for blocks of ``size``."""
    blocks = values.reshape(-1, size)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    levels = np.array(levels_of(word))
    borders = (levels[:-1] + levels[1:]) / 2
    codes = np.searchsorted(borders, blocks / scale)
    noise = float(((blocks - levels[codes] * scale) ** 2).sum())
    use = np.bincount(codes.reshape(-1), minlength=len(levels)) / codes.size
    return {
        "sqnr": round(10 * float(np.log10((blocks**2).sum() / noise)), 3) if noise else 999.0,
        "use": [round(100 * float(u), 3) for u in use],
        "entropy": round(code_entropy(codes.reshape(-1)), 3),
    }


def histogram(values: np.ndarray, size: int) -> list[int]:
    """Counts of values over the largest magnitude of their block, in 120 bins from -1 to 1."""
    blocks = values.reshape(-1, size)
    y = blocks / np.abs(blocks).max(axis=1, keepdims=True)
    return [int(n) for n in np.histogram(y, BINS, range=(-1, 1))[0]]


def largest(values: np.ndarray, size: int) -> float:
    """The largest magnitude of the median block, in standard deviations of all values."""
    blocks = values.reshape(-1, size)
    return round(float(np.median(np.abs(blocks).max(axis=1)) / values.std()), 3)


def bits_of(size: int) -> tuple[str, str]:
    """Bits per weight with float32 scales, and with doubly quantized ones."""
    return f"{4 + 32 / size:.3f}", f"{4 + 8 / size + 32 / (256 * size):.3f}"


def _scaled(name: str, values: Any) -> np.ndarray:
    v = to_numpy(values).astype(np.float64).reshape(-1)
    whole = v.size // SIZES[-1] * SIZES[-1]
    v = v[:whole]
    if not whole or not np.isfinite(v).all() or not np.abs(v.reshape(-1, SIZES[0])).max(1).all():
        raise QlabError(
            f"nf4_blocks: '{name}' needs {SIZES[-1]:,} finite numbers at least, without blocks of "
            "zeros"
        )
    return v
