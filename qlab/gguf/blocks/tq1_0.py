"""TQ1_0: ternary weights, five to a byte."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, reciprocal, round_away, truncate
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register

# (bytes, weights a byte) of the three stretches of a block.
_STRETCHES = ((32, 5), (16, 5), (4, 4))


@register
class TQ1_0(BlockType):
    """256 weights in 54 bytes, 1.6875 bits each: w = d · (t - 1) with t of 0, 1, 2::

        byte   0 .. 31                 32 .. 47                48 .. 51                52  53
               five t a byte: byte m   byte m has w[160 + m],  byte m has w[240 + m],  d
               has w[m], w[m + 32],    w[176 + m], ...         w[244 + m], ... (four)
               ... w[m + 128]

    Five t are one number below 243 = 3^5, most significant first. It is stored as a fraction of
    256: ceil(number · 256 / 243). Multiplying that byte by 3 then pushes out the first t, with no
    division. d is float16, the largest magnitude.
    """

    name, type_id, block_size, block_bytes = "TQ1_0", 34, 256, 54

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        trits, d = ternary(x)
        parts, at = [], 0
        for width, count in _STRETCHES:
            stretch = trits[..., at : at + width * count].reshape(*x.shape[:-1], count, width)
            at += width * count
            number = np.zeros_like(stretch[..., 0, :])
            for i in range(5):
                number = number * 3 + (stretch[..., i, :] if i < count else 0)
            parts.append(((number & 0xFF) * 256 + 242) // 243 & 0xFF)
        return join(*parts, *halves(d))

    @classmethod
    def decode(cls, data: Array) -> Array:
        parts, at = [], 0
        for width, count in _STRETCHES:
            stored = data[:, at : at + width]
            at += width
            for i in range(count):
                pushed = (stored * np.uint8(3**i)).astype(np.uint16)  # in a byte, so it wraps
                parts.append(pushed * 3 >> 8)
        trits = np.concatenate(parts, axis=-1).astype(np.float32)
        return (trits - f32(1)) * read_half(data, 52)[:, None]


def ternary(x: Array) -> tuple[Array, Array]:
    """Codes 0, 1, 2 as int32, and the scale of each block."""
    d = np.max(np.abs(x), axis=-1)
    return truncate(round_away(x * reciprocal(d)[..., None])) + 1, d
