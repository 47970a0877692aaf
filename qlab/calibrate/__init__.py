"""Calibration: what a method may know of the data.

    observer = get_observer("percentile")        # or MinMax(), Entropy(), ...
    for x in batches:                            # NumPy arrays or torch tensors
        observer.observe(x)
    scale, zero_point = observer.params("int8-asym-tensor")

    stats = capture(model, story.calibration(), observers=("minmax", "entropy"))
    stats["model.layers.0.mlp.up_proj"].absmax                 # one value an input channel
    stats["model.layers.0.mlp.up_proj"].observers["entropy"].params("int8-tensor")

    inputs = LayerInputs.of(x)                   # what GPTQ and its kin need of one layer
    for block in BlockRunner(model, story.calibration()):        # one decoder block at a time
        gathered = block.gather(["mlp.up_proj"])

    scale = search_clip(w, "int4", "g128")       # the scale of least squared error, exact

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qlab.calibrate.dynamic import Dynamic
from qlab.calibrate.entropy import Entropy
from qlab.calibrate.histogram import Histogram
from qlab.calibrate.mse import MseOptimal
from qlab.calibrate.observer import Observer
from qlab.calibrate.percentile import Percentile
from qlab.calibrate.ranges import MinMax, MovingAverage
from qlab.calibrate.registry import get_observer, observer_names

# These need torch or Numba, which are imported when they are first used.
_LAZY = {
    "ActivationStats": "qlab.calibrate.activations",
    "BlockRunner": "qlab.calibrate.blocks",
    "LayerInputs": "qlab.calibrate.inputs",
    "LayerStats": "qlab.calibrate.activations",
    "capture": "qlab.calibrate.activations",
    "search_clip": "qlab.calibrate.clip",
    "search_range": "qlab.calibrate.clip",
}

__all__ = [
    "ActivationStats",
    "BlockRunner",
    "Dynamic",
    "Entropy",
    "Histogram",
    "LayerInputs",
    "LayerStats",
    "MinMax",
    "MovingAverage",
    "MseOptimal",
    "Observer",
    "Percentile",
    "capture",
    "get_observer",
    "observer_names",
    "search_clip",
    "search_range",
]

if TYPE_CHECKING:
    from qlab.calibrate.activations import ActivationStats, LayerStats, capture
    from qlab.calibrate.blocks import BlockRunner
    from qlab.calibrate.clip import search_clip, search_range
    from qlab.calibrate.inputs import LayerInputs


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qlab.calibrate' has no attribute {name!r}")
