"""The block types of GGUF, one class each, by name in ``BLOCK_TYPES``."""

from qlab.gguf.blocks import (  # noqa: F401  (each module registers its class)
    bf16,
    f16,
    f32,
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    iq4_nl,
    iq4_xs,
    mxfp4,
    nvfp4,
    plain,
    q1_0,
    q2_0,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    q8_1,
    q8_k,
    tq1_0,
    tq2_0,
)
from qlab.gguf.blocks.base import BLOCK_TYPES, BlockType, block_type

__all__ = ["BLOCK_TYPES", "BlockType", "block_type"]
