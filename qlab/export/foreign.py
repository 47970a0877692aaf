"""Folders with ``quantization_config`` that transformers and vLLM load; and reading them.

    save_foreign(small, tokenizer, "story-gptq", "gptq")
    qlab.load("story-gptq")

Formats: ``gptq`` (version 1), ``gptq_v2``, ``awq``, ``compressed-tensors``. Chapter: The case
study, second telling.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from qlab.activations import ActivationQuant
from qlab.core import QTensor, Scheme
from qlab.errors import QlabError
from qlab.export import layouts
from qlab.files import new_folder
from qlab.nn import QuantLinear, linear_layers, quant_layers, replace_layer

FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors")


def save_foreign(
    model: Any,
    tokenizer: Any,
    out: str | Path,
    format: str,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> None:
    """Write a model with QuantLinear layers as other libraries read it, whole or not at all.

    GPTQ and AWQ store scales as float16: quantize with ``-sfp16`` in the scheme, and the files
    hold exactly what qlab computes with.

    Args:
        format: one of ``FORMATS``.
        dtype: of everything that is not quantized, and of compressed-tensors' scales.

    Raises: QlabError for an unknown format, a model without quantized layers, layers that the
        format cannot hold (names the layer), or if ``out`` exists (unless ``overwrite``).
    """
    if format not in FORMATS:
        raise QlabError(f"unknown format '{format}': there are qlab, {', '.join(FORMATS)}")
    layers = dict(quant_layers(model))
    if not layers:
        raise QlabError("the model has no quantized layers: quantize it first")
    kept = [name for name, _ in linear_layers(model, skip=())]
    make = {
        "gptq": lambda layer: layouts.to_gptq(layer, 1),
        "gptq_v2": lambda layer: layouts.to_gptq(layer, 2),
        "awq": layouts.to_awq,
        "compressed-tensors": lambda layer: layouts.to_compressed(layer, dtype),
    }[format]
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        try:
            for key, value in make(layer).items():
                tensors[f"{name}.{key}"] = value
        except QlabError as error:
            raise QlabError(f"layer '{name}': {error}") from None
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] not in layers and not (
            key in tied and model.config.tie_word_embeddings
        ):
            floating = value.is_floating_point()
            tensors[key] = value.detach().cpu().to(dtype if floating else value.dtype).contiguous()
    config = model.config.to_dict()
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = _config(format, layers, kept)
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with new_folder(out, overwrite) as folder:
        (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _config(format: str, layers: dict[str, QuantLinear], kept: list[str]) -> dict[str, Any]:
    schemes = {layer.scheme.name: layer for layer in layers.values()}
    if format == "compressed-tensors":
        return _compressed_config(layers, kept)
    if len(schemes) > 1:
        raise QlabError(
            f"format '{format}' has one scheme for all layers, and here are {', '.join(schemes)}: "
            "use 'compressed-tensors'"
        )
    (layer,) = schemes.values()
    size = layouts.group_size_of(layer.scheme, layer.in_features)
    if format == "awq":
        found = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": kept or None,
        }
        return found
    return {
        "quant_method": "gptq",
        "bits": layer.scheme.format.bits,
        "group_size": size,
        "desc_act": False,
        "sym": layer.scheme.symmetric,
        "lm_head": False,
        "checkpoint_format": format,
        "pack_dtype": "int32",
    }


def _compressed_config(layers: dict[str, QuantLinear], kept: list[str]) -> dict[str, Any]:
    alike: dict[tuple[str, str], list[str]] = {}
    for name, layer in layers.items():
        alike.setdefault((layer.scheme.name, str(layer.activations or "")), []).append(name)
    groups, kinds = {}, set()
    for i, names in enumerate(alike.values()):
        layer = layers[names[0]]
        inputs = layer.activations
        kinds.add(_kind(layer))
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(alike) == 1 else names,
            "weights": _arguments(layer.scheme, layer.in_features, dynamic=False),
            "input_activations": inputs
            and _arguments(inputs.scheme, layer.in_features, dynamic=not inputs.static),
            "output_activations": None,
            "format": _kind(layer),
        }
    if len(kinds) > 1:
        raise QlabError(
            f"one folder of compressed-tensors holds one kind of layers, and here are "
            f"{', '.join(sorted(kinds))}: quantize the inputs of all layers, or of none"
        )
    return {
        "quant_method": "compressed-tensors",
        "format": kinds.pop(),
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": kept,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _kind(layer: QuantLinear) -> str:
    """compressed-tensors' name for how a layer is stored."""
    if layer.scheme.format.name == "fp8_e4m3":
        return "float-quantized"
    return "pack-quantized" if layer.activations is None else "int-quantized"


