"""Q4_K: four bits, with scales and minima that are quantized themselves."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array
from qlab.gguf.blocks import _k
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register


@register
class Q4_K(BlockType):
    """256 weights in 144 bytes, 4.5 bits each, as 8 sub-blocks of 32: w = d · s · q - dmin · m::

        byte   0  1  2   3    4 .. 15                16 .. 47               48 .. 143
               d     dmin     8 s and 8 m, each of   byte i: q[i] (low),    the same for the next
                              six bits               q[32 + i] (high)       64 weights, three times

    d and dmin are float16; s and m are integers from 0 to 63 (layout: ``_k.pack_six_bits``). A
    sub-block thus has a scale and a minimum as in Q4_1, for 12 bits and a share of 32, and not 32.
    """

    name, type_id, block_size, block_bytes = "Q4_K", 12, 256, 144
    uses_importance = True

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, scales, d, dmin = affine_codes(x, importance, 15, (-1.0, 0.1, 20))
        packed = join(*halves(d, dmin), scales, _k.pack_k_nibbles(codes))
        return packed.reshape(*x.shape[:2], cls.block_bytes)

    @classmethod
    def decode(cls, data: Array) -> Array:
        return decode_affine(data, _k.unpack_k_nibbles(data[:, 16:]))


def affine_codes(
    x: Array, importance: Array | None, n: int, plain: tuple[float, float, int]
) -> tuple[Array, Array, Array, Array]:
    """Codes, 12 bytes of scales and minima, d and dmin, for Q4_K and Q5_K."""
    codes, s, m, d, dmin = _k.affine_scales(x, importance, size=32, n=n, levels=63, plain=plain)
    if importance is None or n == 31:
        s, m = np.minimum(s, 63), np.minimum(m, 63)
    # Otherwise the C packs them as they are. One that the search left negative, which takes an
    # importance of almost only zeros, then spills into its neighbour's upper bits.
    packed = _k.pack_six_bits(s, m)
    s, m = _k.unpack_six_bits(packed)
    codes = _k.requantize(_k.sub_blocks(x, 32), _k.stored(d, s), _k.stored(dmin, m), codes, 0, n)
    return codes, packed, d, dmin


def decode_affine(data: Array, codes: Array) -> Array:
    s, m = _k.unpack_six_bits(data[:, 4:16])
    scale = read_half(data, 0)[:, None] * s.astype(np.float32)
    minimum = read_half(data, 2)[:, None] * m.astype(np.float32)
    q = codes.reshape(-1, 8, 32).astype(np.float32)
    return (scale[..., None] * q - minimum[..., None]).reshape(-1, 256)
