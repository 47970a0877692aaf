"""Execute chapters beside one another, and put them where the build looks for them.

    python tools/run_chapters.py ROOT CACHE TIMEOUT

Sphinx executes one chapter after another. Most chapters use one core most of the time, so here
several run at once, a process and a thread each, and their outputs go into jupyter-cache; the
build then finds them there. A chapter whose header says ``alone: true`` measures time and is left
to the build, which runs it by itself. So is one that fails: the build runs it again and says where.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.chapters import header, notebooks


def read(path: Path) -> Any:
    """A chapter as MyST-NB reads it, so that the cache knows it again."""
    from myst_nb.core.read import read_myst_markdown_notebook

    return read_myst_markdown_notebook(
        path.read_text(encoding="utf-8"), add_source_map=True, path=str(path)
    )


def execute(path: Path, timeout: int) -> tuple[Any, float]:
    """(the executed notebook, or None where a cell failed; seconds), in a process of its own."""
    from jupyter_cache.executors.utils import single_nb_execution

    result = single_nb_execution(
        read(path), cwd=str(path.parent.resolve()), timeout=timeout, allow_errors=False
    )
    return (None if result.err else result.nb), result.time


def run_chapters(root: Path, folder: Path, timeout: int, workers: int | None = None) -> int:
    """Execute what ``folder`` (of jupyter-cache) lacks; returns how many chapters were executed.

    Args:
        timeout: seconds that a cell may take.
        workers: chapters at once; None for one a core, at most eight.
    """
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    cache = get_cache(folder)
    missing = []
    for path in notebooks(root):
        if header(path).get("alone"):
            continue
        try:
            cache.match_cache_notebook(read(path))
        except KeyError:
            missing.append(path)
    workers = workers or min(len(os.sched_getaffinity(0)), 8)
    if workers < 2 or len(missing) < 2:
        return 0
    done = 0
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(execute, path, timeout): path for path in missing}
        for future in as_completed(waiting):
            path = waiting[future]
            notebook, seconds = future.result()
            if notebook is None:
                print(f"{path.name}: a cell failed; it is run again below", flush=True)
                continue
            bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            done += 1
            passed = time.monotonic() - began
            print(f"{passed:5.0f} s  {path.name} executed in {seconds:.0f} s", flush=True)
    return done


if __name__ == "__main__":
    run_chapters(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
