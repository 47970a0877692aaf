"""From a line to a model: by a method, as a GGUF file, in mixed precision, or by training.

Chapter: The case study, whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlab.errors import QlabError
from qlab.study.lines import Line

SENSITIVITY_TEXTS = 3  # each layer in each scheme reads them: they are the cost of mixed precision
BATCH, LENGTH = 4, 128  # rows a step and tokens a row, of a student's training


@dataclass(frozen=True)
class Made:
    """The model of a line.

    Attributes:
        model: a transformers model that computes as the line says; of a GGUF file the restored
            weights.
        bits_per_weight: of the quantized layers, metadata counted; of a GGUF file, of all tensors.
            None for the model as it is.
        file_bytes: of the file that a reader would keep: safetensors, or GGUF.
        schemes: mixed precision: layer -> scheme; empty otherwise.
    """

    model: Any
    bits_per_weight: float | None
    file_bytes: int
    schemes: Mapping[str, str] = field(default_factory=dict)


def make(
    source: Any, line: Line, calibration: int = 16, sensitivity: Mapping[str, Any] | None = None
) -> Made:
    """Quantize the model of a storyteller as a line says.

    Args:
        source: what ``qlab.load`` returns.
        line: of ``read_lines``.
        calibration: how many calibration texts to use.
        sensitivity: of ``measure_sensitivity``, for mixed precision; None: measured now.

    Raises: QlabError naming the line, where the model cannot be made.

    Chapter: The case study, whole.
    """
    try:
        if line.kind == "mix":
            return _file(source, line, calibration)
        model, schemes = _model(source, line, calibration, sensitivity)
    except QlabError as error:
        raise QlabError(f"line '{line.name}': {error}") from None
    from qlab.evaluate import model_size

    bits = model_size(model).bits_per_weight
    return Made(model, bits, _folder_bytes(model, source.tokenizer), schemes)


def measure_sensitivity(source: Any, schemes: tuple[str, ...]) -> dict[str, Any]:
    """Layer -> its choices for ``allocate``: each scheme's bytes, and its KL divergence in nats
    when this layer alone is rounded to it, on calibration stories."""
    from qlab.evaluate.allocation import Choice
    from qlab.evaluate.sensitivity import layer_sensitivity
    from qlab.story import texts

    found = layer_sensitivity(
        source.model, source.tokenizer, texts("calibration")[:SENSITIVITY_TEXTS], schemes
    )
    choices: dict[str, Any] = {}
    for row in found:
        choices.setdefault(row.layer, []).append(Choice(row.scheme, row.nbytes, row.kl))
    return choices


def _model(
    source: Any, line: Line, calibration: int, sensitivity: Mapping[str, Any] | None
) -> tuple[Any, Mapping[str, str]]:
    from qlab import quantize_model

    if line.kind == "whole":
        return source.model, {}
    if line.kind == "student":
        return _student(source, line), {}
    data = source.calibration()[:calibration]
    schemes: Mapping[str, str] = {}
    if line.kind == "mixed":
        from qlab.evaluate.allocation import allocate

        choices = sensitivity or measure_sensitivity(source, line.among)
        weights = sum(source.model.get_submodule(name).weight.numel() for name in choices)
        schemes = allocate(choices, int(line.budget * weights / 8)).schemes
    model, _ = quantize_model(
        source.model,
        line.method,
        line.among[0] if line.among else line.scheme,
        data,
        activations=line.activations or None,
        schemes=schemes or None,
    )
    return model, schemes


def _student(source: Any, line: Line) -> Any:
    """Quantization-aware fine-tuning with the whole model as the teacher."""
    from qlab.training import TrainOptions, convert, prepare, story_batches, train

    how = "absmean" if line.scheme.startswith("ternary") else "ste"
    student = prepare(source.model, line.scheme, method=how)
    options = TrainOptions(steps=line.steps, lr=line.lr, distill=1.0, seed=line.seed)
    batches = story_batches(source.tokenizer, BATCH, LENGTH, line.seed)
    train(student, batches, options, teacher=source.model)
    return convert(student)


def _file(source: Any, line: Line, calibration: int) -> Made:
    from qlab.gguf import GGUFFile
    from qlab.gguf.load import load_gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_mix(source, line, path, calibration)
        with GGUFFile(path) as file:
            bits, nbytes = file.bits_per_weight, file.size
        return Made(load_gguf(path)[0], bits, nbytes)


def write_mix(source: Any, line: Line, path: Path, calibration: int) -> None:
    """The GGUF file of a line."""
    from qlab.gguf.convert import to_gguf
    from qlab.gguf.imatrix import compute_imatrix

    rows = None
    if line.importance:
        rows = compute_imatrix(source.model, source.calibration()[:calibration])
    to_gguf(source.model, source.tokenizer, path, line.scheme, rows)


def _folder_bytes(model: Any, tokenizer: Any) -> int:
    """Write the model as a reader would, and weigh the safetensors file."""
    from qlab.export import save_folder

    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, tokenizer, Path(folder) / "model")
        return sum(f.stat().st_size for f in (Path(folder) / "model").glob("*.safetensors"))
