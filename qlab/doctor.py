"""What qlab runs on: versions, CPU features, GPU, and the engines that are installed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import qlab

LIBRARIES = ("torch", "transformers", "numpy", "numba", "safetensors", "tokenizers", "datasets")
ENGINES = (
    "gguf",
    "llama_cpp_python",
    "onnxruntime",
    "bitsandbytes",
    "torchao",
    "gptqmodel",
    "llmcompressor",
    "compressed-tensors",
    "neural_compressor_pt",
    "openvino",
    "nncf",
    "peft",
    "deepspeed",
    "vllm",
    "triton",
)
# What the kernels look for; the names are the kernel's (Linux) own.
FEATURES = ("avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")


def examine() -> dict[str, dict[str, Any]]:
    """Sections of name and value, ready to print."""
    return {
        "qlab": {
            "version": qlab.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpu": {**_cpu(), "kernels": _kernels()},
        "gpu": _gpu(),
        "engines": {name: _version(name) for name in ENGINES},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    model = value.strip()
                elif key.strip() == "flags":
                    flags = set(value.split())
                    break
    except OSError:
        return {"model": model, "cores": os.cpu_count(), "features": "unknown on this system"}
    found = [f for f in FEATURES if f in flags]
    return {"model": model, "cores": os.cpu_count(), "features": " ".join(found) or "none known"}


def _kernels() -> str:
    """The instructions that the CPU kernels are compiled for (``QLAB_CPU`` forces others)."""
    from qlab.kernels.cpu.simd import path

    try:
        return path()
    except qlab.QlabError as error:
        return str(error)


def _gpu() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        return {
            f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        }
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU"}
    return {"device": "none found; everything runs on the CPU"}
