"""Record what auto-round computes on small layers, for tests/parity/test_autoround.py.

auto-round asks for versions of its own, so it lives in an environment of its own:

    python -m venv autoround-env
    autoround-env/bin/pip install torch==2.13.0 auto-round==0.16.1
    autoround-env/bin/python tools/record_autoround.py

Writes tests/parity/data/autoround.npz: what its quantizer makes of matrices with given V, alpha and
beta, and what its wrapper of a layer, its optimizer and its schedule learn in some steps. Inputs
are drawn by NumPy, and the test draws them again.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parents[1] / "tests" / "parity" / "data" / "autoround.npz"
KINDS = (
    "normal",
    "wide",
    "zeros",
    "an outlier",
    "half zeros",
    "huge",
    "one sign",
    "constant",
)
# bits, group size (-1: a row); all with a zero point
GRIDS = ((4, 32), (3, 16), (2, 32), (8, 16), (4, -1))
# bits, group size, steps
RUNS = ((4, 32, 200), (3, 16, 100), (2, 32, 50), (4, -1, 100))
ROWS, COLUMNS, TOKENS = 12, 64, 96


def matrix(kind):
    """float32 (12, 64), by NumPy."""
    rng = np.random.default_rng(sum(kind.encode()))
    w = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) * np.float32(0.05)
    if kind == "wide":
        w = w * np.exp(2 * rng.standard_normal((ROWS, COLUMNS))).astype(np.float32)
    elif kind == "zeros":
        w[:] = 0
    elif kind == "an outlier":
        w[2, 5] = 9.0
    elif kind == "half zeros":
        w[:, ::2] = 0
    elif kind == "huge":
        w *= np.float32(1e30)
    elif kind == "one sign":
        w = np.abs(w) + np.float32(0.5)
    elif kind == "constant":
        w[:] = 0.25
    return w


def parameters(group_size, seed=5):
    """V (12, 64), alpha and beta (12, groups), float32, by NumPy."""
    rng = np.random.default_rng(seed)
    groups = 1 if group_size == -1 else COLUMNS // group_size
    v = rng.uniform(-0.5, 0.5, (ROWS, COLUMNS)).astype(np.float32)
    alpha, beta = (rng.uniform(0.6, 1, (ROWS, groups)).astype(np.float32) for _ in range(2))
    return v, alpha, beta


def inputs():
    """Correlated inputs, some features larger than others: float32 (96, 64), by NumPy."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((TOKENS, COLUMNS)) * np.exp(rng.standard_normal(COLUMNS))
    x += rng.standard_normal((TOKENS, 4)) @ rng.standard_normal((4, COLUMNS))
    return x.astype(np.float32)


def rounded(kind, bits, group_size):
    """Its quantizer with given parameters: the restored weight and the scales."""
    from auto_round.data_type.int import quant_tensor_asym

    v, alpha, beta = map(torch.from_numpy, parameters(group_size))
    w, scale, _ = quant_tensor_asym(
        torch.from_numpy(matrix(kind)),
        bits=bits,
        group_size=group_size,
        v=v.reshape(-1, COLUMNS if group_size == -1 else group_size),
        min_scale=beta.reshape(-1),
        max_scale=alpha.reshape(-1),
        scale_dtype=torch.float32,
        q_scale_thresh=1e-8,  # what its wrapper takes with scales of float32
    )
    return w.numpy(), scale.numpy()


def run(bits, group_size, steps):
    """Learn one layer: the loss before each step, and the best restored weight.

    Its wrapper, optimizer and schedule, in the loop of its ``quantize_layer_outside_block``; every
    step sees all inputs.
    """
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
    from auto_round.wrapper import WrapperLinear

    layer = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    layer.weight.data = torch.from_numpy(matrix("normal"))
    layer.bits, layer.sym, layer.group_size, layer.data_type = bits, False, group_size, "int"
    layer.scale_dtype, layer.act_bits = torch.float32, 16
    x = torch.from_numpy(inputs())
    target = layer(x).detach()
    wrapped = WrapperLinear(layer, enable_torch_compile=False)
    names = list(wrapped.params)
    optimizer = SignSGD([wrapped.params[n] for n in names], lr=torch.tensor(1 / steps))
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps
    )
    losses, best, least = [], {}, float("inf")
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(wrapped(x), target)
        (loss * 1000).backward()  # as its own, to keep small gradients
        losses.append(loss.item())
        if losses[-1] < least:
            least = losses[-1]
            best = {n: wrapped.params[n].detach().clone() for n in names}
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    w, scale, _ = wrapped._qdq_weight(best["value"], best["min_scale"], best["max_scale"])
    return np.array(losses), w.detach().numpy(), scale.detach().numpy()


def main():
    logging.disable(logging.WARNING)
    versions = {n: importlib.metadata.version(n) for n in ("auto-round", "torch")}
    found = {"versions": np.array(json.dumps(versions))}
    for kind in KINDS:
        for bits, group_size in GRIDS:
            name = f"rounded {kind} {bits} {group_size}"
            found[name], found[f"{name} scales"] = rounded(kind, bits, group_size)
    for bits, group_size, steps in RUNS:
        name = f"run {bits} {group_size}"
        found[f"{name} losses"], found[name], found[f"{name} scales"] = run(bits, group_size, steps)
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **found)


if __name__ == "__main__":
    main()
