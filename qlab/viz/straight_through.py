"""Figure: one weight walks over the staircase of its codes by the straight-through gradient."""

from __future__ import annotations

import numpy as np

from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

STEPS = 40
RULES = ("straight through", "straight through, clip mask", "true gradient")
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
STARTS = tuple(i / 10 for i in range(-25, 26))


def rounded(w: float, scale: float, top: int) -> float:
    """ŵ: the nearest of the levels -top · scale ... top · scale."""
    return float(np.clip(np.round(w / scale), -top, top) * scale)


def walk(
    start: float, target: float, lr: float, rule: str, scale: float, top: int
) -> list[tuple[float, float]]:
    """(w, ŵ) at each of STEPS steps of descent on L = (ŵ - target)² / 2, the start first.

    Args:
        rule: what stands for ∂ŵ/∂w: 1; 1 within the range and 0 where w is clipped; or 0, the true
            derivative. The script of the figure computes the same; a test compares.
    """
    w, found = start, []
    for _ in range(STEPS + 1):
        w_hat = rounded(w, scale, top)
        found.append((w, w_hat))
        passes = {RULES[0]: True, RULES[1]: abs(np.round(w / scale)) <= top, RULES[2]: False}[rule]
        w = w - lr * (w_hat - target) * passes
    return found


def straight_through_path(
    target: float = 0.62, scale: float = 0.5, top: int = 3, start: float = -1.1
) -> Picture:
    """Move the start, the rate and the rule; see where a weight goes and where it stays.

    Args:
        target: the value that the loss wants, units of w.
        scale: of the codes.
        top: the largest code; codes run from -top to top.
        start: where the weight begins.

    Raises: QlabError for numbers that are not finite, a scale or top that is not positive.

    Chapter: Quantization-aware training.
    """
    if not np.isfinite([target, scale, start]).all() or scale <= 0 or top < 1:
        raise QlabError(
            f"straight_through_path needs finite numbers, scale > 0 and top >= 1; got target "
            f"{target}, scale {scale}, top {top}, start {start}"
        )
    rows = []
    for begin in (start, 2.3):
        for rule in RULES:
            path = walk(begin, target, 0.2, rule, scale, top)
            mean = float(np.mean([w_hat for _, w_hat in path[-20:]]))
            rows.append((f"{begin:g}", rule, f"{path[-1][0]:.3f}", f"{mean:.3f}"))
    return figure(
        "straightthrough",
        {
            "target": target,
            "scale": scale,
            "top": top,
            "start": min(range(len(STARTS)), key=lambda i: abs(STARTS[i] - start)),
            "starts": STARTS,
            "rates": RATES,
            "rules": RULES,
            "steps": STEPS,
        },
        alt="The loss of one weight: a smooth parabola and the staircase that rounding makes of "
        "it, with the steps of gradient descent on it; below, the weight and its rounded value "
        "against the step.",
        caption="Where does a weight go whose loss is a staircase? Above: the loss as rounding "
        f"makes it (solid) and without rounding (dashed), the target {target:g}, and the steps of "
        "descent. Below: the weight w (line) and its rounded value ŵ (dots). Compare the three "
        "rules for the derivative of rounding; then start outside of the range and switch the clip "
        "mask on.",
        fallback=table(
            ("start", "derivative of rounding", "w after 40 steps", "mean of the last 20 ŵ"), rows
        ),
    )
