"""Progress: the finished blocks of a quantization, kept so that an interrupted run goes on.

Each block is one safetensors file, written beside its name and then renamed, so it is whole or
absent. ``run.json`` names what the run depends on; another model, method, scheme or other data is
refused instead of mixed in.

Chapter: GPTQ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from qlab.core import QTensor, Scheme
from qlab.core.parts import PARTS, from_parts, parts_of
from qlab.errors import QlabError
from qlab.files import new_file


class Progress:
    """The finished blocks in ``folder``, which is created if it is missing.

    Raises: QlabError if the folder holds the blocks of another run.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "run.json"
        if about.is_file():
            found = json.loads(about.read_text(encoding="utf-8")).get("key")
            if found != key:
                raise QlabError(
                    f"'{folder}' holds the blocks of another run (other weights, method, scheme, "
                    "options or data): choose another folder, or remove it"
                )
        else:
            with new_file(about) as file:
                file.write_text(json.dumps({"key": key}), encoding="utf-8")

    def write(self, index: int, layers: dict[str, QTensor]) -> None:
        """Keep the layers of block ``index``."""
        tensors, about = {}, {}
        for name, q in layers.items():
            about[name] = {"scheme": q.scheme.name, "shape": list(q.shape), "dtype": q.dtype}
            for part, value in parts_of(q).items():
                tensors[f"{name}.{part}"] = torch.as_tensor(value).cpu().contiguous()
        with new_file(self._file(index)) as file:
            file.write_bytes(save(tensors, metadata={"layers": json.dumps(about)}))

    def read(self, index: int) -> dict[str, QTensor] | None:
        """The layers of block ``index``; None if it was not finished."""
        file = self._file(index)
        if not file.is_file():
            return None
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["layers"])
        tensors = load_file(file)
        return {
            name: from_parts(
                {part: tensors.get(f"{name}.{part}") for part in PARTS},
                Scheme.parse(a["scheme"]),
                tuple(a["shape"]),
                a["dtype"],
            )
            for name, a in about.items()
        }

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def run_key(model: torch.nn.Module, calibration: Sequence[torch.Tensor], *settings: Any) -> str:
    """A hash of the weights, the data and the settings of a run."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    for ids in calibration:
        digest.update(ids.detach().cpu().contiguous().numpy().tobytes() + str(ids.shape).encode())
    return digest.hexdigest()
