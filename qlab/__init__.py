"""qlab: how language models are quantized, from scratch and verified against the tools in use.

The names a reader types first live here. Heavy parts (torch, transformers) are imported when they
are first used, so that ``import qlab`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qlab.core import QTensor, Scheme, cosine, max_error, mse, quantize, sqnr
from qlab.errors import QlabError

__version__ = "0.1.0"

# Public name -> module that defines it. Everything here may need torch.
_LAZY = {
    "perplexity": "qlab.evaluate.perplexity",
    "quantize_model": "qlab.pipeline",
    "load": "qlab.sources",
}

# Parts that are imported as ``qlab.NAME`` when they are first used.
_ROOMS = (
    "calibrate", "compress", "engine", "evaluate", "export", "gguf", "methods", "nn", "story",
    "training", "viz",
)  # fmt: skip

__all__ = [
    "QTensor",
    "QlabError",
    "Scheme",
    "cosine",
    "load",
    "max_error",
    "mse",
    "perplexity",
    "quantize",
    "quantize_model",
    "sqnr",
    "story",
]

if TYPE_CHECKING:
    from qlab import story
    from qlab.evaluate.perplexity import perplexity
    from qlab.pipeline import quantize_model
    from qlab.sources import load


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"qlab.{name}")
    raise AttributeError(f"module 'qlab' has no attribute {name!r}")
