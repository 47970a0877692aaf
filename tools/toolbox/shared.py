"""What the scripts of the toolbox share: where the model lies, the texts, and the rows they write.

It runs in every tool's environment, so it imports nothing but the standard library and, within
functions, NumPy.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Run:
    """One run of a tool: ``SCRIPT SOURCE OUT`` (written by tools/record_tools.py).

    Attributes:
        source: folder of everything that the tool may read.
        model: the storyteller as a folder of Hugging Face, float32.
        out: an empty folder for the files that the tool writes.
        calibration: token ids of each calibration story, BOS first.
        texts: token ids of each story that is judged, BOS first.
    """

    def __init__(self, source: str | Path, out: str | Path) -> None:
        self.source, self.out = Path(source), Path(out)
        self.model = self.source / "model"
        self.calibration: list[list[int]] = json.loads(
            (self.source / "calibration.json").read_text()
        )
        self.texts: list[list[int]] = json.loads((self.source / "texts.json").read_text())
        self.began = time.perf_counter()

    def nll(self, logits_of: Callable[[list[int]], Any]) -> float:
        """Sum of -log p(next token) over all texts, in nats. ``logits_of``: (length, vocab)."""
        import numpy as np

        total = 0.0
        for ids in self.texts:
            scores = np.asarray(logits_of(ids), np.float64)[:-1]
            scores -= scores.max(1, keepdims=True)
            logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
            total -= float(logs[np.arange(len(logs)), ids[1:]].sum())
        return total

    def torch_nll(self, model: Any) -> float:
        """The same, of a causal language model of transformers or one that is called like it."""
        import torch

        def logits_of(ids: list[int]) -> Any:
            with torch.no_grad():
                return model(torch.tensor([ids])).logits[0].float().numpy()

        return self.nll(logits_of)

    def row(self, name: str, package: str, files: Iterable[Path], **found: Any) -> None:
        """Add a row to OUT/rows.json.

        Args:
            name: of the row in ``ROWS`` of tools/record_tools.py.
            package: whose version is recorded.
            files: what the tool wrote and a user would copy; their sizes are added up.
            found: ``nll`` of the tool's own forward, or ``weights``, a file of its dequantized
                weights, which the recorder puts into one plain model.
        """
        seconds = time.perf_counter() - self.began
        row = {
            "row": name,
            "package": package,
            "version": version(package),
            "seconds": round(seconds, 1),
            "bytes": sum(f.stat().st_size for f in files),
            **found,
        }
        file = self.out / "rows.json"
        rows = json.loads(file.read_text()) if file.exists() else []
        file.write_text(json.dumps([*rows, row], default=str))
        self.began = time.perf_counter()

    def weights(self, name: str, layers: Iterable[tuple[str, Any]]) -> Path:
        """Dequantized weights, layer name -> (out, in), as OUT/NAME.weights.safetensors."""
        from safetensors.torch import save_file

        file = self.out / f"{name}.weights.safetensors"
        save_file({n: w.detach().float().contiguous().clone() for n, w in layers}, file)
        return file


def tensors_in(folder: Path) -> list[Path]:
    """The files of weights of a folder."""
    return sorted(folder.glob("*.safetensors"))


def main(steps: Callable[[Run], None]) -> None:
    """Run a script from the command line; what stops it goes to OUT/error.json."""
    run = Run(sys.argv[1], sys.argv[2])
    try:
        steps(run)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        text = {"error": f"{type(error).__name__}: {lines[0]}", "trace": traceback.format_exc()}
        (run.out / "error.json").write_text(json.dumps(text))
        raise
