"""Figure: the values that formats can hold, on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlab.core import get_format
from qlab.errors import QlabError
from qlab.viz.interactive import figure, table
from qlab.viz.style import Picture

# Name -> its short label beside a row.
LABELS = {
    "int8": "int8",
    "fp8_e4m3": "fp8 e4m3",
    "fp8_e5m2": "fp8 e5m2",
    "int4": "int4",
    "fp4_e2m1": "fp4 e2m1",
    "nf4": "nf4",
    "log4": "log4",
    "ternary": "ternary",
    "fp6_e2m3": "fp6 e2m3",
    "fp6_e3m2": "fp6 e3m2",
    "e8m0": "e8m0",
    "fp16": "fp16",
    "bf16": "bf16",
}


def ruler(
    chosen: Sequence[str] = ("int8", "fp8_e4m3", "fp8_e5m2", "int4", "fp4_e2m1"),
    axis: str = "linear",
    same_largest: bool = False,
) -> Picture:
    """All values of several formats on a linear or a logarithmic axis; read them at any place.

    Args:
        chosen: the formats shown first, from ``LABELS``.
        axis: ``linear`` or ``log``.
        same_largest: stretch each format so that its largest value is 1, as a scale does.
    """
    unknown = [n for n in chosen if n not in LABELS]
    if unknown or not chosen:
        what = f"no format '{unknown[0]}'" if unknown else "nothing to show"
        raise QlabError(f"the ruler has {what}: choose {', '.join(LABELS)}")
    if axis not in ("linear", "log"):
        raise QlabError(f"axis '{axis}' is not known: linear or log")
    names = list(LABELS)
    rows = []
    for name in names:
        fmt = get_format(name)
        rows.append(
            (LABELS[name], f"{_smallest(name):.4g}", f"{fmt.max:.4g}", f"{fmt.step(1.0):g}")
        )
    return figure(
        "ruler",
        {
            "formats": [_entry(name) for name in names],
            "chosen": [names.index(n) for n in chosen],
            "log": axis == "log",
            "fit": same_largest,
        },
        alt="A row of ticks for each format, one tick for each value that it can hold, on a common "
        "axis, and a table of the values nearest to a place that the reader chooses.",
        caption="Where does each format have its values? Choose formats, axis and zoom, and move "
        "over the ruler, or the slider, to read the nearest value and the step.",
        fallback=table(("format", "smallest above 0", "largest", "step at 1"), rows),
    )


def _entry(name: str) -> dict[str, Any]:
    """A format for the script: its levels, or the layout of one too wide to list."""
    fmt = get_format(name)
    entry = {"name": name, "label": LABELS[name], "max": float(fmt.max), "signed": fmt.min < 0}
    if fmt.bits <= 8:
        return entry | {"levels": [float(v) for v in fmt.levels()]}
    return entry | {"mantissa": fmt.mantissa_bits, "lowest": 1 - fmt.bias}


def _smallest(name: str) -> float:
    fmt = get_format(name)
    if fmt.bits <= 8:
        return min(v for v in fmt.levels() if v > 0)
    return float(2.0 ** (1 - fmt.bias - fmt.mantissa_bits))
