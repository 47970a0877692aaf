"""Kernels for the GPU, in Triton: products with packed weights, and the packing itself.

    from qlab.kernels import gpu
    packed = gpu.pack(qlab.quantize(w, "int4-g128-sfp16"))   # once
    y = gpu.matmul(packed, x)                                # x (..., in) -> (..., out)

Where there is no GPU the same kernels run under Triton's interpreter: right, and slow. Triton is
imported when a kernel is first used.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from qlab.kernels.gpu.dispatch import matmul
from qlab.kernels.gpu.pack import PackedWeight, pack, pack_gguf, quantize_int4, quantize_rows
from qlab.kernels.gpu.tune import tune

__all__ = [
    "PackedWeight",
    "matmul",
    "pack",
    "pack_gguf",
    "quantize_int4",
    "quantize_rows",
    "tune",
]
