"""The state of a training: weights, optimizer, log, and what it was prepared for.

A folder with ``state.safetensors`` and ``progress.json``, written beside its name and then renamed,
so it is whole or absent.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from qlab.errors import QlabError
from qlab.files import new_folder
from qlab.training.modules import fake_layers
from qlab.training.options import TrainOptions


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: TrainOptions,
    rows: list[dict[str, Any]],
) -> None:
    """Write the folder; an old one is replaced."""
    tensors = {f"model.{k}": v for k, v in _own_tensors(model).items()}
    for i, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{i}.{key}"] = torch.as_tensor(value)
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    about = {"layers": schemes_of(model), "options": asdict(options), "rows": rows}
    with new_folder(folder, overwrite=True) as fresh:
        (fresh / "state.safetensors").write_bytes(save(tensors))
        (fresh / "progress.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def load_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: TrainOptions,
) -> list[dict[str, Any]]:
    """Bring model and optimizer to the state in ``folder``; the rows of its log, [] without one.

    Raises: QlabError if the folder is no checkpoint, was written for another scheme, method or
        model, or with other options.
    """
    folder = Path(folder)
    if not folder.exists():
        return []
    try:
        about = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "state.safetensors")
        theirs, their_options, rows = about["layers"], about["options"], about["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QlabError(
            f"'{folder}' is no checkpoint of a training ({error}): name another folder"
        ) from None
    _check_schemes(folder, theirs, schemes_of(model))
    ours = json.loads(json.dumps(asdict(options)))
    other = [k for k in ours if their_options.get(k) != ours[k]]
    if other:
        k = other[0]
        raise QlabError(
            f"checkpoint '{folder}' was written with {k}={their_options.get(k)}, not {ours[k]}: "
            "use the same options, or another folder"
        )
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    wanted = _own_tensors(model)
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in wanted.items()}:
        raise QlabError(f"checkpoint '{folder}' is of another model: name another folder")
    model.load_state_dict(weights, strict=False)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return list(rows)


def schemes_of(model: nn.Module) -> dict[str, str]:
    """Layer -> method and scheme of its weight, and of its input if that is quantized."""
    found = {}
    for name, layer in fake_layers(model):
        found[name] = f"{layer.quantizer.method} {layer.quantizer.scheme}"
        if layer.inputs is not None:
            found[name] += f", inputs {layer.inputs.method} {layer.inputs.scheme}"
    return found


def _check_schemes(folder: Path, theirs: dict[str, str], ours: dict[str, str]) -> None:
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            raise QlabError(
                f"checkpoint '{folder}' is of another scheme: layer '{name}' is "
                f"'{theirs.get(name, 'not quantized')}' there and "
                f"'{ours.get(name, 'not quantized')}' here; prepare the model as it was, or name "
                "another folder"
            )


def _own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of the model, each tensor once: tied weights under their first name."""
    seen: set[int] = set()
    own = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[name] = tensor
    return own
