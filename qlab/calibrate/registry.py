"""The registry of observers: what a reader types, such as ``observer="entropy"``."""

from __future__ import annotations

import difflib
from typing import Any

from qlab.calibrate.dynamic import Dynamic
from qlab.calibrate.entropy import Entropy
from qlab.calibrate.mse import MseOptimal
from qlab.calibrate.observer import Observer
from qlab.calibrate.percentile import Percentile
from qlab.calibrate.ranges import MinMax, MovingAverage
from qlab.errors import QlabError

_OBSERVERS: dict[str, type[Observer]] = {
    kind.name: kind for kind in (MinMax, MovingAverage, Percentile, MseOptimal, Entropy, Dynamic)
}


def observer_names() -> list[str]:
    """Names of all observers."""
    return list(_OBSERVERS)


def get_observer(name: str, **options: Any) -> Observer:
    """A new observer of that name, with its own options: ``get_observer("percentile", p=99.9)``.

    Names: ``minmax``, ``moving-average``, ``percentile``, ``mse``, ``entropy``, ``dynamic``.

    Raises: QlabError naming the nearest known observers, or the options that this one takes.
    """
    if name not in _OBSERVERS:
        near = difflib.get_close_matches(str(name), _OBSERVERS, n=3, cutoff=0.3) or _OBSERVERS
        raise QlabError(f"unknown observer '{name}': did you mean {', '.join(near)}?")
    kind = _OBSERVERS[name]
    try:
        return kind(**options)
    except TypeError:
        names = [n for n in kind.__init__.__annotations__ if n != "return"]
        takes = ", ".join(names) or "no options"
        raise QlabError(f"observer '{name}' takes {takes}, got {', '.join(options)}") from None
