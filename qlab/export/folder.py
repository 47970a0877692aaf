"""A quantized model as a folder: safetensors, the tokenizer, and config.json with the scheme.

qlab's own layout, for every scheme: each quantized layer ``L`` is stored as ``L.packed`` (uint8),
``L.scale`` (in the bits of its type: ``se8m0`` as uint8; where the scales are quantized too,
``L.scale_codes``, ``L.scale_absmax`` and ``L.scale_offset`` instead) and, if asymmetric,
``L.zero_point`` (packed like the codes, in one row), and ``L.tensor_scale`` of the schemes that
have one; everything else under its usual name. Parameters that layers share (granularity
``global``) are stored with the first of them.
``config.json`` carries ``quantization_config`` with ``quant_method: "qlab"``, and per layer the
scheme, the shape, the dtype and, if it has the parameters of another layer, that one's name. Where
the input of a layer is quantized too, ``activations`` holds its scheme and whether its range is
static; then ``L.input_scale`` and, if asymmetric, ``L.input_zero_point`` (int32) are stored.

Chapter: The case study, first telling.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from qlab.activations import ActivationQuant
from qlab.core import Scheme, pack, unpack
from qlab.core.parts import DOUBLED, from_parts
from qlab.core.scales import decode_scale, encode_scale
from qlab.errors import QlabError
from qlab.files import new_folder
from qlab.nn import QuantLinear, quant_layers, replace_layer

VERSION = 3  # 2: activations; 3: doubly quantized scales


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
    for name, layer in quant_layers(model):
        if layer.activations is not None:
            layers[name]["activations"] = {
                "scheme": layer.activations.scheme.name,
                "static": layer.activations.static,
            }
    config = model.config.to_dict()
    config["quantization_config"] = {
        "quant_method": "qlab",
        "version": VERSION,
        "method": method,
        "layers": layers,
    }
    tied = _tied(model)
    for name in layers:  # granularity `global`: one scale and zero point for many layers
        if f"{name}.scale" in tied:
            layers[name]["params_of"] = tied[f"{name}.scale"].removesuffix(".scale")
    tensors = {
        k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in tied
    }
    for name, layer in quant_layers(model):
        zero = layer.zero_point
        # Real zero points (HQQ) are stored as they are.
        if zero is not None and f"{name}.zero_point" not in tied and not zero.is_floating_point():
            fmt = layer.scheme.format
            zeros = (layer.zero_point.flatten().cpu() - fmt.qmin).to(torch.uint8)
            tensors[f"{name}.zero_point"] = pack(zeros, fmt.bits)
        if f"{name}.scale" in tensors:
            scale = tensors[f"{name}.scale"]
            tensors[f"{name}.scale"] = encode_scale(scale, layer.scheme.scale_word)
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
    params: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for name, about in quantization["layers"].items():
        scheme, owner = Scheme.parse(about["scheme"]), about.get("params_of", name)
        try:
            packed = tensors.pop(f"{name}.packed")
            if f"{name}.scale_codes" in tensors:
                parts = {part: tensors.pop(f"{name}.{part}") for part in DOUBLED}
            else:
                if owner not in params:
                    params[owner] = _read_params(tensors, owner, scheme)
                parts = dict(zip(("scale", "zero_point"), params[owner], strict=True))
            if scheme.has_tensor_scale:
                parts["tensor_scale"] = tensors.pop(f"{name}.tensor_scale")
        except KeyError as error:
            raise QlabError(f"'{folder}': tensor {error} is missing; quantize again") from None
        weight = from_parts(
            {"packed": packed, **parts}, scheme, tuple(about["shape"]), about["dtype"]
        )
        try:
            inputs = _read_activations(tensors, name, about.get("activations"))
        except KeyError as error:
            raise QlabError(f"'{folder}': tensor {error} is missing; quantize again") from None
        bias = tensors.pop(f"{name}.bias", None)
        replace_layer(model, name, QuantLinear(weight, bias, inputs))
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


def _read_params(
    tensors: dict[str, torch.Tensor], name: str, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Take scale and zero point of a layer out of ``tensors``. KeyError if one is missing."""
    scale = decode_scale(tensors.pop(f"{name}.scale"), scheme.scale_word)
    if scheme.symmetric:
        return scale, None
    zeros = tensors.pop(f"{name}.zero_point")
    if zeros.is_floating_point():
        return scale, zeros
    zeros = unpack(zeros, scheme.format.bits, scale.numel()).to(torch.int32)
    return scale, (zeros + scheme.format.qmin).reshape(scale.shape)


def _read_activations(
    tensors: dict[str, torch.Tensor], name: str, about: dict[str, Any] | None
) -> ActivationQuant | None:
    """How the input of a layer is quantized. KeyError if a tensor is missing."""
    if about is None:
        return None
    scheme = Scheme.parse(about["scheme"])
    if not about["static"]:
        return ActivationQuant(scheme)
    scale = tensors.pop(f"{name}.input_scale")
    zero_point = None if scheme.symmetric else tensors.pop(f"{name}.input_zero_point")
    return ActivationQuant(scheme, scale, zero_point)


def _tied(model: Any) -> dict[str, str]:
    """Names in the state dict of a tensor that has an earlier name, and that name."""
    seen: dict[int, str] = {}
    tied = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            tied[name] = seen[tensor.data_ptr()]
        seen.setdefault(tensor.data_ptr(), name)
    return tied
