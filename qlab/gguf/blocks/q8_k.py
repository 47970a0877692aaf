"""Q8_K: eight bits and one scale for 256 values, for activations."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, first_largest, nearest_int
from qlab.gguf.blocks.base import BlockType, join, register


@register
class Q8_K(BlockType):
    """256 values in 292 bytes, 9.125 bits each: w = d · q::

        byte   0 .. 3   4   5   ...  259    260 .. 291
               d        q0  q1       q255   16 sums of 16 codes each, int16

    d is float32. llama.cpp makes it of activations that meet k-quants; no file holds it. The value
    of largest magnitude gets code -127.
    """

    name, type_id, block_size, block_bytes = "Q8_K", 15, 256, 292

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        magnitude, peak = first_largest(x)
        inverse = f32(-127) / peak
        codes = np.minimum(127, nearest_int(inverse[..., None] * x)).astype(np.int8)
        codes = np.where((magnitude == 0)[..., None], np.int8(0), codes)
        d = np.where(magnitude == 0, f32(0), f32(1) / inverse)
        sums = codes.reshape(*x.shape[:-1], 16, 16).sum(axis=-1, dtype=np.int32).astype("<i2")
        return join(d[..., None].view(np.uint8), codes.view(np.uint8), sums.view(np.uint8))

    @classmethod
    def decode(cls, data: Array) -> Array:
        d = np.ascontiguousarray(data[:, :4]).view("<f4")
        return data[:, 4:260].view(np.int8).astype(np.float32) * d
