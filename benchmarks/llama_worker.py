"""llama.cpp as llama-cpp-python builds it, in a process of its own: its Python runs this file.

    PYTHON llama_worker.py MODEL.gguf THREADS

Each line of standard input is JSON, {"read": ids} or {"write": ids, "count": n}; the answer is a
line with the tokens that follow, greedily, and the seconds that ``engine.py`` counts. The native
build uses all instructions of the processor, which a prebuilt library may not, but for AMX: with
its extra buffers llama-cpp-python 0.3.36 crashes on a processor with AMX, so they are off here.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def main(path: str, threads: int) -> None:
    import llama_cpp
    import llama_cpp.llama_cpp as lib  # the C functions

    clock = time.thread_time if threads == 1 else time.perf_counter
    default = lib.llama_model_default_params

    def without_extra_buffers() -> object:
        params = default()
        params.use_extra_bufts = False
        return params

    lib.llama_model_default_params = without_extra_buffers
    llm = llama_cpp.Llama(
        path, n_ctx=512, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
        flash_attn=True, verbose=False,
    )  # fmt: skip
    context, size, seen = llm._ctx.ctx, llm.n_vocab(), 0

    def read(ids: list[int], fresh: bool = True) -> int:
        nonlocal seen
        if fresh:
            llm._ctx.kv_cache_clear()
            seen = 0
        llm._batch.set_batch(batch=ids, n_past=seen, logits_all=False)
        llm._ctx.decode(llm._batch)
        seen += len(ids)
        row = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (size,))
        return int(row.argmax())

    print(json.dumps({"version": llama_cpp.__version__, "size": size}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "read" in asked:
            began = clock()
            new = [read(asked["read"])]
        else:
            new = [read(asked["write"])]
            began = clock()
            while len(new) < asked["count"]:
                new.append(read(new[-1:], fresh=False))
        print(json.dumps({"tokens": new, "seconds": clock() - began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
