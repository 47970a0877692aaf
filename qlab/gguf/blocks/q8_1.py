"""Q8_1: Q8_0 with the sum of its codes, for activations."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.blocks.q8_0 import eight_bits


@register
class Q8_1(BlockType):
    """32 values in 36 bytes, 9 bits each: w = d · q::

        byte   0  1  2  3  4   5   ...  35
               d     s     q0  q1       q31       (signed)

    d is float16; s is float16, d · (q0 + ... + q31). llama.cpp makes it of activations that meet
    weights with a minimum, such as Q4_1: Σ (d q + m) a needs Σ a, and s is it. No file holds it.
    """

    name, type_id, block_size, block_bytes = "Q8_1", 9, 32, 36

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, d = eight_bits(x)
        total = codes.sum(axis=-1, dtype=np.int32).astype(f32) * d
        return join(*halves(d, total), codes.view(np.uint8))

    @classmethod
    def decode(cls, data: Array) -> Array:
        return data[:, 4:].view(np.int8).astype(np.float32) * read_half(data, 0)[:, None]
