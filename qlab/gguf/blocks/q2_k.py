"""Q2_K: two bits, with four-bit scales and minima."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks import _k
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register


@register
class Q2_K(BlockType):
    """256 weights in 84 bytes, 2.625 bits each, as 16 sub-blocks of 16: w = d · s · q - dmin · m::

        byte   0 .. 15             16 .. 47                 48 .. 79            80  81  82  83
               s | m of each       byte i: q[i], q[32 + i]  the same for        d       dmin
               sub-block           q[64 + i], q[96 + i],    q[128 + i] ..
               (low | high four)   two bits each, low first

    d and dmin are float16; s and m are integers from 0 to 15.
    """

    name, type_id, block_size, block_bytes = "Q2_K", 10, 256, 84
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, s, m, d, dmin = _k.affine_scales(
            x,
            importance,
            size=16,
            n=3,
            levels=15,
            plain=(-0.5, 0.1, 15),
            absolute=True,
            energy_factor=1,
        )
        both = s | m << 4
        scale, minimum = _k.stored(d, both & 15), _k.stored(dmin, both >> 4)
        codes = _k.requantize(_k.sub_blocks(x, 16), scale, minimum, codes, 0, 3)
        packed = join(both, _k.pack_crumbs(codes), *halves(d, dmin))
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        scale = read_half(data, 80)[:, None] * (data[:, :16] & 15).astype(np.float32)
        minimum = read_half(data, 82)[:, None] * (data[:, :16] >> 4).astype(np.float32)
        q = _k.unpack_crumbs(data[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
        return (scale[..., None] * q - minimum[..., None]).reshape(-1, 256)
