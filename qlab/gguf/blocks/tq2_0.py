"""TQ2_0: ternary weights, two bits each."""

from __future__ import annotations

import numpy as np

from qlab.gguf.arithmetic import Array, f32
from qlab.gguf.blocks.base import BlockType, halves, join, read_half, register
from qlab.gguf.blocks.tq1_0 import ternary


@register
class TQ2_0(BlockType):
    """256 weights in 66 bytes, 2.0625 bits each: w = d · (q - 1)::

        byte   0 .. 31                       32 .. 63                     64  65
               byte m has w[m], w[m + 32],   the same for w[128 + m] ..   d
               w[m + 64], w[m + 96],
               two bits each, low first

    d is float16, the largest magnitude. Larger than TQ1_0, and quicker to take apart.
    """

    name, type_id, block_size, block_bytes = "TQ2_0", 35, 256, 66

    @classmethod
    def encode(cls, x: Array, importance: Array | None) -> Array:
        codes, d = ternary(x)
        q = (codes & 3).reshape(*x.shape[:-1], 2, 4, 32)
        packed = q[..., 0, :] | q[..., 1, :] << 2 | q[..., 2, :] << 4 | q[..., 3, :] << 6
        return join(packed.reshape(*x.shape[:-1], 64), *halves(d))

    @classmethod
    def decode(cls, data: Array) -> Array:
        shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
        q = data[:, :64].reshape(-1, 2, 1, 32) >> shifts & 3
        return (q.reshape(-1, 256).astype(np.float32) - f32(1)) * read_half(data, 64)[:, None]
