"""IQ2_XS: eight weights in sixteen bits, on a grid of 512 points."""

from __future__ import annotations

from qlab.gguf.arithmetic import Array, f32
from qlab.gguf.blocks._grids import EVEN_SIGNS, grid, nibbles, signs, words
from qlab.gguf.blocks.base import BlockType, read_half, register


@register
class IQ2_XS(BlockType):
    """256 weights in 74 bytes, 2.3125 bits each: w = d · (s + 1/2) / 4 · sign · GRID[g]::

        byte   0  1  2 .. 65                                66 .. 73
               d     32 words of 16 bits: g (nine, low),    16 s, four bits each, low first
                     seven sign bits

    d is float16. 16 weights share s. The eighth sign makes the number of minus signs even.
    """

    name, type_id, block_size, block_bytes = "IQ2_XS", 17, 256, 74
    can_encode, uses_importance, needs_importance = False, True, True

    @classmethod
    def decode(cls, data: Array) -> Array:
        codes = words(data[:, 2:66], "<u2").reshape(-1, 16, 2)
        step = read_half(data, 0)[:, None] * (f32(0.5) + nibbles(data[:, 66:])) * f32(0.25)
        scaled = step[..., None, None] * grid("IQ2_XS")[codes & 511]
        return (scaled * signs(EVEN_SIGNS[codes >> 9])).reshape(-1, 256)
