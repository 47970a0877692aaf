"""matmul: the kernel that fits a packed weight and the number of vectors.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from qlab.errors import QlabError
from qlab.kernels.gpu.configs import Config, choose
from qlab.kernels.gpu.lanes import CHUNK
from qlab.kernels.gpu.pack import FLOATS, PackedWeight, pack, quantize_rows


def matmul(weight: Any, x: torch.Tensor, *, config: Config | None = None) -> torch.Tensor:
    """x (..., in) times the weight (out, in), transposed: (..., out), of x's dtype.

    Args:
        weight: a PackedWeight; or a QTensor or matrix, which is packed for this one product.
        x: float16, bfloat16 or float32, on the weight's device. ``int8`` and ``fp8`` weights
            quantize it to their format first, a scale for each token.
        config: tile sizes, instead of those of ``qlab.kernels.gpu.configs``.

    One vector of 4-bit weights is a matrix-vector product on the ordinary units; more go to the
    matrix units. On tensors of the CPU the kernels run under Triton's interpreter.

    Raises: QlabError for a shape, dtype or device that does not fit, and without Triton.

    Chapter: A GPU kernel in Triton.
    """
    packed = weight if isinstance(weight, PackedWeight) else pack(weight)
    if x.dtype not in FLOATS:
        raise QlabError(f"inputs are float16, bfloat16 or float32, not {x.dtype}: cast them")
    if x.ndim == 0 or x.shape[-1] != packed.in_features:
        raise QlabError(
            f"the weight takes {packed.in_features} inputs, and x has shape {tuple(x.shape)}: its "
            "last axis must be as long"
        )
    rows = x.reshape(-1, packed.in_features).contiguous()
    if packed.kind == "dense":
        y = rows @ packed.codes.to(x.dtype).T
    else:
        y = torch.empty((rows.shape[0], packed.out_features), dtype=x.dtype, device=x.device)
        if y.numel():
            launch(packed, rows, y, config)
    return y.reshape(*x.shape[:-1], packed.out_features)


def kernel_name(packed: PackedWeight, batch: int) -> str:
    """Which kernel takes ``batch`` vectors: a name in ``configs.KERNELS``."""
    if packed.kind in ("int8", "fp8"):
        return {"int8": "w8a8", "fp8": "fp8"}[packed.kind]
    family = "q4_k" if packed.kind == "q4_k" else "w4a16"
    return f"{family}.{'gemv' if batch == 1 else 'gemm'}"


def launch(packed: PackedWeight, x: torch.Tensor, y: torch.Tensor, config: Config | None) -> None:
    """Run the kernel on x (batch, in), into y (batch, out)."""
    from qlab.kernels.gpu.runtime import check_device, interpreted

    check_device(packed.codes, x)
    (M, K), N = x.shape, packed.out_features
    name = kernel_name(packed, M)
    if config is None:
        gpu, processors, _ = device_facts(x.device)
        config = choose(name, N, K, M, gpu, processors)
    config = dict(config)
    tiles = -(-N // config["BLOCK_N"]), -(-M // config.get("BLOCK_M", 1))
    assert packed.counters is not None
    if tiles[0] * tiles[1] > packed.counters.numel():
        config["SPLIT"] = 1
    split = config["SPLIT"]
    grid = (tiles[0], split, tiles[1]) if not name.endswith("gemv") else (tiles[0], split)
    sums = torch.int32 if name == "w8a8" else torch.float32
    partial = torch.empty((split, M, N) if split > 1 else (1,), dtype=sums, device=x.device)
    counters = packed.counters
    if packed.kind in ("int8", "fp8"):
        _launch_eight_bits(packed, x, y, partial, grid, config)
        return
    # Products of bf16 are not in the interpreter's power.
    wide = interpreted() and x.dtype == torch.bfloat16
    if packed.kind == "q4_k":
        from qlab.kernels.gpu import q4_k

        blocks = packed.codes.shape[1]
        if M == 1:
            q4_k.gemv_kernel[grid](x, packed.codes, y, partial, counters, N, blocks, **config)
        else:
            dot = _dtype(q4_k.tl, torch.float32 if wide else x.dtype)
            q4_k.gemm_kernel[grid](
                x, packed.codes, y, partial, counters, M, N, blocks, DOT=dot, **config
            )
        return
    from qlab.kernels.gpu import w4a16

    chunks, groups = packed.codes.shape[1], packed.scales.shape[1]  # type: ignore[union-attr]
    scales = packed.scales
    zeros = packed.zeros if packed.zeros is not None else scales
    table = packed.table if packed.table is not None else scales
    pointers = (x, packed.codes, scales, zeros, table, y, partial, counters)
    fixed = {"GROUP": packed.group_size, "TABLE": packed.table is not None,
             "ZEROS": packed.zeros is not None, "OFFSET": packed.offset}  # fmt: skip
    if M == 1:
        w4a16.gemv_kernel[grid](*pointers, N, K, chunks, groups, **fixed, **config)
    else:
        dot = _dtype(w4a16.tl, torch.float32 if wide else x.dtype)
        fixed |= {"EVEN": K % CHUNK == 0, "DOT": dot}
        w4a16.gemm_kernel[grid](*pointers, M, N, K, chunks, groups, **fixed, **config)


def _launch_eight_bits(
    packed: PackedWeight,
    x: torch.Tensor,
    y: torch.Tensor,
    partial: torch.Tensor,
    grid: tuple[int, ...],
    config: Config,
) -> None:
    (M, K), N = x.shape, packed.out_features
    even = K % config["BLOCK_K"] == 0
    if packed.kind == "int8":
        from qlab.kernels.gpu.w8a8 import w8a8_kernel

        codes, scales = quantize_rows(x, "int8")
        w8a8_kernel[grid](
            codes, packed.codes, scales, packed.scales, y, partial, packed.counters, M, N, K,
            EVEN=even, **config,
        )  # fmt: skip
        return
    from qlab.kernels.gpu.fp8 import fp8_kernel

    codes, scales = quantize_rows(x, "fp8_e4m3")
    _, _, native = device_facts(x.device)
    weights = packed.codes
    if native:
        codes, weights = codes.view(torch.float8_e4m3fn), weights.view(torch.float8_e4m3fn)
    fp8_kernel[grid](
        codes, weights, scales, packed.scales, y, partial, packed.counters, M, N, K,
        NATIVE=native, EVEN=even, **config,
    )  # fmt: skip


@cache
def device_facts(device: torch.device) -> tuple[str, int, bool]:
    """(name, number of processors, whether they multiply fp8 numbers)."""
    from qlab.kernels.gpu.runtime import interpreted

    if device.type != "cuda" or interpreted():
        return "interpreter", 4, False
    properties = torch.cuda.get_device_properties(device)
    native = torch.cuda.get_device_capability(device) >= (8, 9)
    return properties.name, properties.multi_processor_count, native


def _dtype(tl: Any, dtype: torch.dtype) -> Any:
    return getattr(tl, str(dtype).removeprefix("torch."))
