"""Train the storyteller for low bits under DeepSpeed on two CPU processes, and record the losses.

DeepSpeed compiles against the torch that is there, so it has an environment of its own:

    python -m venv B && B/bin/pip install torch==2.13.0 setuptools wheel ninja
    B/bin/pip install --no-build-isolation deepspeed==0.19.8
    B/bin/pip install transformers==5.23.0 accelerate==1.15.0 array-api-compat
    B/bin/python tools/record_deepspeed.py

Writes qlab/records/deepspeed.json: the losses of STEPS steps of qlab.training.processes on one
process without DeepSpeed, and on two under each of the configuration files of qlab/training, with
what each process held at the end. The record is of one set of weights of the storyteller; run the
script again when they change.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "qlab" / "records" / "deepspeed.json"
CONFIGS = ("zero1", "zero2", "zero3", "zero3_offload")
SCHEME = "int3-asym-channel"
STEPS, BATCH, LENGTH, LR, WARMUP, DISTILL, SEED = 6, 4, 48, 5e-4, 2, 0.5, 0


# Of DeepSpeed's parts for inference and compression, whose coming and going the chapter tells of.
MODULES = (
    "deepspeed.init_inference",
    "deepspeed.inference.v2",
    "deepspeed.inference.quantization",
    "deepspeed.compression.compress",
)


def present(name: str) -> bool:
    """Whether the installed DeepSpeed has this module or function."""
    import importlib.util

    import deepspeed

    parent, _, last = name.rpartition(".")
    if parent == "deepspeed":
        return hasattr(deepspeed, last)
    return importlib.util.find_spec(name) is not None


def trained(look: Any = None) -> tuple[Any, list[float]]:
    """The run on this process, or this process's part of it: model and losses."""
    import torch

    import qlab
    from qlab.training import TrainOptions, prepare, story_batches
    from qlab.training.processes import train_processes

    torch.set_num_threads(1)
    story = qlab.story.load()
    fake = prepare(story.model, SCHEME)
    batches = story_batches(story.tokenizer, BATCH, LENGTH, SEED)
    options = TrainOptions(steps=STEPS, lr=LR, warmup=WARMUP, distill=DISTILL, seed=SEED)
    # With cpu=True accelerate leaves DeepSpeed out without a word; DeepSpeed finds the CPU itself.
    cpu = "ACCELERATE_USE_DEEPSPEED" not in os.environ
    return train_processes(fake, batches, options, story.model, cpu=cpu, look=look)


def held(model: Any, optimizer: Any) -> dict[str, int]:
    """Bytes of the weights and of AdamW's state that this process holds, between two steps.

    ZeRO keeps a parameter's share in ``ds_tensor`` (stage 3), and its optimizer works on flat
    float32 copies of a process's share: in mixed precision the master weights.
    """
    import torch

    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        import deepspeed

        assert isinstance(model, deepspeed.DeepSpeedEngine), "DeepSpeed was left out"
    weights = sum(
        (p.ds_tensor if hasattr(p, "ds_tensor") else p).nbytes for p in model.parameters()
    )
    inner = optimizer.optimizer  # inside accelerate's wrapper
    while hasattr(inner, "optimizer"):  # inside DeepSpeed's
        inner = inner.optimizer
    moments = sum(
        value.nbytes
        for state in inner.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    outer = optimizer.optimizer
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")  # 1 and 2, 3
    copies = sum(flat.nbytes for name in names for flat in getattr(outer, name, ()))
    return {"weights": weights, "moments": moments, "copies": copies}


def worker(out: Path) -> None:
    """What each process runs; it writes what it saw."""
    import torch

    seen: dict[str, Any] = {}
    began = time.perf_counter()
    model, losses = trained(lambda m, o: seen.update(held(m, o)))
    seen |= {"losses": losses, "seconds": round(time.perf_counter() - began, 1)}
    seen["codes"] = codes(model)
    out.write_text(json.dumps(seen), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def codes(model: Any) -> str:
    """All packed codes of the converted model, in base 16."""
    from qlab.nn import quant_layers
    from qlab.training import convert

    return "".join(
        layer.packed.numpy().tobytes().hex() for _, layer in quant_layers(convert(model))
    )


def launch(config: str | None, processes: int) -> list[dict[str, Any]]:
    """What ``accelerate launch`` does: the same command on each process, told who it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running, outs = [], []
        for rank in range(processes):
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}  # ninja is there
            if processes > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                env |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if config is not None:
                file = ROOT / "qlab" / "training" / f"deepspeed_{config}.json"
                env |= {"ACCELERATE_USE_DEEPSPEED": "true"}
                env |= {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
                env |= {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}
            outs.append(Path(folder) / f"{rank}.json")
            command = [sys.executable, __file__, "--worker", str(outs[-1])]
            running.append(subprocess.Popen(command, env=env, cwd=ROOT))
        if any([process.wait() for process in running]):
            raise SystemExit(f"{config}: a process failed")
        return [json.loads(out.read_text(encoding="utf-8")) for out in outs]


def differing(one: str, other: str) -> float:
    """Share of bytes of packed codes that differ."""
    a, b = bytes.fromhex(one), bytes.fromhex(other)
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a)


def summary(processes: list[dict[str, Any]], base: dict[str, Any]) -> dict[str, Any]:
    """The mean loss of each step over the processes, and what each held."""
    losses = [sum(part) / len(part) for part in zip(*(p["losses"] for p in processes), strict=True)]
    words = ("weights", "moments", "copies")
    return {
        "processes": len(processes),
        "losses": [round(x, 7) for x in losses],
        "held": [{word: p[word] for word in words} for p in processes],
        "codes differ": round(max(differing(p["codes"], base["codes"]) for p in processes), 6),
        "seconds": max(p["seconds"] for p in processes),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=CONFIGS, help="configurations; print alone")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.worker:
        worker(chosen.worker)
        return 0
    from qlab.files import new_file
    from tools.weights import weights_hash

    base = launch(None, 1)
    runs = {"plain": summary(base, base[0])}
    print("plain", runs["plain"]["losses"], flush=True)
    for config in chosen.only:
        runs[config] = summary(launch(config, 2), base[0])
        print(config, runs[config], flush=True)
    if set(chosen.only) != set(CONFIGS):
        return 0
    names = ("deepspeed", "torch", "transformers", "accelerate", "numpy")
    record = {
        "script": "tools/record_deepspeed.py",
        "weights": weights_hash(),
        "versions": {n: importlib.metadata.version(n) for n in names},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": "gloo",
        "modules": {name: present(name) for name in MODULES},
        "date": time.strftime("%Y-%m-%d"),
        "run": {
            "scheme": SCHEME, "steps": STEPS, "batch": BATCH, "length": LENGTH, "lr": LR,
            "distill": DISTILL, "seed": SEED, "warmup": WARMUP,
        },
        "configs": {
            name: json.loads((ROOT / "qlab" / "training" / f"deepspeed_{name}.json").read_text())
            for name in CONFIGS
        },
        "runs": runs,
    }  # fmt: skip
    with new_file(RECORD) as file:
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        file.chmod(0o644)
    print(f"wrote {RECORD.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
