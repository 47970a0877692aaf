"""GGUF: the file format of llama.cpp, its block types, and the searches behind them.

The algorithms follow ggml-quants.c of llama.cpp (MIT licence), so that the bytes are the same.
"""

from qlab.gguf.blocks import BLOCK_TYPES, BlockType, block_type
from qlab.gguf.convert import to_gguf
from qlab.gguf.errors import GGUFError
from qlab.gguf.load import load_gguf
from qlab.gguf.quantize import dequantize, quantize
from qlab.gguf.reader import GGUFFile, Tensor
from qlab.gguf.writer import GGUFWriter

__all__ = [
    "BLOCK_TYPES",
    "BlockType",
    "GGUFError",
    "GGUFFile",
    "GGUFWriter",
    "Tensor",
    "block_type",
    "dequantize",
    "load_gguf",
    "quantize",
    "to_gguf",
]
