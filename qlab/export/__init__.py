"""To the files of others, and back."""

from qlab.export.folder import is_quantized_folder, load_folder, save_folder
from qlab.export.foreign import FORMATS, load_foreign, save_foreign
from qlab.export.onnx import OnnxModel, save_onnx
from qlab.export.tensors import load_qtensors, save_qtensors

__all__ = [
    "FORMATS",
    "OnnxModel",
    "is_quantized_folder",
    "load_folder",
    "load_foreign",
    "load_qtensors",
    "save_folder",
    "save_foreign",
    "save_onnx",
    "save_qtensors",
]
