"""IQ1_M: IQ1_S with scales of 16 and a shift for every eight."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32, from_half
from qlab.gguf.blocks._grids import grid, words
from qlab.gguf.blocks.base import BlockType, register
from qlab.gguf.blocks.iq1_s import SHIFT


@register
class IQ1_M(BlockType):
    """256 weights in 56 bytes, 1.75 bits each: w = d · (2 s + 1) · (GRID[g] ± 1/8)::

        byte   0 .. 31              32 .. 47                      48 .. 55
               low eight bits of    four bits for each eight:     4 words of 16 bits: four s of
               g of 32 eights       upper three of g, and 1 for   three bits (low first), and four
                                    minus 1/8                     of the sixteen bits of d

    d is float16, its lowest bits in the first word. 16 weights share s.
    """

    name, type_id, block_size, block_bytes = "IQ1_M", 29, 256, 56
    can_encode, uses_importance = False, True

    @classmethod
    def decode(cls, data: Array) -> Array:
        word = words(data[:, 48:], "<u2")
        bits = (word >> 12).astype(np.uint16) << np.array([0, 4, 8, 12], np.uint16)
        d = from_half(np.bitwise_or.reduce(bits, axis=-1))
        s = (word[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
        step = d[:, None] * (s * 2 + 1).astype(np.float32)
        four = np.stack([data[:, 32:48] & 15, data[:, 32:48] >> 4], axis=-1).astype(np.uint16)
        codes = data[:, :32].reshape(-1, 16, 2) | (four & 7) << 8
        shift = np.where(four >> 3 == 0, SHIFT, -SHIFT)
        values = grid("IQ1_M")[codes] + shift[..., None].astype(f32)
        return (step[..., None, None] * values).reshape(-1, 256)
