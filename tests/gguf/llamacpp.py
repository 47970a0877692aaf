"""llama.cpp's own C, through ctypes, as the oracle of these tests."""

import ctypes
import faulthandler
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


def quantize_or_stop(arrays, type_id, importance=None):
    """``quantize`` of each, None where the C ends the process: it runs in a copy of this one."""
    ready = np.zeros((1, traits(type_id).block_size), np.float32)
    quantize(ready, type_id, ready[0])  # the tables, which OpenMP's threads may compute
    kind, found = traits(type_id), []
    while len(found) < len(arrays):
        read, write = os.pipe()
        child = os.fork()
        if not child:  # writes result after result, until the C stops it
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.environ["GGML_NO_BACKTRACE"] = "1"
            for x in arrays[len(found) :]:
                data = quantize(x, type_id, importance).tobytes()
                while data:
                    data = data[os.write(write, data) :]
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        for x in arrays[len(found) :]:
            size = x.size // kind.block_size * kind.block_bytes
            if len(data) < size:
                found.append(None)
                break
            found.append(np.frombuffer(data[:size], np.uint8).reshape(len(x), -1))
            data = data[size:]
    return found


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
