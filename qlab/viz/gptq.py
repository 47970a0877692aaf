"""Figure: GPTQ step by step, the error of a column pushed to the columns still to come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qlab.core._array import to_numpy
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

LARGEST = (8, 12)  # rows and columns that can still be read on a phone


def gptq_steps(weight: Any, hessian: Any, bits: int = 3, pay: bool = True) -> dict[str, Any]:
    """GPTQ of a small weight, in float64, and how everything stands after each column.

    Args:
        weight: (rows, columns). hessian: (columns, columns), positive definite; no damping.
        bits: symmetric codes, one scale a row.
        pay: whether later columns make up for the error; without it, this is round to nearest.

    Returns:
        weights: (columns + 1, rows, columns), after 0, 1, ... columns; done ones are on the grid.
        codes: (rows, columns).
        loss: columns + 1 numbers, tr(d H d^T) of the weights after each step, d the change.
    """
    w, h = (to_numpy(a).astype(np.float64) for a in (weight, hessian))
    u = np.linalg.cholesky(np.linalg.inv(h)).T  # upper: h^-1 = u^T u
    qmax = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axis=1) / qmax
    scale[scale == 0] = 1
    now, codes = w.copy(), np.zeros(w.shape, int)
    weights, loss = [w.copy()], [0.0]
    for i in range(w.shape[1]):
        codes[:, i] = np.clip(np.round(now[:, i] / scale), -qmax, qmax)
        error = (now[:, i] - codes[:, i] * scale) / u[i, i]
        if pay:
            now[:, i:] -= np.outer(error, u[i, i:])
        now[:, i] = codes[:, i] * scale
        weights.append(now.copy())
        d = now - w
        loss.append(float(((d @ h) * d).sum()))
    return {"weights": np.array(weights), "codes": codes, "loss": loss}


def pushed_error(weight: Any, hessians: Mapping[str, Any], bits: int = 3) -> Picture:
    """Quantize a small layer one column at a time, and see who pays.

    Args:
        weight: (rows, columns), at most 8 x 12, finite.
        hessians: name of the inputs -> H (columns, columns), positive definite.
        bits: of the codes, 2 to 8; one scale a row.

    Chapter: GPTQ.
    """
    w = to_numpy(weight).astype(np.float64)
    if w.ndim != 2 or not 0 < w.shape[0] <= LARGEST[0] or not 1 < w.shape[1] <= LARGEST[1]:
        raise QlabError(
            f"pushed_error shows at most {LARGEST[0]} x {LARGEST[1]} weights, got {w.shape}: "
            "pass a part of the layer"
        )
    if not hessians or not np.isfinite(w).all():
        raise QlabError("pushed_error needs finite weights and a Hessian or more: {name: H}")
    kinds, rows = [], []
    for name, hessian in hessians.items():
        h = to_numpy(hessian).astype(np.float64)
        if h.shape != (w.shape[1],) * 2 or np.linalg.eigvalsh(h).min() <= 0:
            raise QlabError(
                f"pushed_error: the Hessian '{name}' must be positive definite, of shape "
                f"({w.shape[1]}, {w.shape[1]}): add a little to its diagonal"
            )
        ways = {"gptq": gptq_steps(w, h, bits), "rtn": gptq_steps(w, h, bits, pay=False)}
        kinds.append({"name": name} | {
            way: {
                "change": [[[_short(v) for v in row] for row in step - w] for step in s["weights"]],
                "codes": s["codes"].tolist(),
                "loss": [_short(v) for v in s["loss"]],
            }
            for way, s in ways.items()
        })  # fmt: skip
        rows.append((name, *(f"{ways[way]['loss'][-1]:.3g}" for way in ("rtn", "gptq"))))
    scale = np.abs(w).max(axis=1) / (2 ** (bits - 1) - 1)
    return figure(
        "gptq",
        {
            "weight": [[_short(v) for v in row] for row in w],
            "steps": [_short(v) for v in scale],
            "bits": bits,
            "kinds": kinds,
        },
        alt="A small weight matrix that is quantized column by column. Colors show how far each "
        "weight has moved; below, the error of the layer's outputs after each column, for GPTQ and "
        "for round to nearest.",
        caption="Who pays for the error? Move through the columns. Then turn the payment off, and "
        "then take inputs that do not go together: nobody can pay.",
        fallback=table(("inputs", "output error, round to nearest", "with payment (GPTQ)"), rows),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
