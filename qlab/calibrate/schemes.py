"""What an observer needs to know of a scheme: its levels, and its parameters for a range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qlab.core import Granularity, Scheme
from qlab.core._array import Array
from qlab.core.formats import IntFormat
from qlab.core.scales import fit
from qlab.errors import QlabError


def read_scheme(scheme: Any, symmetric: bool | None = None) -> tuple[Scheme, Granularity | None]:
    """The scheme, and its granularity if it was named, of a scheme, a format, or the word of one.

    ``symmetric`` overrides what the scheme says; without either, a signed format is symmetric.
    """
    named = None
    if isinstance(scheme, str):
        word, scheme = scheme, Scheme.parse(scheme)
        if any(Granularity.parse(part) for part in word.lower().split("-")[1:]):
            named = scheme.granularity
    elif isinstance(scheme, Scheme):
        named = scheme.granularity
    elif hasattr(scheme, "levels"):
        scheme = Scheme(scheme, symmetric=scheme.signed)
    else:
        raise QlabError(f"expected a scheme or a format such as 'int8', got {scheme!r}")
    if symmetric is not None and symmetric != scheme.symmetric:
        if symmetric and not scheme.format.signed:
            raise QlabError(f"format '{scheme.format.name}' has no negative codes to mirror")
        scheme = replace(scheme, symmetric=symmetric)
    return scheme, named


def range_params(minimum: Array, maximum: Array, scheme: Scheme) -> tuple[Array, Array | None]:
    """scale and zero_point that cover [minimum, maximum] (float32 arrays of the same shape)."""
    return fit(minimum, maximum, scheme)


def reach(scheme: Scheme) -> float:
    """The magnitude that a symmetric scale of 1 covers: ``range_params`` divides by it."""
    fmt = scheme.format
    if isinstance(fmt, IntFormat):
        qmin, qmax = fmt.range(True, scheme.full)
        return (qmax - qmin) / 2 if scheme.full else float(max(qmax, -qmin))
    return fmt.max


def levels_in_use(scheme: Scheme) -> np.ndarray:
    """float64, ascending: what the codes stand for at scale 1 (zero point not subtracted).

    Raises: QlabError for formats of more than 8 bits, whose scale makes no difference, and for
        codebooks that are fitted to each tensor.
    """
    fmt = scheme.format
    if fmt.bits > 8:
        raise QlabError(
            f"format '{fmt.name}' has {fmt.bits} bits: searching its scale is for 8 bits and fewer"
        )
    if isinstance(fmt, IntFormat):
        qmin, qmax = fmt.range(scheme.symmetric, scheme.full)
        return np.arange(qmin, qmax + 1, dtype=np.float64)
    return np.unique(np.asarray(fmt.levels(), np.float64))
