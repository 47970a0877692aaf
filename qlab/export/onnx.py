"""ONNX: the model as a graph in a file, for ONNX Runtime and for its quantizers.

The graph takes token ids (batch, length) and gives logits. A node of a linear layer has the name
that the layer has in the model, so that ``nodes_to_exclude=["lm_head"]`` means what it says.

Chapter: Static, dynamic, mixed: the families of methods.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from qlab.errors import QlabError
from qlab.files import new_file
from qlab.nn import dequantize_model, quant_layers

# A protobuf message, which an ONNX file is, ends at 2 GiB.
_LARGEST = 2**31


def save_onnx(model: Any, out: str | Path) -> None:
    """Write a transformers decoder as one ONNX file, whole or not at all.

    Weight-only quantized layers are written dequantized, so the file computes what the model
    computes, in float32, and is as large as a float32 model.

    Args:
        model: a causal language model, in float32, on the CPU.
        out: the file; an old one is replaced.

    Raises: QlabError if a layer quantizes its input (use ONNX Runtime's own quantizers on the float
        model), if the weights exceed the 2 GiB of one file, or without onnx and onnxscript.

    Chapter: Static, dynamic, mixed: the families of methods.
    """
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError:
        raise QlabError("exporting to ONNX needs onnxscript: pip install 'qlab[onnx]'") from None
    for name, layer in quant_layers(model):
        if layer.activations is not None:
            raise QlabError(
                f"layer '{name}' quantizes its input, which this export does not write: export the "
                "unquantized model and use ONNX Runtime's quantize_dynamic or quantize_static"
            )
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    if nbytes >= _LARGEST:
        raise QlabError(
            f"the weights take {nbytes / 2**30:.1f} GiB, one ONNX file holds 2: export a smaller "
            "model, or call torch.onnx.export with external_data"
        )
    # The example has two sequences: with one, the exporter would fix the batch to 1.
    example = torch.ones(2, 8, dtype=torch.int64)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    training = model.training
    try:
        with _quiet_exporter():
            program: Any = torch.onnx.export(
                _Logits(dequantize_model(model)).eval(),
                (example,),
                dynamo=True,
                input_names=["input_ids"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": free},
                verbose=False,
            )
    finally:
        model.train(training)
    _name_nodes(program.model.graph)
    with new_file(out) as file:
        program.save(file)


class OnnxModel(torch.nn.Module):
    """An ONNX file that answers as a transformers model does, through ONNX Runtime on the CPU.

    ``qlab.perplexity(OnnxModel(file, model.config), tokenizer, texts)`` measures it.

    Args:
        file: with input ``input_ids`` and output ``logits``, as ``save_onnx`` writes.
        config: of the model that was exported.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises: QlabError if the file cannot be loaded, or without onnxruntime.

    Chapter: Static, dynamic, mixed: the families of methods.
    """

    def __init__(self, file: str | Path, config: Any, threads: int = 1) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise QlabError(
                "running an ONNX file needs onnxruntime: pip install 'qlab[onnx]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors: warnings of the optimizer are no news to a reader
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises kinds of its own
            reason = str(error).splitlines()[0]
            raise QlabError(f"'{file}' could not be loaded by ONNX Runtime: {reason}") from None
        self.config = config
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        """Token ids, int64 (batch, length) -> ``.logits`` (batch, length, vocabulary)."""
        (logits,) = self.session.run(["logits"], {"input_ids": input_ids.numpy()})
        return SimpleNamespace(logits=torch.from_numpy(logits))


class _Logits(torch.nn.Module):
    """Token ids in, logits out, nothing else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def _name_nodes(graph: Any) -> None:
    """Give matrix products the name of their layer, and drop where in the source they came from."""
    for node in graph:
        notes = node.metadata_props
        kinds = notes.get("pkg.torch.onnx.class_hierarchy", "")
        if node.op_type in ("MatMul", "Gemm") and ("linear.Linear" in kinds or "Conv1D" in kinds):
            scopes = notes[
                "pkg.torch.onnx.name_scopes"
            ]  # "['', 'model', ..., 'model.lm_head', ...]"
            node.name = scopes.split(", ")[-2].strip("'").removeprefix("model.")
        notes.clear()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep out what torch's exporter says of itself: operators of torchvision that it would also
    know, and a class of PyTorch that PyTorch will rename."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(logging.NOTSET)
