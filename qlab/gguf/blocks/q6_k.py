"""Q6_K: six bits, with eight-bit signed scales."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import TINY_GROUP, Array, f32, first_largest, nearest_int
from qlab.gguf.blocks import _k
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.searches import symmetric_search


@register
class Q6_K(BlockType):
    """256 weights in 210 bytes, 6.5625 bits each, as 16 sub-blocks of 16: w = d · s · (q - 32)::

        byte   0 .. 31        32 .. 63       64 .. 127   128 .. 159             160 .. 191  192 .. 207  208 209
               low four bits  low four bits  the next    upper two bits:        the next    s0 .. s15,  d
               q[i] (low)     q[32+i] (low)  128         byte i has those of    128         signed
               q[64+i] (high) q[96+i] (high)             q[i], q[32+i], q[64+i],
                                                         q[96+i], low first

    d is float16. The sub-block of largest scale gets s = -128.
    """  # noqa: E501

    name, type_id, block_size, block_bytes = "Q6_K", 14, 256, 210
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        groups = _k.sub_blocks(x, 16)
        weights = None
        if importance is not None:
            weights = _k.for_each_row(importance, x.shape[0], 16).reshape(-1, 16)
        codes, scales = symmetric_search(groups.reshape(-1, 16), 32, weights)
        scales = scales.reshape(-1, 16)
        magnitude, peak = first_largest(scales)
        inverse = f32(-128) / peak
        s = np.minimum(127, nearest_int(inverse[:, None] * scales)).astype(np.int8)
        d = f32(1) / inverse
        scale = _k.stored(d, s)
        codes = codes.reshape(groups.shape) - 32
        codes = _k.requantize(groups, scale, np.zeros_like(scale), codes, -32, 31) + 32
        packed = join(
            _pack_low(codes & 15), _k.pack_crumbs(codes >> 4), s.view(np.uint8), *halves(d)
        )
        packed[magnitude < TINY_GROUP] = 0
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        s = np.ascontiguousarray(data[:, 192:208]).view(np.int8).astype(np.float32)
        scale = read_half(data, 208)[:, None] * s
        low = data[:, :128].reshape(-1, 2, 1, 64)
        low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 256)
        q = (low | _k.unpack_crumbs(data[:, 128:192]) << 4).reshape(-1, 16, 16).astype(np.float32)
        return (scale[..., None] * (q - f32(32))).reshape(-1, 256)


def _pack_low(codes: Array) -> Array:
    q = codes.reshape(-1, 2, 2, 64)
    return (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
