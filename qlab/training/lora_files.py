"""Adapters in the files of peft: ``adapter_model.safetensors`` and ``adapter_config.json``.

Chapter: Fine-tuning a quantized model: QAF and QLoRA.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qlab.errors import QlabError
from qlab.files import new_folder
from qlab.nn import replace_layer
from qlab.training.lora import LoraLinear, lora_layers

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # of every name in peft's file
# What peft can do beyond plain LoRA, and the value that says it is off.
OFF: dict[str, Any] = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def save_adapter(
    model: nn.Module, out: str | Path, base: str = "", *, overwrite: bool = False
) -> None:
    """Write the adapters of a model as a folder that peft loads.

    Args:
        model: with adapters (``add_lora``), all of the same rank, alpha and dropout.
        out: the folder.
        base: where the base model is, a folder or a hub id; peft's ``AutoPeftModel`` reads it.
        overwrite: replace a folder that is there.

    Raises: QlabError without adapters, for adapters that differ, NaN, or a folder that exists.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    from safetensors.torch import save_file

    layers = list(lora_layers(model))
    if not layers:
        raise QlabError("the model has no LoRA adapters to save")
    if len({(m.rank, m.alpha, m.dropout) for _, m in layers}) > 1:
        raise QlabError(
            "the adapters differ in rank, alpha or dropout: peft's file has one of each"
        )
    tensors = {}
    for name, layer in layers:
        for part in ("lora_A", "lora_B"):
            tensor = getattr(layer, part).detach()
            if not bool(torch.isfinite(tensor).all()):
                raise QlabError(f"{part} of layer '{name}' holds NaN or infinity")
            tensors[f"{PREFIX}{name}.{part}.weight"] = tensor.contiguous().cpu()
    first = layers[0][1]
    config = {
        **OFF,
        "base_model_name_or_path": base or None,
        "fan_in_fan_out": any(type(m.base).__name__ == "Conv1D" for _, m in layers),
        "inference_mode": True,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "peft_type": "LORA",
        "r": first.rank,
        "target_modules": _targets(model, [name for name, _ in layers]),
        "task_type": "CAUSAL_LM",
    }
    with new_folder(out, overwrite) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """A copy of the model with the adapters of a folder that peft or ``save_adapter`` wrote.

    Args:
        model: the base, quantized or not, without adapters; left as it is.

    Raises: QlabError for a folder without the two files, an adapter that is not plain LoRA, a layer
        that the model lacks, or a shape that does not fit.

    Chapter: Fine-tuning a quantized model: QAF and QLoRA.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise QlabError(f"'{folder}' is no adapter: it lacks {name}")
    if any(True for _ in lora_layers(model)):
        raise QlabError("the model has LoRA adapters already: load into the base model")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise QlabError(f"'{folder}': {CONFIG} cannot be read ({error!r})") from None
    if config.get("peft_type") != "LORA":
        raise QlabError(f"'{folder}' holds {config.get('peft_type')}, and only LORA is read")
    for key, off in OFF.items():
        if config.get(key, off) not in (off, None, [], {}):
            raise QlabError(f"'{folder}' has {key}={config[key]!r}, and only plain LoRA is read")
    tensors = load_file(folder / WEIGHTS)
    ending = ".lora_A.weight"
    names = [k[len(PREFIX) : -len(ending)] for k in tensors if k.endswith(ending)]
    if not names or len(tensors) != 2 * len(names):
        raise QlabError(f"'{folder}' holds other tensors than pairs of lora_A and lora_B")
    small = copy.deepcopy(model).requires_grad_(False)
    for name in names:
        try:
            base = small.get_submodule(name)
        except AttributeError:
            raise QlabError(f"the model has no layer '{name}', which the adapter is for") from None
        try:
            layer = LoraLinear(base, rank, alpha, float(config.get("lora_dropout", 0.0)))
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
        for part in ("lora_A", "lora_B"):
            key, parameter = f"{PREFIX}{name}.{part}.weight", getattr(layer, part)
            if key not in tensors:
                raise QlabError(f"'{folder}' lacks {key}")
            if tensors[key].shape != parameter.shape:
                raise QlabError(
                    f"{part} of layer '{name}' has the shape {tuple(tensors[key].shape)}, and the "
                    f"model needs {tuple(parameter.shape)}: the adapter is for another model"
                )
            with torch.no_grad():
                parameter.copy_(tensors[key])
        replace_layer(small, name, layer)
    return small


def _targets(model: nn.Module, names: list[str]) -> list[str]:
    """What peft needs to find the same layers: last names where these suffice, else whole names."""
    last = {name.rpartition(".")[2] for name in names}
    every = {
        name
        for name, m in model.named_modules()
        if name.rpartition(".")[2] in last and not name.endswith(".base")
    }
    return sorted(last if every == set(names) else names)
