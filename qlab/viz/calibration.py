"""Figure: what the calibration text and the percentile do to a range, and to the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

BINS = 240


@dataclass(frozen=True)
class Calibrated:
    """What one setting of the calibration gave.

    Attributes:
        source: the text that it ran on.
        percentile: percent of the values that the range holds; 100 is min-max.
        bits: of the activations.
        low, high: the range of the layer that is shown.
        perplexity: of the whole model.
    """

    source: str
    percentile: float
    bits: int
    low: float
    high: float
    perplexity: float


def calibration_ranges(
    values: Any, settings: Sequence[Calibrated], unquantized: float, layer: str
) -> Picture:
    """Move the percentile and choose the text; see the range, what it cuts off, the perplexity.

    Args:
        values: inputs of one layer on text that was not calibrated on; any shape, finite.
        settings: one for each combination of source, percentile and bits.
        unquantized: perplexity with activations in floating point.
        layer: its name, for the axis.

    Raises: QlabError if a combination is missing, or the values have no histogram.

    Chapter: Static, dynamic, mixed: the families of methods.
    """
    x = to_numpy(values).astype(np.float64).reshape(-1)
    if x.size < 2 or not np.isfinite(x).all() or x.min() == x.max():
        raise QlabError("calibration_ranges needs at least two different finite values")
    sources = list(dict.fromkeys(s.source for s in settings))
    percentiles = sorted({s.percentile for s in settings})
    bits = sorted({s.bits for s in settings}, reverse=True)
    found = {(s.source, s.bits, s.percentile): s for s in settings}
    counts, edges = np.histogram(x, bins=BINS)
    grid = []
    for source in sources:
        for b in bits:
            for p in percentiles:
                if (source, b, p) not in found:
                    raise QlabError(f"calibration_ranges: no setting for {source}, {b} bits, {p}")
                s = found[source, b, p]
                rounding, clipping = error_parts(x, s.low, s.high, b)
                grid.append(
                    {
                        "low": s.low,
                        "high": s.high,
                        "perplexity": s.perplexity,
                        "rounding": rounding,
                        "clipping": clipping,
                        "clipped": float(((x < s.low) | (x > s.high)).mean()),
                    }
                )
    power = float((x**2).mean())
    rows = [
        (
            source,
            f"{p:g}",
            *(f"{found[source, b, p].perplexity:.1f}" for b in bits),
        )
        for source in sources
        for p in percentiles
    ]
    header = ("calibrated on", "percentile", *(f"perplexity, {b} bits" for b in bits))
    return figure(
        "calibration",
        {
            "counts": counts.tolist(),
            "low": float(edges[0]),
            "high": float(edges[-1]),
            "sources": sources,
            "percentiles": percentiles,
            "bits": bits,
            "grid": grid,
            "power": power,
            "unquantized": unquantized,
            "layer": layer,
        },
        alt=f"Histogram of the inputs of {layer} with the range that calibration chose; below it "
        "the perplexity of the model against the percentile.",
        caption="How much to cut off? The range holds the given percentage of what the calibration "
        "text brought to each layer; 100 is min-max. Bars: what an unseen story brings to one "
        "layer. Below: the perplexity of the whole model, for each text to calibrate on.",
        fallback=table(header, rows),
    )


def error_parts(x: np.ndarray, low: float, high: float, bits: int) -> tuple[float, float]:
    """(rounding, clipping): mean squared error inside and outside of the range [low, high].

    Asymmetric, with 2^bits codes and an exact zero, as ``int8-asym-tensor``.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    codes = 2**bits - 1
    scale = (high - low) / codes or 1.0
    zero = np.clip(np.round(-low / scale), 0, codes)
    restored = (np.clip(np.round(x / scale) + zero, 0, codes) - zero) * scale
    squared = (x - restored) ** 2 / len(x)
    inside = (x >= low) & (x <= high)
    return float(squared[inside].sum()), float(squared[~inside].sum())
