"""One quantized layer in the layouts of GPTQ, AWQ and compressed-tensors, and back.

Each layout is a pair of functions: a QuantLinear to named tensors, and named tensors to a QTensor.
``qlab.export.foreign`` puts them into folders.

GPTQ (AutoGPTQ, GPTQModel): ``qweight`` int32 (in·bits/32, out) packed along the inputs, ``qzeros``
int32 (groups, out·bits/32), ``scales`` float16 (groups, out), ``g_idx`` int32 (in,). Codes are
unsigned; version 1 stores each zero point less one, version 2 as it is.

AWQ (AutoAWQ's "gemm"): ``qweight`` int32 (in, out/8) packed along the outputs with nibbles
interleaved, ``qzeros`` int32 (groups, out/8), ``scales`` float16 (groups, out). 4 bits only.

compressed-tensors: ``weight_packed`` int32 (out, in·bits/32), ``weight_scale`` (out, groups),
``weight_zero_point`` int32 packed along the outputs, ``weight_shape``; or, with 8 bits and
quantized inputs, ``weight`` int8 or float8 as it is.

Source: the files that the three libraries write. The tests read ours back with compressed-tensors
and transformers; what vLLM makes of them is recorded in ``qlab/records/vllm.json``.

Chapter: The case study, second telling.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qlab.core import QTensor, Scheme
from qlab.core.qtensor import from_codes
from qlab.core.scales import used
from qlab.errors import QlabError
from qlab.export.words import awq_interleave, awq_restore, pack_words, unpack_words
from qlab.nn import QuantLinear

Tensors = dict[str, torch.Tensor]


def group_size_of(scheme: Scheme, in_features: int) -> int:
    """Inputs that share a scale, -1 for all of them.

    Raises: QlabError for a granularity that these layouts cannot say.
    """
    kind = scheme.granularity.kind
    rows, columns = scheme.granularity.block_shape((1 << 20, in_features))
    if rows != 1 or kind not in ("channel", "token", "group"):
        raise QlabError(
            f"granularity '{kind}' has no place in this layout: use 'channel' or groups, such as "
            f"'{scheme.format.name}-g128'"
        )
    return -1 if columns == in_features else int(columns)


def unsigned(layer: QuantLinear) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Codes (out, in) and zero points (out, groups) from 0 on, scales (out, groups), bits.

    Raises: QlabError for a format that is no integer, or zero points that are none.
    """
    q, fmt = layer.qweight, layer.scheme.integer
    if q.zero_point is not None and q.zero_point.is_floating_point():
        raise QlabError(
            "its zero points are real numbers, and this layout has integers: quantize with "
            "HqqOptions(zero='integer'), or use the format 'qlab'"
        )
    offset = -fmt.qmin if fmt.signed else 0
    scale = used(q.scale, q.tensor_scale).float()
    zero = torch.zeros_like(scale, dtype=torch.int32) if q.zero_point is None else q.zero_point
    return q.codes.to(torch.int32) + offset, zero + offset, scale, fmt.bits


