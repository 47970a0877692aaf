"""Memory and speed of rows: each layout runs in a process of its own, one after the other.

They depend on where the bits lie and not on which bits they are, so rows with the same scheme and
the same layers share a layout, and it is measured once.

Chapter: The case study, whole.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlab.errors import QlabError
from qlab.study.lines import Line
from qlab.study.make import make, write_mix

# What has the layout of another method's codes; a method with a format of its own is used itself.
_OWN_FORMAT = ("nf4", "kmeans", "vq")
SECONDS = 300  # for one process; the engine's first use compiles it


def layout_of(line: Line, schemes: Mapping[str, str]) -> str:
    """What memory and speed depend on, as a word that can be compared."""
    if line.kind == "mix":
        return json.dumps(["mix", line.scheme, line.importance])
    own = line.method if line.method in _OWN_FORMAT else ""
    return json.dumps([line.scheme, line.activations, own, dict(sorted(schemes.items()))])


class Runner:
    """Writes models and has each measured in a process of its own. Use it in a ``with`` block.

    Args:
        source: what ``qlab.load`` returns.
        llama: whether GGUF files are run by llama.cpp too, where xllamacpp is installed.

    Chapter: The case study, whole.
    """

    def __init__(self, source: Any, llama: bool = True) -> None:
        self.source, self.llama = source, llama
        self._folder = tempfile.TemporaryDirectory()
        self._whole: Path | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: Any) -> None:
        self._folder.cleanup()

    @property
    def whole(self) -> Path:
        """The model as it is, as a GGUF file in float32."""
        if self._whole is None:
            from qlab.gguf.convert import to_gguf

            path = Path(self._folder.name) / "whole.gguf"
            to_gguf(self.source.model, self.source.tokenizer, path, "f32")
            self._whole = path
        return self._whole

    def measure(self, line: Line, schemes: Mapping[str, str]) -> dict[str, Any]:
        """``memory_bytes``, ``speed``, ``llama_speed`` (None where there is none) and ``note``."""
        result: dict[str, Any] = {
            "memory_bytes": None, "speed": None, "llama_speed": None, "note": ""
        }  # fmt: skip
        try:
            whole = self.whole
            path = whole if line.kind == "whole" else self._write(line, schemes)
        except QlabError as error:
            return {**result, "note": str(error)}
        # A process that has to compile holds the compiler in memory: the second has nothing to.
        _child("engine", path, whole)
        found = _child("engine", path, whole)
        notes = [found.pop("note", ""), found.pop("error", "")]
        result |= found
        if self.llama and line.kind in ("mix", "whole"):
            found = _child("llama", path, whole)
            if "error" in found:
                notes.append(f"llama.cpp: {found.pop('error')}")
            result |= found
        return {**result, "note": "; ".join(n for n in notes if n)}

    def _write(self, line: Line, schemes: Mapping[str, str]) -> Path:
        """A model of the same layout, made the quick way: by round to nearest."""
        if line.kind == "mix":
            path = Path(self._folder.name) / "model.gguf"
            write_mix(self.source, line, path, 2)
            return path
        from qlab import quantize_model
        from qlab.export import save_folder

        path = Path(self._folder.name) / "model"
        if line.kind == "mixed":
            model, _ = quantize_model(
                self.source.model, "rtn", line.among[0], schemes=dict(schemes)
            )
        else:
            own = line.method if line.method in _OWN_FORMAT else "rtn"
            model = make(self.source, replace(line, method=own, steps=0)).model
        save_folder(model, self.source.tokenizer, path, overwrite=True)
        return path


def _child(what: str, model: Path, whole: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "qlab.study.child", what, str(model), str(whole)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {SECONDS} s"}
    for text in run.stdout.splitlines():
        if "QLAB-STUDY " in text:
            found: dict[str, Any] = json.loads(text.split("QLAB-STUDY ", 1)[1])
            return found
    return {"error": f"its process ended with {run.returncode}"}
