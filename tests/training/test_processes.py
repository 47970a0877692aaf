"""Training on two CPU processes is training on one."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from qlab.errors import QlabError
from qlab.export import load_folder
from qlab.training import TrainOptions, prepare, train
from qlab.training.processes import train_processes


def launch(folder, out, processes):
    """What accelerate launch does: the same command on each process, told who it is."""
    words = ["--model", str(folder), "--scheme", "int4-g32", "--steps", "4", "--batch", "4",
             "--length", "24", "--lr", "1e-3", "--cpu", "--out", str(out)]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        command = [sys.executable, "-m", "qlab.training.processes", *words]
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
    return load_folder(out)


@pytest.mark.slow
def test_two_processes_are_one(tiny_folder, tmp_path):
    one = launch(tiny_folder, tmp_path / "one", 1)
    two = launch(tiny_folder, tmp_path / "two", 2)
    codes = total = 0
    for (name, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        if name.endswith("packed"):
            codes += int((a != b).sum())
            total += a.numel()
        elif name.endswith("scale"):
            # Sums of gradients in another order; AdamW divides by their size, so that where a
            # gradient is nearly zero a step may differ by as much as a step (1e-3).
            torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)
    assert total > 0 and codes < 0.02 * total  # a weight on the border of two codes may cross it


def test_one_process_is_the_plain_loop(tiny):
    model, _ = tiny
    options = TrainOptions(steps=3, lr=1e-3, distill=0.5)
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    ours, theirs = prepare(model, "int3-channel"), prepare(model, "int3-channel")
    rows = train(ours, lambda step: ids, options, teacher=model)
    theirs, losses = train_processes(theirs, lambda step: ids, options, model, cpu=True)
    assert [r.loss for r in rows] == losses
    assert all(
        torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_bad_input(tiny, monkeypatch):
    import accelerate

    monkeypatch.setattr(accelerate.Accelerator, "num_processes", property(lambda self: 3))
    model, _ = tiny
    with pytest.raises(QlabError, match="2 rows a step on 3 processes"):
        train_processes(prepare(model, "int4-g32"), lambda step: torch.ones(2, 8).long(),
                        TrainOptions(steps=1), cpu=True)  # fmt: skip
