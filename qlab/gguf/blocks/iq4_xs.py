"""IQ4_XS: IQ4_NL with one float16 for 256 weights."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, first_largest, nearest_int, reciprocal
from qlab.gguf.blocks._iq4 import LEVELS, level_search, level_weights, nearest_level
from qlab.gguf.blocks.base import (
    BlockType,
    halves,
    join,
    pack_nibbles,
    read_half,
    register,
    unpack_nibbles,
)


@register
class IQ4_XS(BlockType):
    """256 weights in 136 bytes, 4.25 bits each, 8 sub-blocks of 32: w = d · (s - 32) · LEVELS[q]::

        byte   0  1  2  3                    4 .. 7                       8 .. 23        24 .. 135
               d     upper two bits of       low four bits of s:          sub-block 0,   the other
                     s0 .. s7, low first     s0 | s1, s2 | s3, ...        as in IQ4_NL   seven

    d is float16; s has six bits. The sub-block of largest scale gets s = 0.
    """

    name, type_id, block_size, block_bytes = "IQ4_XS", 23, 256, 136
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        groups = x.reshape(-1, 8, 32)
        weights = level_weights(x, importance).reshape(-1, 32)
        scales = level_search(x.reshape(-1, 32), weights).reshape(-1, 8)
        _, peak = first_largest(scales)
        d = -peak / f32(32)
        s = np.clip(nearest_int(reciprocal(d)[:, None] * scales), -32, 31)
        step = d[:, None] * s.astype(np.float32)
        codes = nearest_level(reciprocal(step)[..., None] * groups)
        s = s + 32
        high = (s >> 4 << 2 * np.arange(8)).sum(axis=-1).astype("<u2")[:, None].view(np.uint8)
        low = s[:, 0::2] & 15 | (s[:, 1::2] & 15) << 4
        packed = join(*halves(d), high, low, pack_nibbles(codes).reshape(-1, 128))
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        high = np.ascontiguousarray(data[:, 2:4]).view("<u2").astype(np.int32)
        high = high >> 2 * np.arange(8) & 3
        low = np.stack([data[:, 4:8] & 15, data[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
        step = read_half(data, 0)[:, None] * ((low | high << 4).astype(np.float32) - f32(32))
        codes = unpack_nibbles(data[:, 8:].reshape(-1, 8, 16))
        return (step[..., None] * LEVELS[codes]).reshape(-1, 256)
