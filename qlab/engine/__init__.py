"""The engine: a Llama-style decoder compiled with Numba, on quantized weights.

    engine = qlab.engine.load("story")
    for token in engine.generate(engine.tokenizer("Once upon a time")["input_ids"]):
        print(engine.tokenizer.decode(token), end="", flush=True)

Chapter: An engine in one file's worth of Python.
"""

from __future__ import annotations

from qlab.engine.cache import KVCache
from qlab.engine.engine import Engine, load

__all__ = ["Engine", "KVCache", "load"]
