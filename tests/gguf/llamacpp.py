"""llama.cpp's own C, through ctypes, as the oracle of these tests."""

import ctypes
import glob
import os
from functools import cache

import numpy as np


class _Traits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


@cache
def library():
    import xllamacpp

    (path,) = glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "*.abi3.so"))
    lib = ctypes.CDLL(path)
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return lib


def traits(type_id):
    return library().ggml_get_type_traits(type_id).contents


def quantize(x, type_id, importance=None):
    """uint8 (rows, row_bytes) of float32 (rows, n)."""
    x = np.ascontiguousarray(x, np.float32)
    kind = traits(type_id)
    row = x.shape[1] // kind.block_size * kind.block_bytes
    out = np.full((len(x), row), 0xA5, np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    written = library().ggml_quantize_chunk(
        type_id,
        x.ctypes.data,
        out.ctypes.data,
        0,
        len(x),
        x.shape[1],
        None if importance is None else importance.ctypes.data,
    )
    assert written == out.nbytes
    return out


def quantize_activations(x, name):
    """Q8_1 and Q8_K, which no file holds: the C has a function for each."""
    x = np.ascontiguousarray(x, np.float32)
    block_size, block_bytes = {"q8_1": (32, 36), "q8_K": (256, 292)}[name]
    # The C leaves the sums of a Q8_K block of zeros as they were in memory: let that be 0.
    out = np.zeros((len(x), x.shape[1] // block_size * block_bytes), np.uint8)
    function = getattr(library(), f"quantize_row_{name}_ref")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(x.ctypes.data, out.ctypes.data, x.size)
    return out


def dequantize(data, type_id):
    """float32 (rows, n) of uint8 (rows, row_bytes)."""
    data = np.ascontiguousarray(data)
    kind = traits(type_id)
    out = np.empty((len(data), data.shape[1] // kind.block_bytes * kind.block_size), np.float32)
    kind.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