def _arguments(scheme: Scheme, in_features: int, dynamic: bool) -> dict[str, Any]:
    """A scheme in the words of compressed-tensors."""
    kind = scheme.granularity.kind
    size = -1 if kind in ("tensor", "token") else layouts.group_size_of(scheme, in_features)
    strategy = "group" if size > 0 else kind
    return {
        "num_bits": scheme.format.bits,
        "type": "float" if scheme.format.name.startswith("fp") else "int",
        "symmetric": scheme.symmetric,
        "strategy": strategy,
        "group_size": size if size > 0 else None,
        "dynamic": dynamic,
        "actorder": None,
        "block_structure": None,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
    }


def foreign_format(folder: Path) -> str | None:
    """``gptq``, ``awq`` or ``compressed-tensors`` if ``config.json`` says so; else None."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    about = config.get("quantization_config")
    method = about.get("quant_method") if isinstance(about, dict) else None
    return method if method in ("gptq", "awq", "compressed-tensors") else None


def load_foreign(folder: str | Path) -> Any:
    """Read a folder in one of ``FORMATS``: a model with QuantLinear layers, on the CPU, float32.

    Raises: QlabError naming what is missing, or what qlab cannot hold.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(folder)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = raw.pop("quantization_config")
    config = AutoConfig.for_model(**{k: v for k, v in raw.items() if k != "transformers_version"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    mark = {"gptq": ".qweight", "awq": ".qweight"}.get(about["quant_method"], ".weight_scale")
    read = _reader(about)
    for name in [key.removesuffix(mark) for key in tensors if key.endswith(mark)]:
        own = {key: tensors.pop(f"{name}.{key}") for key in _KEYS if f"{name}.{key}" in tensors}
        try:
            weight, inputs = read(name, own)
        except KeyError as error:
            raise QlabError(f"'{folder}': {name}.{error.args[0]} is missing") from None
        except QlabError as error:
            raise QlabError(f"'{folder}', layer '{name}': {error}") from None
        bias = own.get("bias")
        replace_layer(
            model, name, QuantLinear(weight, None if bias is None else bias.float(), inputs)
        )
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    quantized = {name for name, _ in quant_layers(model)}
    missing, unexpected = model.load_state_dict(floats, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [m for m in missing if m not in tied and m.rpartition(".")[0] not in quantized]
    if missing or unexpected:
        what = f"lacks {missing[0]}" if missing else f"has an unknown {unexpected[0]}"
        raise QlabError(f"'{folder}' {what}: its configuration and its tensors do not agree")
    model.tie_weights()
    return model.eval()


_KEYS = (
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "input_scale",
    "input_zero_point",
    "bias",
)


def _reader(
    about: dict[str, Any],
) -> Callable[[str, dict[str, torch.Tensor]], tuple[QTensor, ActivationQuant | None]]:
    """What reads one layer under this configuration."""
    method = about["quant_method"]
    if method == "awq":
        return lambda name, own: (layouts.from_awq(own, "float32"), None)
    if method == "gptq":
        version = 2 if about.get("checkpoint_format") == "gptq_v2" else 1
        bits, symmetric = int(about["bits"]), bool(about.get("sym", True))
        return lambda name, own: (
            layouts.from_gptq(own, bits, symmetric, version, "float32"),
            None,
        )

    def read(name: str, own: dict[str, torch.Tensor]) -> tuple[QTensor, ActivationQuant | None]:
        group = _group_of(about, name)
        weights = group["weights"]
        q = layouts.from_compressed(
            own, int(weights["num_bits"]), weights["type"], weights["symmetric"], "float32"
        )
        return q, _inputs(group.get("input_activations"), own)

    return read


def _group_of(about: dict[str, Any], name: str) -> dict[str, Any]:
    """The group of settings whose targets name the layer, or all linear layers."""
    groups: list[dict[str, Any]] = list(about["config_groups"].values())
    for group in groups:
        if name in group["targets"]:
            return group
    for group in groups:
        if "Linear" in group["targets"]:
            return group
    raise QlabError("no group of quantization_config names it as a target")


def _inputs(words: dict[str, Any] | None, own: dict[str, torch.Tensor]) -> ActivationQuant | None:
    """How the inputs are quantized, from compressed-tensors' words."""
    if words is None:
        return None
    fmt = "fp8_e4m3" if words["type"] == "float" else f"int{words['num_bits']}"
    kind = "token" if words["strategy"] == "token" else "tensor"
    scheme = Scheme.parse(f"{fmt}{'' if words['symmetric'] else '-asym'}-{kind}")
    if words["dynamic"]:
        return ActivationQuant(scheme)
    zero = own.get("input_zero_point")
    return ActivationQuant(
        scheme,
        own["input_scale"].float().reshape(1, 1),
        None if scheme.symmetric or zero is None else zero.to(torch.int32).reshape(1, 1),
    )
