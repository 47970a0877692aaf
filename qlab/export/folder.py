"""A quantized model as a folder: safetensors, the tokenizer, and config.json with the scheme.

qlab's own layout, for every scheme: each quantized layer ``L`` is stored as ``L.packed`` (uint8),
``L.scale`` and, if asymmetric, ``L.zero_point`` (packed like the codes, in one row); everything
else under its usual name.
``config.json`` carries ``quantization_config`` with ``quant_method: "qlab"``, and per layer the
scheme, the shape and the dtype.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from qlab.core import QTensor, Scheme, pack, unpack
from qlab.errors import QlabError
from qlab.files import new_folder
from qlab.nn import QuantLinear, quant_layers, replace_layer

VERSION = 1


def save_folder(
    model: Any, tokenizer: Any, out: str | Path, *, method: str = "", overwrite: bool = False
) -> None:
    """Write a model with QuantLinear layers and its tokenizer to the folder ``out``, whole or not.

    Raises: QlabError if ``out`` exists (unless ``overwrite``) or cannot be written.
    """
    layers = {
        name: {
            "scheme": layer.scheme.name,
            "shape": [layer.out_features, layer.in_features],
            "dtype": layer.dtype_name,
        }
        for name, layer in quant_layers(model)
    }
    config = model.config.to_dict()
    config["quantization_config"] = {
        "quant_method": "qlab",
        "version": VERSION,
        "method": method,
        "layers": layers,
    }
    tied = _tied(model)
    tensors = {
        k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in tied
    }
    for name, layer in quant_layers(model):
        if layer.zero_point is not None:
            fmt = layer.scheme.format
            zeros = (layer.zero_point.flatten().cpu() - fmt.qmin).to(torch.uint8)
            tensors[f"{name}.zero_point"] = pack(zeros, fmt.bits)
    with new_folder(out, overwrite) as folder:
        # Bytes first, then one Python write: a full disk then gives an OSError with its reason.
        (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
        tokenizer.save_pretrained(folder)


def is_quantized_folder(folder: Path) -> bool:
    """True if ``config.json`` says that qlab quantized this folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "qlab"


def load_folder(folder: str | Path) -> Any:
    """Read back what ``save_folder`` wrote: a model with QuantLinear layers, on the CPU.

    Raises: QlabError if the folder is of a newer version, or lacks tensors.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(folder)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization = raw.pop("quantization_config")
    if quantization.get("version", 0) > VERSION:
        raise QlabError(
            f"'{folder}' was written by a newer qlab (layout {quantization['version']}, "
            f"this one reads {VERSION}): upgrade qlab"
        )
    config = AutoConfig.for_model(**{k: v for k, v in raw.items() if k != "transformers_version"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_file(folder / "model.safetensors")
    for name, about in quantization["layers"].items():
        try:
            packed, scale = tensors.pop(f"{name}.packed"), tensors.pop(f"{name}.scale")
        except KeyError as error:
            raise QlabError(f"'{folder}': tensor {error} is missing; quantize again") from None
        scheme, zero_point = Scheme.parse(about["scheme"]), None
        if not scheme.symmetric:
            try:
                zeros = tensors.pop(f"{name}.zero_point")
            except KeyError as error:
                raise QlabError(f"'{folder}': tensor {error} is missing; quantize again") from None
            zeros = unpack(zeros, scheme.format.bits, scale.numel()).to(torch.int32)
            zero_point = (zeros + scheme.format.qmin).reshape(scale.shape)
        weight = QTensor(
            packed,
            scale,
            zero_point,
            scheme,
            tuple(about["shape"]),
            about["dtype"],
        )
        replace_layer(model, name, QuantLinear(weight, tensors.pop(f"{name}.bias", None)))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    quantized = {f"{n}." for n, _ in quant_layers(model)}
    tied = _tied(model)
    missing = [m for m in missing if m not in tied and m.rpartition(".")[0] + "." not in quantized]
    if missing or unexpected:
        raise QlabError(
            f"'{folder}': tensors missing {missing[:3]}, unexpected {unexpected[:3]}; "
            "quantize again"
        )
    return model.eval()


def _tied(model: Any) -> set[str]:
    """Names in the state dict that are another name of an earlier tensor."""
    seen: dict[int, str] = {}
    tied = set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            tied.add(name)
        seen.setdefault(tensor.data_ptr(), name)
    return tied
