"""NF4 and FP4 as bitsandbytes stores them: blocks scaled by their largest magnitude, its scales
quantized once more.

    absmax = max |w| of a block of 64        code = the level nearest to w / absmax

The levels of NF4 are quantiles of the normal distribution (``qlab.core.codebooks``). With double
quantization the float32 absmax of each block becomes a byte (``qlab.core.double_quantization``), so
that a weight costs 4 + 8/64 + 32/(64·256) = 4.127 bits instead of 4.5.

Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3; the library bitsandbytes,
``functional.quantize_4bit`` and ``QuantState.as_dict``.

Chapter: NF4 and double quantization.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.core import QTensor, Scheme, pack, quantize, unpack
from qlab.core._array import Array, namespace, to_numpy
from qlab.core.codebooks import CodebookFormat
from qlab.core.double_quantization import BLOCK, DYNAMIC_MAP, DoubleQuantized, double_quantize
from qlab.core.double_tensor import DoubleTensor, double_tensor
from qlab.core.qtensor import from_codes
from qlab.errors import QlabError
from qlab.methods.registry import register

# qlab's name of a format -> bitsandbytes'.
TYPES = {"nf4": "nf4", "fp4_bnb": "fp4"}
SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # blocks that bitsandbytes takes


@dataclass(frozen=True)
class Nf4Options:
    """Options of ``nf4``.

    Attributes:
        double: quantize the scales too (QLoRA's double quantization).
        pad: fill the tensor with zeros to whole blocks where the block size does not divide it.
    """

    double: bool = True
    pad: bool = False


@register(
    "nf4",
    options=Nf4Options,
    source="Dettmers et al. 2023, arXiv 2305.14314, section 3",
    chapter="nf4",
)
def nf4(weight: Array, stats: Any, scheme: Scheme, options: Nf4Options | None = None) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) as bitsandbytes does.

    Args:
        scheme: ``nf4-g64`` or another group size; or ``fp4_bnb-g64``, its 4-bit float.

    Returns: a DoubleTensor, or a QTensor with ``double=False``. The codes are those for the scales
        before these are quantized, as in bitsandbytes.

    Raises: QlabError for another format or granularity; NaN or infinity in the weight.

    Chapter: NF4 and double quantization.
    """
    o = options or Nf4Options()
    if scheme.format.name not in TYPES:
        raise QlabError(
            f"method 'nf4' knows nf4 and fp4_bnb, not {scheme.format.name}: use a scheme such as "
            "'nf4-g64'"
        )
    if scheme.granularity.kind != "group" or scheme.scale_word != "sfp32":
        raise QlabError(
            f"method 'nf4' takes groups with float32 scales, which it quantizes itself: use "
            f"'{scheme.format.name}-g64', not '{scheme}'"
        )
    q = quantize(weight, scheme, pad=o.pad)
    if not o.double:
        return q
    # The scale of a block of zeros is 1 in qlab and 0 in bitsandbytes; any will do, and theirs
    # keeps the mean of the scales.
    xp = namespace(q.scale)
    doubled = double_quantize(xp.where(_empty(q), xp.zeros_like(q.scale), q.scale))
    return double_tensor(q.packed, doubled, q.scheme, q.shape, q.dtype)


def to_bitsandbytes(q: QTensor) -> dict[str, Any]:
    """The tensors that bitsandbytes saves for such a weight, byte for byte.

    Args:
        q: of scheme ``nf4-g<size>`` or ``fp4_bnb-g<size>``, of torch, without padding.

    Returns: torch tensors, named as in a state dict after the name of the weight:
        ``""`` uint8 (elements / 2, 1), the first code of a pair in the high nibble;
        ``absmax`` float32 (blocks,), or uint8 if doubly quantized;
        ``quant_map`` float32 (16,), the levels by code;
        ``nested_absmax`` float32 (ceil(blocks / 256),) and ``nested_quant_map`` float32 (256,), if
        doubly quantized;
        ``quant_state.bitsandbytes__nf4`` uint8, JSON with block size, dtype, shape (and the offset
        of the scales).

    Raises: QlabError for another scheme, a block size that bitsandbytes has not, an odd number of
        elements, or padding.

    Chapter: NF4 and double quantization.
    """
    import torch

    fmt, size = q.scheme.format, _block_size(q.scheme)
    if not isinstance(q.packed, torch.Tensor):
        raise QlabError("bitsandbytes holds torch tensors: quantize a torch tensor")
    if q.shape and q.shape[-1] % size:
        raise QlabError(
            f"{size} does not divide the rows of {q.shape[-1]}, and bitsandbytes' blocks run on "
            "into the next row: quantize the flattened weight"
        )
    assert isinstance(fmt, CodebookFormat)
    packed = pack(q.codes.reshape(-1), 4, high_first=True).reshape(-1, 1)
    facts: dict[str, Any] = {
        "quant_type": TYPES[fmt.name],
        "blocksize": size,
        "dtype": q.dtype,
        "shape": list(q.shape),
    }
    parts = {"": packed, "quant_map": torch.tensor(fmt.values)}
    doubled = q.doubled if isinstance(q, DoubleTensor) else None
    if doubled is None:
        absmax = torch.where(_empty(q), torch.zeros_like(q.scale), q.scale)
        parts["absmax"] = absmax.reshape(-1)
    else:
        parts["absmax"] = doubled.codes
        parts["nested_absmax"] = doubled.absmax
        parts["nested_quant_map"] = torch.tensor(DYNAMIC_MAP.values)
        facts["nested_blocksize"] = BLOCK
        facts["nested_dtype"] = "float32"
        facts["nested_offset"] = float(doubled.offset)
    text = json.dumps(facts).encode()
    name = f"quant_state.bitsandbytes__{TYPES[fmt.name]}"
    parts[name] = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
    return parts


def from_bitsandbytes(parts: Mapping[str, Any]) -> QTensor:
    """Read what bitsandbytes saves for a weight: the inverse of ``to_bitsandbytes``.

    Args:
        parts: torch tensors as ``to_bitsandbytes`` names them, such as ``QuantState.as_dict(packed=
            True)`` with the packed weight under ``""``. Whole names of a state dict will do,
            ``model...weight.absmax``: what stands before the last part is not read.

    Raises: QlabError if a part is missing, or the sizes do not fit each other.

    Chapter: NF4 and double quantization.
    """
    import torch

    known = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    found: dict[str, Any] = {}
    for name, tensor in parts.items():
        last = name.rpartition(".")[2]
        if last.startswith("bitsandbytes__"):
            found["state"] = tensor
        else:
            found[last if last in known else "packed"] = tensor
    missing = [n for n in ("state", "packed", "absmax", "quant_map") if n not in found]
    if missing:
        raise QlabError(
            f"no {', '.join(missing)} among {', '.join(sorted(parts))}: give all tensors that "
            "bitsandbytes saved for this weight"
        )
    facts = json.loads(to_numpy(found["state"]).tobytes())
    formats = {theirs: ours for ours, theirs in TYPES.items()}
    kind, size, shape = facts["quant_type"], facts["blocksize"], tuple(facts["shape"])
    if kind not in formats:
        raise QlabError(f"bitsandbytes' type '{kind}' is not read here: nf4 and fp4 are")
    scheme = Scheme.parse(f"{formats[kind]}-g{size}")
    if not shape or shape[-1] % size:
        raise QlabError(f"blocks of {size} run through the rows of a weight of shape {shape}")
    fmt = scheme.format
    assert isinstance(fmt, CodebookFormat)
    if not torch.equal(found["quant_map"].cpu(), torch.tensor(fmt.values)):
        raise QlabError(f"the table of levels is not that of {kind}: another one is not read here")
    count = int(np.prod(shape))
    codes = unpack(found["packed"].reshape(-1).view(torch.uint8), 4, count, high_first=True)
    blocks = (*shape[:-1], shape[-1] // size)
    if found["absmax"].numel() != count // size:
        raise QlabError(f"{found['absmax'].numel()} scales do not fit {count // size} blocks")
    doubled = None
    if "nested_absmax" in found:
        offset = torch.tensor(facts["nested_offset"], dtype=torch.float32)
        doubled = DoubleQuantized(found["absmax"], found["nested_absmax"], offset, blocks)
        scale = doubled.dequantize()
    else:
        absmax = found["absmax"].reshape(blocks)
        scale = torch.where(absmax == 0, torch.ones_like(absmax), absmax)
    q = from_codes(codes.reshape(shape), scale, None, scheme, dtype=facts["dtype"])
    if doubled is None:
        return q
    return double_tensor(q.packed, doubled, q.scheme, q.shape, q.dtype)


def _empty(q: QTensor) -> Array:
    """Blocks that hold zeros alone, bool, the shape of the scales. Their codes stand for 0."""
    fmt, xp = q.scheme.format, namespace(q.packed)
    size = _block_size(q.scheme)
    values = fmt.decode(q.codes)
    return xp.all(xp.reshape(values, (*q.scale.shape, size)) == 0, axis=-1)


def _block_size(scheme: Scheme) -> int:
    if scheme.format.name not in TYPES or scheme.granularity.kind != "group":
        raise QlabError(f"bitsandbytes stores nf4 and fp4 in blocks, not '{scheme}'")
    size = scheme.granularity.size[0]
    if size not in SIZES:
        raise QlabError(
            f"bitsandbytes has no blocks of {size}: use one of {', '.join(map(str, SIZES))}"
        )
    return int(size)
