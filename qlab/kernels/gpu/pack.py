"""PackedWeight: a weight in the form that a kernel of the GPU reads.

Chapter: A GPU kernel in Triton.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from qlab.errors import QlabError
from qlab.kernels.gpu.lanes import CHUNK, to_lanes

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight (out_features, in_features) for ``matmul``.

    Attributes:
        kind: ``int4`` (codes with an offset or zero points), ``table4`` (places in a table of 16),
            ``int8`` and ``fp8`` (inputs are quantized to the same format, a token at a time),
            ``q4_k`` (blocks of a GGUF file), ``dense`` (no kernel: floats, for torch).
        codes: int32 lanes (out, chunks, 16) for 4 bits; int8 or uint8 (out, in); int32 words
            (out, blocks, 36) for q4_k; floats for dense.
        scales: (out, groups), float32 or float16; (out,) float32 for 8 bits; None for the others.
        zeros: uint8 or float32 (out, groups), or None: then ``offset`` stands for zero.
        table: float32 (16,), or None.
        group_size: inputs that share a scale, in multiples of 16.
        counters: int32, zero between calls: how many programs of a tile have finished. Two
            products with the same weight must not run at once on two streams.

    Chapter: A GPU kernel in Triton.
    """

    kind: str
    out_features: int
    in_features: int
    codes: torch.Tensor
    scales: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    table: torch.Tensor | None = None
    offset: int = 0
    group_size: int = 0
    counters: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of the weight: codes, scales and zero points."""
        parts = (self.codes, self.scales, self.zeros)
        return sum(p.numel() * p.element_size() for p in parts if p is not None)

    @property
    def device(self) -> torch.device:
        return self.codes.device


def pack(weight: Any) -> PackedWeight:
    """A QTensor (out, in), or a float matrix, in the form that the kernels read.

    Kernels there are for 4 bits in groups of 16, 32, 64 or whole 128 inputs or by row or tensor
    (``int4``, ``int4-asym``, ``nf4``, ``fp4_e2m1``, ``mxfp4``, ``nvfp4`` ...), and for ``int8`` and
    ``fp8_e4m3`` by row or tensor. Anything else is kept as floats, with one warning: the product is
    right then, and no faster.

    Raises: QlabError for what is neither a QTensor nor a matrix of floats.

    Chapter: A GPU kernel in Triton.
    """
    if isinstance(weight, torch.Tensor) and weight.dtype in FLOATS:
        if weight.ndim != 2:
            raise QlabError(f"a weight has two axes, out and in: this one has {weight.ndim}")
        return PackedWeight("dense", *weight.shape, weight)
    packed = getattr(weight, "packed", None)
    if not (hasattr(weight, "scheme") and isinstance(packed, torch.Tensor)):
        raise QlabError(
            f"cannot pack a {type(weight).__name__}: give a QTensor of a torch tensor, such as "
            'qlab.quantize(w, "int4-g128"), or a matrix of floats'
        )
    if len(weight.shape) != 2:
        raise QlabError(f"a weight has two axes, out and in: this one has {len(weight.shape)}")
    scheme, (rows, inputs) = weight.scheme, weight.shape
    bits, name = scheme.format.bits, scheme.format.name
    height, width = scheme.granularity.block_shape(weight.shape)
    by_row = height == 1 or (height == rows and weight.scale.numel() == 1)
    whole = width >= inputs
    group = -(-inputs // CHUNK) * CHUNK if whole else width
    plain = type(weight).__name__ == "QTensor" and by_row
    if plain and bits == 4 and (group in (16, 32, 64) or group % CHUNK == 0):
        return _four_bits(weight, rows, inputs, group)
    if plain and whole and name == "int8" and scheme.symmetric and inputs <= (2**31 - 1) // 127**2:
        codes = weight.codes[:, :inputs].contiguous()
        return _packed("int8", weight.shape, codes, scales=_row_scales(weight))
    if plain and whole and name == "fp8_e4m3":
        codes = weight.codes[:, :inputs].contiguous()
        return _packed("fp8", weight.shape, codes, scales=_row_scales(weight))
    warnings.warn(
        f"there is no GPU kernel for '{scheme}' of shape {tuple(weight.shape)}: its products are "
        "taken in floating point",
        stacklevel=2,
    )
    return PackedWeight("dense", rows, inputs, weight.dequantize())


def pack_gguf(data: Any, name: str = "Q4_K") -> PackedWeight:
    """Rows of blocks of a GGUF tensor, uint8 (out, bytes a row), as they are.

    There is a kernel for Q4_K. Other types are decoded, with one warning.

    Raises: QlabError for bytes that are not whole blocks.

    Chapter: A GPU kernel in Triton.
    """
    data = torch.as_tensor(data)
    if data.ndim != 2 or data.dtype != torch.uint8:
        raise QlabError("rows of GGUF blocks are uint8 (out, bytes a row)")
    if name.upper() != "Q4_K":
        from qlab.gguf.quantize import dequantize

        floats = torch.from_numpy(dequantize(data.cpu().numpy(), name)).to(data.device)
        warnings.warn(
            f"there is no GPU kernel for {name.upper()}: its products are taken in floating point",
            stacklevel=2,
        )
        return PackedWeight("dense", *floats.shape, floats)
    rows, row_bytes = data.shape
    if row_bytes % 144:
        raise QlabError(f"{row_bytes} bytes a row are no whole blocks of Q4_K, 144 bytes each")
    blocks = row_bytes // 144
    words = data.contiguous().view(torch.int32).reshape(rows, blocks, 36)
    return _packed("q4_k", (rows, 256 * blocks), words)


def quantize_int4(w: torch.Tensor, scheme: str = "int4-g128-sfp16") -> PackedWeight:
    """Quantize to nearest and pack, in one kernel. The codes are those of ``qlab.quantize``.

    Args:
        w: (out, in), float16, bfloat16 or float32, finite.
        scheme: int4 or int4-asym, g32, g64 or g128, scales sfp32 or sfp16.

    Raises: QlabError for another scheme, or groups that do not divide the inputs.

    Chapter: A GPU kernel in Triton.
    """
    from qlab.core.scheme import Scheme

    parsed = Scheme.parse(scheme)
    group = parsed.granularity.block_shape(tuple(w.shape))[-1]
    of_groups = parsed.granularity.kind == "group" and group in (32, 64, 128)
    word = parsed.scale_word
    if (
        parsed.format.name != "int4"
        or parsed.full
        or not of_groups
        or word not in ("sfp32", "sfp16")
    ):
        raise QlabError(
            f"scheme '{scheme}' is not quantized on the GPU: use int4 or int4-asym with g32, g64 "
            "or g128, or qlab.quantize and pack"
        )
    if w.ndim != 2 or w.dtype not in FLOATS:
        raise QlabError("a weight is a matrix (out, in) of float16, bfloat16 or float32")
    parsed.granularity.check_divides(tuple(w.shape))
    from qlab.kernels.gpu.quantize import int4_kernel, triton
    from qlab.kernels.gpu.runtime import check_device

    check_device(w)
    (rows, inputs), chunks = w.shape, -(-w.shape[1] // CHUNK)
    words = torch.empty((rows, chunks, 16), dtype=torch.int32, device=w.device)
    dtype = torch.float16 if word == "sfp16" else torch.float32
    scales = torch.empty((rows, inputs // group), dtype=dtype, device=w.device)
    asym = not parsed.symmetric
    zeros = torch.empty_like(scales, dtype=torch.uint8) if asym else None
    height = 16
    int4_kernel[(triton.cdiv(rows, height), chunks)](
        w.contiguous(), words, scales, zeros if asym else words, rows, inputs, chunks,
        inputs // group, GROUP=group, ASYM=asym, BLOCK_N=height,
    )  # fmt: skip
    return _packed("int4", w.shape, words, scales=scales, zeros=zeros, offset=8, group_size=group)


def quantize_rows(x: torch.Tensor, format: str = "int8") -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row (token) of x with a scale of its own: ``int8-token`` or ``fp8_e4m3-token``.

    Args:
        x: (tokens, in), float16, bfloat16 or float32, finite.
        format: ``int8`` or ``fp8_e4m3``.

    Returns: codes int8, or uint8 patterns of e4m3, (tokens, in); scales float32 (tokens,). Both
        have the bits that ``qlab.quantize`` gives.

    Raises: QlabError for another format or dtype.

    Chapter: A GPU kernel in Triton.
    """
    if format not in ("int8", "fp8_e4m3"):
        raise QlabError(f"rows are quantized to int8 or fp8_e4m3, not to '{format}'")
    if x.ndim != 2 or x.dtype not in FLOATS:
        raise QlabError("tokens are a matrix (tokens, in) of float16, bfloat16 or float32")
    from qlab.kernels.gpu.quantize import rows_kernel, triton
    from qlab.kernels.gpu.runtime import check_device

    check_device(x)
    (tokens, inputs), fp8 = x.shape, format != "int8"
    codes = torch.empty(x.shape, dtype=torch.uint8 if fp8 else torch.int8, device=x.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
    if codes.numel():
        block = min(1024, triton.next_power_of_2(inputs))
        rows_kernel[(tokens,)](x.contiguous(), codes, scales, inputs, FP8=fp8, BLOCK_K=block)
    return codes, scales


def _four_bits(q: Any, rows: int, inputs: int, group: int) -> PackedWeight:
    fmt = q.scheme.format
    stored = fmt.to_stored(q.codes)[:, :inputs]
    scales = q.scale.expand(rows, -1)
    if q.tensor_scale is not None:
        scales = scales.float() * q.tensor_scale
    zeros, table, offset = None, None, 0
    if fmt.affine:
        offset = -fmt.qmin
        if q.zero_point is not None:
            shifted = q.zero_point.expand(rows, -1) + offset
            zeros = shifted if shifted.is_floating_point() else shifted.to(torch.uint8)
            zeros = zeros.contiguous()
    else:
        entries = torch.arange(16, dtype=torch.uint8, device=q.packed.device)
        table = fmt.decode(fmt.from_stored(entries)).float().contiguous()
    return _packed(
        "int4" if table is None else "table4", (rows, inputs), to_lanes(stored),
        scales=scales.contiguous(), zeros=zeros, table=table, offset=offset, group_size=group,
    )  # fmt: skip


def _row_scales(q: Any) -> torch.Tensor:
    scales = q.scale.float() if q.tensor_scale is None else q.scale.float() * q.tensor_scale
    return scales.expand(q.shape[0], 1).reshape(-1).contiguous()


def _packed(kind: str, shape: Any, codes: torch.Tensor, **parts: Any) -> PackedWeight:
    rows, inputs = (int(s) for s in shape)
    # The smallest tile is four rows high.
    counters = torch.zeros(max(1, -(-rows // 4)), dtype=torch.int32, device=codes.device)
    return PackedWeight(kind, rows, inputs, codes, counters=counters, **parts)
