"""Make every record anew that depends on the storyteller's weights: ``make records``.

    .venv/bin/python tools/remake_records.py --list            # what there is, and what is stale
    .venv/bin/python tools/remake_records.py --envs FOLDER     # all that is stale, two at a time
    .venv/bin/python tools/remake_records.py case-study peers  # some of it

After a release of new weights (tools/release_storyteller.py) the numbers that take minutes belong
to the old ones, and tests fail until they are made anew. Each job is a script that can also be
called alone; its output goes to _build/records/NAME.log. Jobs run beside each other with one thread
each, those marked *alone* after all others. Tools whose requirements conflict with the book's have
environments in ``--envs``, made when they are missing (tools/toolbox/environments.py; half an hour
for all of them).
By the times that the scripts state, everything takes an hour and a half to two on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.toolbox.environments import ENVIRONMENTS, create  # noqa: E402  (after the path above)
from tools.weights import weights_hash  # noqa: E402

LOGS = ROOT / "_build" / "records"


@dataclass(frozen=True)
class Job:
    """Commands that make one or more records.

    Attributes:
        records: files that it writes, relative to the root.
        commands: one after the other. The first word is the Python: ``book``, or the name of an
            environment in ``--envs``. ``{work}`` and ``{envs}`` are replaced.
        alone: nothing else may run, because it measures time.
    """

    records: tuple[str, ...]
    commands: tuple[str, ...]
    alone: bool = False


# The longest first.
JOBS = {
    "transition": Job(
        ("qlab/records/transition.json",), ("book tools/record_transition.py --fresh",)
    ),
    "tools": Job(
        ("qlab/records/tools.json",),
        ("book tools/record_tools.py --again --envs {envs} --source {work}/tools",),
    ),
    "training": Job(("qlab/records/training.json",), ("book tools/train_results.py --fresh",)),
    "compress": Job(
        ("qlab/records/compress.json", "qlab/records/compress_students.json"),
        (
            "book tools/record_compress.py storyteller --fresh",
            "book tools/record_compress.py students --fresh",
        ),
    ),
    "who-loads": Job(
        ("qlab/records/who_loads.json",),
        ("book tools/record_who_loads.py --envs {envs} --folder {work}/who",),
    ),
    "vllm": Job(
        ("qlab/records/vllm.json",),
        (
            "book tools/record_vllm.py make {work}/vllm",
            "vllm tools/record_vllm.py measure {work}/vllm",
            "book tools/record_vllm.py record {work}/vllm",
        ),
    ),
    "peers": Job(
        ("qlab/records/peers.json",),
        (
            "book tools/record_peers.py make {work}/peers --models storyteller",
            "gptqmodel tools/record_peers.py gptqmodel {work}/peers --models storyteller",
            "llmcompressor tools/record_peers.py llmcompressor {work}/peers --models storyteller",
            "hqq tools/record_peers.py hqq {work}/peers --models storyteller",
            "hqq tools/record_peers.py hqq-real {work}/peers --models storyteller",
            "book tools/record_peers.py record {work}/peers --models storyteller",
        ),
    ),
    "case-study": Job(("qlab/records/case_study.json",), ("book tools/case_study.py",)),
    "evaluation": Job(("qlab/records/evaluation.json",), ("book tools/record_evaluation.py",)),
    "llamacpp": Job(
        ("tests/parity/data/llamacpp_story.json",), ("llama tools/record_llamacpp.py story",)
    ),
    "deepspeed": Job(("qlab/records/deepspeed.json",), ("deepspeed tools/record_deepspeed.py",)),
    "vllm-serve": Job(
        ("qlab/records/vllm_serve.json",),
        ("book tools/record_vllm.py serve {work}/served --vllm {envs}/vllm/bin/python",),
        alone=True,
    ),
}


def hashes_in(found: Any) -> set[str]:
    """Everything that a record calls ``weights`` and that is a SHA-256."""
    if isinstance(found, list):
        return set().union(*map(hashes_in, found))
    if not isinstance(found, dict):
        return set()
    here = {v for k, v in found.items() if k == "weights" and _is_hash(v)}
    return here.union(*map(hashes_in, found.values()))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def stale() -> list[str]:
    """The jobs of which a record is missing, or is not of the storyteller's weights."""
    import qlab
    from qlab.study import weights_hash as hash_of_model

    now = {weights_hash(), hash_of_model(qlab.story.load().model)}
    return [name for name, job in JOBS.items() if not all(_of(ROOT / r, now) for r in job.records)]


def _of(record: Path, hashes: set[str]) -> bool:
    return record.is_file() and not hashes.isdisjoint(hashes_in(json.loads(record.read_text())))


def commands_of(job: Job, envs: Path, work: Path) -> list[list[str]]:
    """The command lines of a job."""
    lines = []
    for command in job.commands:
        who, *rest = command.split()
        python = sys.executable if who == "book" else str(envs / who / "bin" / "python")
        lines.append([python, *(word.format(envs=envs, work=work) for word in rest)])
    return lines


def run(name: str, envs: Path, work: Path) -> bool:
    """Run a job's commands until one fails. Returns: whether all went well."""
    LOGS.mkdir(parents=True, exist_ok=True)
    began, log = time.monotonic(), LOGS / f"{name}.log"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as file:
        for command in commands_of(JOBS[name], envs, work):
            if not _python_exists(Path(command[0]), envs):
                print(f"{name}: no {command[0]}: make the environment (top of {command[1]})")
                return False
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            done = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=file, check=False)
            if done.returncode:
                print(f"{name}: {' '.join(command[1:3])} failed ({done.returncode}): see {log}")
                return False
    print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return True


def _python_exists(python: Path, envs: Path) -> bool:
    """Whether there is such an interpreter, after making its environment if it has to be made."""
    where = python.relative_to(envs).parts[0] if python.is_relative_to(envs) else None
    if where in ENVIRONMENTS:
        create(where, envs)
    return python.exists()


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--list", action="store_true", help="say what is stale, and stop")
    parser.add_argument("--envs", type=Path, default=ROOT / "_build" / "envs", metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=LOGS, metavar="FOLDER", help="for models")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.names) - set(JOBS)):
        parser.error(f"no job {', '.join(unknown)}: choose from {', '.join(JOBS)}")
    late = stale()
    if args.list:
        for name, job in JOBS.items():
            state = "stale" if name in late else "of these weights"
            print(f"{name:12}{state:18}{', '.join(job.records)}")
        return 0
    names = args.names or late
    together = [name for name in JOBS if name in names and not JOBS[name].alone]
    envs, work = args.envs.absolute(), args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        went = list(pool.map(lambda name: run(name, envs, work), together))
    went += [run(name, envs, work) for name in JOBS if name in names and JOBS[name].alone]
    return 0 if all(went) else 1


if __name__ == "__main__":
    sys.exit(main())
