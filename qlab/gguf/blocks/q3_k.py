"""Q3_K: three bits, with six-bit signed scales."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import (
    Array,
    f32,
    first_largest,
    importance_weights,
    in_order,
    nearest_int,
)
from qlab.gguf.blocks import _k
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.searches import descent_search, symmetric_search


@register
class Q3_K(BlockType):
    """256 weights in 110 bytes, 3.4375 bits each, 16 sub-blocks of 16: w = d · (s - 32) · (q - 4)::

        byte   0 .. 31                    32 .. 63                  64 .. 95      96 .. 107  108 109
               bit b of byte i is bit 2   byte i: bits 0-1 of       the same for  16 s, six  d
               of q[32 b + i]             q[i], q[32+i], q[64+i],   q[128 + i] .. bits each
                                          q[96+i], low first

    d is float16. Of s, bytes 96-103 hold the low four bits (s[0-7] low, s[8-15] high), and bytes
    104-107 the upper two: byte 104 + j has those of s[j], s[4 + j], s[8 + j], s[12 + j], low first.
    """

    name, type_id, block_size, block_bytes = "Q3_K", 11, 256, 110
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        groups = _k.sub_blocks(x, 16)
        flat = groups.reshape(-1, 16)
        if importance is None:
            codes, scales = descent_search(flat, 4)
            scales = scales.reshape(-1, 16)
            _, peak = first_largest(scales)
            inverse = f32(-32) / peak
            as_int8 = nearest_int(inverse[:, None] * scales).astype(np.int8)
            s = np.where(peak[:, None] == 0, 0, np.clip(as_int8, -32, 31).astype(np.int32) + 32)
            d = np.where(peak == 0, f32(0), f32(1) / inverse)
        else:
            energy = f32(2) * in_order((x * x).reshape(-1, 256)) / f32(256)
            columns = _k.for_each_row(importance, x.shape[0], 16)
            weights = importance_weights(groups, columns, energy[:, None, None])
            codes, scales = symmetric_search(flat, 4, weights.reshape(-1, 16))
            s, d = symmetric_search(scales.reshape(-1, 16), 32, in_order(weights))
        scale = _k.stored(d, s - 32)
        codes = codes.reshape(groups.shape) - 4
        codes = _k.requantize(groups, scale, np.zeros_like(scale), codes, -4, 3) + 4
        packed = join(
            _k.pack_planes(codes > 3), _k.pack_crumbs(codes & 3), _pack_scales(s), *halves(d)
        )
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        scale = read_half(data, 108)[:, None] * (_unpack_scales(data[:, 96:108]) - f32(32))
        q = _k.unpack_crumbs(data[:, 32:96]) | _k.unpack_planes(data[:, :32]) << 2
        q = q.reshape(-1, 16, 16).astype(np.float32)
        return (scale[..., None] * (q - f32(4))).reshape(-1, 256)


def _pack_scales(s: Array) -> Array:
    low = s[:, :8] & 15 | (s[:, 8:] & 15) << 4
    high = s >> 4
    top = high[:, :4] | high[:, 4:8] << 2 | high[:, 8:12] << 4 | high[:, 12:] << 6
    return np.concatenate([low, top], axis=-1)


def _unpack_scales(packed: Array) -> Array:
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=-1)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (packed[:, None, 8:] >> shifts & 3).reshape(-1, 16)
    return (low | high << 4).astype(np.float32)
