"""Quantize the storyteller through the schedulers of clusters, for "Many machines".

    .venv/bin/python tools/record_workers.py                   # installs both, runs, records
    .venv/bin/python tools/record_workers.py --packages FOLDER # where they are installed

Ray and Dask are no part of the book's environment. They are installed into a folder of their own,
and this Python sees them there. Each starts a scheduler with two worker processes on this machine;
``quantize_on_workers`` hands them one task a layer through joblib. The record,
qlab/records/workers.json, says whether the codes are those of the serial run, and how many
processes did the work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "qlab" / "records" / "workers.json"
PACKAGES = {"ray": ("ray==2.60.0",), "dask": ("dask==2026.8.0", "distributed==2026.8.0")}
METHOD, SCHEME, TEXTS, JOBS = "gptq", "int4-g128", 4, 2


def start(backend: str) -> str:
    """Register the backend, with two workers on this machine; its version."""
    if backend == "ray":
        import ray
        from ray.util.joblib import register_ray

        ray.init(num_cpus=JOBS, include_dashboard=False, log_to_driver=False)
        register_ray()
        return str(ray.__version__)
    import distributed

    distributed.Client(n_workers=JOBS, threads_per_worker=1, dashboard_address=None)
    return str(distributed.__version__)


def run(backend: str) -> dict[str, Any]:
    """Quantize with the backend and in turn; compare."""
    import joblib
    import torch

    import qlab
    from qlab.workers import quantize_on_workers

    version = start(backend)
    story = qlab.story.load()
    data = story.calibration()[:TEXTS]

    def small(name: str) -> dict[str, Any]:
        model, _ = quantize_on_workers(story.model, METHOD, SCHEME, data, jobs=JOBS, backend=name)
        return dict(model.named_buffers())

    serial, theirs = small("sequential"), small(backend)
    with joblib.parallel_config(backend=backend, n_jobs=JOBS):
        processes = set(joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(32)))
    return {
        "version": version,
        "joblib": joblib.__version__,
        "processes": len(processes - {os.getpid()}),
        "tensors": len(serial),
        "equal": sum(torch.equal(serial[name], theirs[name]) for name in serial),
    }


def install(folder: Path) -> None:
    """Both schedulers and what they require, into a folder beside the environment."""
    wanted = [package for packages in PACKAGES.values() for package in packages]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *wanted]
    subprocess.run(command, check=True)


def main() -> int:
    """Each backend in a process of its own, then the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=ROOT / "_build" / "envs" / "workers")
    parser.add_argument("--run", choices=sorted(PACKAGES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args.run)))
        return 0
    from qlab.files import new_file

    if not args.packages.exists():
        install(args.packages)
    # Workers are processes of other programs: they find packages, and this one, by the path.
    path = os.pathsep.join([str(ROOT), str(args.packages), *sys.path[1:]])
    found = {}
    for backend in PACKAGES:
        command = [sys.executable, str(Path(__file__).resolve()), "--run", backend]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
            return 1
        found[backend] = json.loads(done.stdout.strip().splitlines()[-1])
        print(backend, found[backend], flush=True)
    record = {
        "made_by": "tools/record_workers.py",
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "what": {"method": METHOD, "scheme": SCHEME, "texts": TEXTS, "jobs": JOBS},
        "backends": found,
    }
    with new_file(RECORD) as file:
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        file.chmod(0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main())