def to_gptq(layer: QuantLinear, version: int = 1) -> Tensors:
    """A layer in GPTQ's layout. Scales are rounded to float16, as the layout has them.

    Raises: QlabError for bits other than 2, 3, 4, 8, features that do not fill words, or, in
        version 1, a zero point of 0, which it cannot store.
    """
    codes, zero, scale, bits = unsigned(layer)
    _check("GPTQ", bits, (2, 3, 4, 8), layer)
    size = group_size_of(layer.scheme, layer.in_features)
    groups = scale.shape[1]
    if version == 1 and int(zero.min()) == 0:
        raise QlabError(
            "GPTQ's version 1 stores each zero point less one, and here one is 0: "
            "use the format 'gptq_v2'"
        )
    stored = zero - 1 if version == 1 else zero
    index = torch.arange(layer.in_features, dtype=torch.int32)
    found = {
        "qweight": pack_words(codes, bits).T.contiguous(),
        "qzeros": pack_words(stored.T.contiguous(), bits),
        "scales": _half(scale).T.contiguous(),
        "g_idx": (index // (layer.in_features // groups)).to(torch.int32),
    }
    assert size == -1 or size * groups == layer.in_features
    return {**found, **_bias(layer, torch.float16)}


def from_gptq(
    tensors: Mapping[str, torch.Tensor], bits: int, symmetric: bool, version: int, dtype: str
) -> QTensor:
    """The weight of a layer in GPTQ's layout.

    Raises: QlabError for groups in another order than the inputs (GPTQModel's ``desc_act``).
    """
    qweight, scales = tensors["qweight"], tensors["scales"]
    in_features, out_features = qweight.shape[0] * 32 // bits, qweight.shape[1]
    groups = scales.shape[0]
    expected = torch.arange(in_features, dtype=torch.int32) // (in_features // groups)
    if "g_idx" in tensors and not torch.equal(tensors["g_idx"].to(torch.int32), expected):
        raise QlabError(
            "its groups do not follow the order of the inputs (desc_act): qlab cannot hold that; "
            "quantize with desc_act=False or with static groups"
        )
    codes = unpack_words(qweight.T.contiguous(), bits, in_features)
    zero = unpack_words(tensors["qzeros"], bits, out_features).T.to(torch.int32)
    if version == 1:
        zero = zero + 1
    return _assemble(codes, zero, scales.T, bits, symmetric, in_features // groups, dtype, "sfp16")


def to_awq(layer: QuantLinear) -> Tensors:
    """A layer in AWQ's layout. Scales are rounded to float16, as the layout has them.

    Raises: QlabError for bits other than 4, or features that do not fill words.
    """
    codes, zero, scale, bits = unsigned(layer)
    _check("AWQ", bits, (4,), layer)
    group_size_of(layer.scheme, layer.in_features)
    return {
        "qweight": pack_words(awq_interleave(codes.T.contiguous()), 4),
        "qzeros": pack_words(awq_interleave(zero.T.contiguous()), 4),
        "scales": _half(scale).T.contiguous(),
        **_bias(layer, torch.float16),
    }


def from_awq(tensors: Mapping[str, torch.Tensor], dtype: str) -> QTensor:
    """The weight of a layer in AWQ's layout."""
    qweight, scales = tensors["qweight"], tensors["scales"]
    out_features = qweight.shape[1] * 8
    codes = awq_restore(unpack_words(qweight, 4, out_features)).T
    zero = awq_restore(unpack_words(tensors["qzeros"], 4, out_features)).T.to(torch.int32)
    size = qweight.shape[0] // scales.shape[0]
    return _assemble(codes, zero, scales.T, 4, False, size, dtype, "sfp16")


def to_compressed(layer: QuantLinear, dtype: torch.dtype) -> Tensors:
    """A layer in the layout of compressed-tensors; ``dtype`` of scales and bias: the model's.

    Integers of weight-only layers are packed; int8 and fp8 with quantized inputs are stored as
    they are.

    Raises: QlabError for a format that the layout does not have.
    """
    q = layer.qweight
    found = _bias(layer, dtype)
    scale = used(q.scale, q.tensor_scale).to(dtype).contiguous()
    if layer.activations is not None and layer.activations.static:
        found["input_scale"] = layer.activations.scale.flatten().to(dtype)
        if layer.activations.zero_point is not None:
            found["input_zero_point"] = layer.activations.zero_point.flatten().to(torch.int8)
    if q.scheme.format.name == "fp8_e4m3":
        weight = q.codes.to(torch.uint8).contiguous().view(torch.float8_e4m3fn)
        return {**found, "weight": weight, "weight_scale": scale}
    codes, zero, _, bits = unsigned(layer)
    if layer.activations is not None:
        if bits != 8 or q.zero_point is not None:
            raise QlabError(
                f"compressed-tensors with quantized inputs takes symmetric int8 or fp8_e4m3 "
                f"weights, not '{q.scheme}'"
            )
        return {**found, "weight": (codes - 128).to(torch.int8), "weight_scale": scale}
    found["weight_packed"] = pack_words(codes, bits)
    found["weight_scale"] = scale
    found["weight_shape"] = torch.tensor([layer.out_features, layer.in_features])
    if q.zero_point is not None:
        found["weight_zero_point"] = pack_words(zero.T.contiguous(), bits).T.contiguous()
    return found


def from_compressed(
    tensors: Mapping[str, torch.Tensor], bits: int, kind: str, symmetric: bool, dtype: str
) -> QTensor:
    """The weight of a layer in the layout of compressed-tensors; ``kind``: "int" or "float"."""
    scale = tensors["weight_scale"]
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    if kind == "float":
        weight = tensors["weight"]
        word = "tensor" if scale.numel() == 1 else "channel"
        scheme = Scheme.parse(f"fp8_e4m3-{word}")
        codes = weight.view(torch.uint8)
        return from_codes(codes, scale.float(), None, scheme, dtype=dtype)
    if "weight" in tensors:
        codes = tensors["weight"].to(torch.int32) + 128
        zero = torch.full(scale.shape, 128, dtype=torch.int32)
    else:
        out_features, in_features = (int(n) for n in tensors["weight_shape"])
        codes = unpack_words(tensors["weight_packed"], bits, in_features)
        zero = torch.full(scale.shape, 1 << (bits - 1), dtype=torch.int32)
        if not symmetric:
            packed = tensors["weight_zero_point"].T.contiguous()
            zero = unpack_words(packed, bits, out_features).T.to(torch.int32)
    size = codes.shape[1] // scale.shape[1]
    return _assemble(codes, zero, scale.float(), bits, symmetric, size, dtype, "sfp32")


def _assemble(
    codes: torch.Tensor,
    zero: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    symmetric: bool,
    size: int,
    dtype: str,
    word: str,
) -> QTensor:
    """A QTensor from unsigned codes and zero points; symmetric if every zero is the middle."""
    half = 1 << (bits - 1)
    symmetric = symmetric or bool((zero == half).all())
    granularity = "channel" if size == codes.shape[1] else f"g{size}"
    words = [f"int{bits}", granularity, word]
    if not symmetric:
        words.insert(1, "asym")
    elif int(codes.min()) == 0 and bits > 1:
        words.insert(1, "full")
    scheme = Scheme.parse("-".join(words))
    signed = codes.to(torch.int32) - half
    return from_codes(
        signed.to(torch.int8).contiguous(),
        scale.contiguous() if word == "sfp16" else scale.float().contiguous(),
        None if symmetric else (zero - half).contiguous(),
        scheme,
        dtype=dtype,
    )


def _check(layout: str, bits: int, known: tuple[int, ...], layer: QuantLinear) -> None:
    if bits not in known:
        raise QlabError(
            f"{layout}'s layout has {' or '.join(map(str, known))} bits, not {bits}: "
            "use the format 'compressed-tensors' or 'qlab'"
        )
    if layer.activations is not None:
        raise QlabError(
            f"{layout}'s layout is for weights alone, and here the inputs are quantized too: use "
            "the format 'compressed-tensors'"
        )
    for what, count in (("in_features", layer.in_features), ("out_features", layer.out_features)):
        if count * bits % 32:
            raise QlabError(
                f"{layout}'s layout packs {what} into words of 32 bits, and {count} codes of "
                f"{bits} bits do not fill them: use the format 'compressed-tensors' or 'qlab'"
            )


def _half(scale: torch.Tensor) -> torch.Tensor:
    """Scales in float16.

    Raises: QlabError where one is beyond its range.
    """
    half = scale.to(torch.float16)
    if not bool(torch.isfinite(half).all()) or bool((half == 0).logical_and(scale > 0).any()):
        raise QlabError(
            "a scale is beyond the range of float16, which this layout stores: use the format "
            "'compressed-tensors' or 'qlab'"
        )
    return half


def _bias(layer: QuantLinear, dtype: torch.dtype) -> Tensors:
    return {} if layer.bias is None else {"bias": layer.bias.to(dtype)}
