"""What runs in a process of its own: one model, its memory and its speed. Prints one JSON object.

    python -m qlab.study.child engine MODEL WHOLE
    python -m qlab.study.child llama MODEL.gguf WHOLE.gguf

MODEL is a GGUF file or a model folder, WHOLE the GGUF file of the same model in float32. The two
write in turns, so that what else the machine does slows both; of each the fastest turn counts.

Chapter: The case study, whole.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

TURNS, TOKENS = 6, 32
PROMPT = "Once upon a time"


def resident_bytes() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not tell."""
    import os

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _give_back() -> None:
    """Freed memory to the system, so that it does not count."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass  # another C library: it counts a little more


def _write(engine: Any, prompt: list[int]) -> float:
    """Seconds for a token."""
    began = time.perf_counter()
    count = len(list(engine.generate(prompt, TOKENS, stop=())))
    return (time.perf_counter() - began) / count


def by_engine(model: str, whole: str) -> dict[str, Any]:
    """Memory and speed of qlab's engine, on one thread."""
    import qlab.engine

    def load(path: str) -> Any:
        engine = qlab.engine.load(path, progress=False)
        engine.threads = 1
        return engine

    first = load(whole)
    prompt = [t % first.sizes.vocabulary for t in (1, 5, 9, 13)]
    if Path(model).is_dir():
        qlab.load(model)  # what the import of transformers takes is not the model's
    _write(first, prompt)
    del first
    _give_back()
    before = resident_bytes()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = load(model)
    _write(engine, prompt)
    _give_back()
    after = resident_bytes()
    other = load(whole)
    mine, theirs = [], []
    for _ in range(TURNS):
        mine.append(_write(engine, prompt))
        theirs.append(_write(other, prompt))
    kinds = sorted(set(engine.kinds.values()))
    return {
        "memory_bytes": None if before is None or after is None else max(after - before, 0),
        "speed": min(theirs) / min(mine),
        "whole_per_second": 1 / min(theirs),
        "kinds": kinds,
        "note": "the engine has no kernel for some blocks and takes float32" if said else "",
    }


def by_llama(model: str, whole: str) -> dict[str, Any]:
    """Speed of llama.cpp, on one thread."""
    import xllamacpp

    def load(path: str) -> Any:
        settings = xllamacpp.CommonParams()
        settings.model.path = path
        settings.n_ctx, settings.n_parallel, settings.warmup = 256, 1, False
        settings.cpuparams.n_threads = 1
        return xllamacpp.Server(settings)

    ask = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}

    def speed(server: Any) -> float:
        return float(server.handle_completions(ask)["timings"]["predicted_per_second"])

    servers = load(model), load(whole)
    found = [[speed(s) for s in servers] for _ in range(TURNS)]
    mine, theirs = (max(column) for column in zip(*found, strict=True))
    return {"llama_speed": mine / theirs, "llama_whole_per_second": theirs}


def main(argv: list[str] | None = None) -> int:
    """Measure and print. 2: the engine does not run such a model; the reason is printed."""
    from qlab.errors import QlabError

    what, model, whole = (argv or sys.argv[1:])[:3]
    try:
        found = {"engine": by_engine, "llama": by_llama}[what](model, whole)
    except (QlabError, ImportError, RuntimeError) as error:
        print("QLAB-STUDY " + json.dumps({"error": str(error).splitlines()[0]}))
        return 2
    print("QLAB-STUDY " + json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
