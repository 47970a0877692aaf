"""Q5_K: Q4_K with a fifth bit."""

from __future__ import annotations

from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks import _k
from qlab.gguf.blocks.base import BlockType, halves, join, register
from qlab.gguf.blocks.q4_k import affine_codes, decode_affine


@register
class Q5_K(BlockType):
    """256 weights in 176 bytes, 5.5 bits each, as 8 sub-blocks of 32: w = d · s · q - dmin · m::

        byte   0  1  2   3    4 .. 15        16 .. 47                 48 .. 79         80 .. 175
               d     dmin     8 s and 8 m,   bit b of byte i is the   low four bits,   three times
                              six bits       fifth of q[32 b + i]     as in Q4_K       more

    d and dmin are float16; s and m are integers from 0 to 63.
    """

    name, type_id, block_size, block_bytes = "Q5_K", 13, 256, 176
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, scales, d, dmin = affine_codes(x, importance, 31, (-0.5, 0.1, 15))
        high = _k.pack_planes(codes >> 4 & 1)
        low = _k.pack_k_nibbles(codes & 15)
        packed = join(*halves(d, dmin), scales, high, low)
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        high = _k.unpack_planes(data[:, 16:48]) << 4
        return decode_affine(data, _k.unpack_k_nibbles(data[:, 48:]) | high)
