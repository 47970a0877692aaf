"""Figures: ranges that SmoothQuant moves, and the columns that LLM.int8() takes apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from qlab.core import Scheme, quantize, sqnr
from qlab.errors import QlabError
from qlab.methods.llm_int8 import decompose, llm_int8
from qlab.methods.smoothquant import smoothing_scales
from qlab.mixed import Int8MixedLinear
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))
LARGEST = 1024  # features: each is a point in the drawing
# The two ways to cut activations that a product of integers allows.
ACTIVATIONS = {"a scale a token": "int8-token", "one scale": "int8-tensor"}

Layers = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def smoothing(layers: Layers) -> Picture:
    """The range of each feature in activations and weights, with alpha to choose.

    Args:
        layers: name -> (inputs (tokens, features), weight (out_features, features)), float32, of at
            most 1024 features. Weights that read one input are given as one, stacked.

    The error is that of the layer's output with int8 on both sides, computed here for 21 alphas and
    without smoothing.

    Raises: QlabError for shapes that do not match, or values that are not finite.

    Chapter: Why large models break.
    """
    _check(layers, "smoothing")
    data, rows = [], []
    for name, (x, w) in layers.items():
        x_absmax, w_absmax = x.abs().amax(0), w.abs().amax(0)
        errors = {key: smoothed_errors(x, w, word) for key, word in ACTIVATIONS.items()}
        plain = {key: int8_error(x, w, word) for key, word in ACTIVATIONS.items()}
        data.append(
            {
                "name": name,
                "x": _short(x_absmax),
                "w": _short(w_absmax),
                "errors": {key: [round(v, 3) for v in values] for key, values in errors.items()},
                "plain": {key: round(v, 3) for key, v in plain.items()},
            }
        )
        for key in ACTIVATIONS:
            rows.append((name, key, f"{plain[key]:.1f}", f"{errors[key][10]:.1f}"))
    return figure(
        "smoothing",
        {"layers": data, "alphas": list(ALPHAS), "kinds": list(ACTIVATIONS)},
        alt="Plot of the largest magnitude of each feature in the activations and in the weights, "
        "for a chosen alpha, and plot of the error of the layer's output against alpha.",
        caption="Who bears the range? Move alpha: from 0, where the weights are even and the "
        "activations bear all, to 1, where the activations are even. Dashed: without smoothing.",
        fallback=table(
            ("layer", "activations", "without smoothing (dB)", "alpha 0.5 (dB)"),
            rows,
        ),
    )


def outlier_columns(layers: Layers, thresholds: int = 41) -> Picture:
    """The features of an input by their reach, with the threshold of LLM.int8() to choose.

    Args:
        layers: as for ``smoothing``.
        thresholds: how many to choose from, evenly spaced in the logarithm.

    The error is that of the layer's output, computed here for each threshold.

    Raises: as ``smoothing``.

    Chapter: Why large models break.
    """
    _check(layers, "outlier_columns")
    data, rows = [], []
    for name, (x, w) in layers.items():
        absmax = x.abs().amax(0)
        top = float(absmax.max())
        low = max(float(absmax.min()), top / 1e4)
        # One more than the largest, so that the last choice keeps every column in int8.
        choices = np.append(np.geomspace(low, top, thresholds - 1), 1.1 * top)
        choices = np.unique([float(f"{v:.3g}") for v in [*choices, 6.0]])
        counts, errors = [], []
        for threshold in choices:
            count, error = mixed_error(x, w, float(threshold))
            counts.append(count)
            errors.append(round(error, 3))
        six = int(np.flatnonzero(choices == 6.0)[0])
        data.append(
            {
                "name": name,
                "absmax": _short(absmax),
                "thresholds": [float(v) for v in choices],
                "columns": counts,
                "errors": errors,
                "six": six,
            }
        )
        rows.append(
            (name, f"{counts[six]} of {len(absmax)}", f"{errors[-1]:.1f}", f"{errors[six]:.1f}")
        )
    return figure(
        "outliercolumns",
        {"layers": data},
        alt="Plot of the largest magnitude of each feature, from the largest to the smallest, with "
        "a threshold; and plot of the error of the layer's output against the threshold.",
        caption="How many columns must stay in high precision? Move the threshold: features that "
        "reach it for some token are taken apart, all others are int8.",
        fallback=table(
            ("layer", "columns apart at 6", "all in int8 (dB)", "threshold 6 (dB)"), rows
        ),
    )


def int8_error(x: torch.Tensor, w: torch.Tensor, activations: str) -> float:
    """SQNR in dB of x wᵀ with ``activations`` for x and int8-channel for w."""
    y = quantize(x, activations).dequantize() @ quantize(w, "int8-channel").dequantize().T
    return sqnr(x @ w.T, y)


def smoothed_errors(x: torch.Tensor, w: torch.Tensor, activations: str) -> list[float]:
    """The same after smoothing, for each of ``ALPHAS``."""
    found = []
    for alpha in ALPHAS:
        s = smoothing_scales(x.abs().amax(0), w.abs().amax(0), alpha)
        found.append(int8_error(x / s, w * s, activations))
    return found


def mixed_error(x: torch.Tensor, w: torch.Tensor, threshold: float) -> tuple[int, float]:
    """How many columns LLM.int8() takes apart, and the SQNR in dB of its output."""
    layer = Int8MixedLinear(llm_int8(w, None, Scheme.parse("int8-channel")), None, threshold)
    return len(decompose(x, threshold).outliers), sqnr(x @ w.T, layer(x))


def _short(values: torch.Tensor) -> list[float]:
    """Four digits are enough to draw a point."""
    return [float(f"{v:.4g}") for v in values.tolist()]


def _check(layers: Layers, what: str) -> None:
    if not layers:
        raise QlabError(f"{what} needs at least one layer: name -> (inputs, weight)")
    for name, (x, w) in layers.items():
        if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1] or 0 in (*x.shape, *w.shape):
            raise QlabError(
                f"{what}: layer '{name}' has inputs {tuple(x.shape)} and weight {tuple(w.shape)}: "
                "give (tokens, features) and (out_features, features)"
            )
        if x.shape[1] > LARGEST:
            raise QlabError(
                f"{what}: layer '{name}' has {x.shape[1]} features, and {LARGEST} can be drawn: "
                "take some of them"
            )
        if not (torch.isfinite(x).all() and torch.isfinite(w).all() and x.any() and w.any()):
            raise QlabError(
                f"{what}: layer '{name}' needs finite values that are not all zero: mask the others"
            )
