"""EETQ's int8: weights in eight bits, a scale an output channel, activations in half precision.

    scale = max |w| / 128        codes = clip(round(w / scale), -128, 127)

No data is needed and nothing is searched. Four things differ from ``int8-channel``: the divisor is
128, not 127; all 256 codes are in use, so that a positive largest weight is clipped by a step;
``round`` takes halves away from zero; and the scale is kept in half precision. The divisor is a
power of two, so that the scale of half-precision weights is exact.

EETQ's own kernel, a product of half-precision activations with int8 weights that are restored on
the way, runs on NVIDIA GPUs only, with bytes in an order of the GPU's: ``eetq_layout``.

Source: the library EETQ (NetEase Fuxi), ``csrc/cutlass_kernels``, whose quantizer and layout are
those of NVIDIA's FasterTransformer, ``cutlass_preprocessors.cc``; the method: Kim et al. 2022
(arXiv 2211.10017), section 3.

Chapter: Methods without data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qlab.core import QTensor, Scheme, from_codes
from qlab.core._array import Array, dtype_name, namespace, to_float32
from qlab.core.scales import store
from qlab.errors import QlabError
from qlab.methods.registry import register

# In each 16 inputs, the order in which a tensor core of Turing to Ada takes them.
ORDER = tuple(8 * (i % 4 // 2) + i % 2 + 2 * (i // 4) for i in range(16))
TILE = 64  # inputs of one column that lie together


@dataclass(frozen=True)
class EetqOptions:
    """EETQ has no options."""


@register(
    "eetq",
    options=EetqOptions,
    source="EETQ, NetEase Fuxi; Kim et al. 2022, arXiv 2211.10017, section 3",
    chapter="without-data",
)
def eetq(weight: Array, stats: Any, scheme: Scheme, options: EetqOptions | None = None) -> QTensor:
    """Quantize ``weight`` (out_features, in_features) as EETQ does.

    Args:
        scheme: ``int8-full-channel-sfp16``, which is what EETQ stores. ``int8-channel`` is taken to
            mean the same with scales in float32. As in EETQ the codes are those for the scale
            before it is rounded.

    Returns: a QTensor whose scheme says ``full``. A row of zeros has scale 1 and codes 0. (EETQ's
        has scale 0 and codes 127: zero as well.)

    Raises: QlabError for another scheme; NaN or infinity in the weight.

    Chapter: Methods without data.
    """
    if (
        scheme.format.name != "int8"
        or not scheme.symmetric
        or scheme.granularity.name != "channel"
        or scheme.scale_word not in ("sfp32", "sfp16")
    ):
        raise QlabError(
            f"method 'eetq' stores int8 with a scale a row, and nothing else: use "
            f"'int8-full-channel-sfp16', not '{scheme}'"
        )
    scheme = replace(scheme, full=True)
    x = to_float32(weight, "weight")
    if len(x.shape) != 2:
        raise QlabError(f"method 'eetq' quantizes matrices, got shape {tuple(x.shape)}")
    xp = namespace(x)
    amax = xp.max(xp.abs(x), axis=1, keepdims=True) if x.shape[1] else xp.zeros_like(x[:, :1])
    scale = amax * 2.0**-7
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    stored, _ = store(scale, scheme)
    # Where storing changes a scale by more than its rounding, the codes follow.
    kept = xp.astype(stored, xp.float32)
    scale = xp.where(xp.abs(scale - kept) <= scale * 2.0**-10, scale, kept)
    y = x / scale
    size = xp.floor(xp.abs(y))
    size = size + xp.astype(xp.abs(y) - size >= 0.5, xp.float32)  # halves away from zero
    codes = xp.astype(xp.clip(xp.sign(y) * size, -128.0, 127.0), xp.int8)
    return from_codes(codes, stored, None, scheme, dtype=dtype_name(weight))


def eetq_layout(codes: Array) -> np.ndarray:
    """The bytes that EETQ's kernel reads, for the GPUs of compute capability 7.5 to 8.9.

    From the published source, without a GPU to run the kernel on. In four steps: the inputs are
    put into the order of a tensor core, ``ORDER``, in each 16; 64 inputs of one output
    alternate with 64 of the next; 128 is added, so that codes become unsigned; and of four
    neighboring bytes the middle two change places.

    Args:
        codes: int8 (out_features, in_features), both multiples of 64.

    Returns: int8 (in_features, out_features): the shape of the transposed weight, though the bytes
        inside are no longer in its order.

    Raises: QlabError for another shape.

    Chapter: Methods without data.
    """
    out, inside = _checked(codes.shape)
    c = np.asarray(codes).astype(np.int16).reshape(out, -1, 16)[:, :, ORDER]
    c = c.reshape(out // 2, 2, inside // TILE, TILE).transpose(0, 2, 1, 3)
    stored = (c + 128).astype(np.uint8).reshape(-1, 4)[:, (0, 2, 1, 3)]
    return np.ascontiguousarray(stored).view(np.int8).reshape(inside, out)


def from_eetq_layout(stored: Array) -> np.ndarray:
    """The inverse of ``eetq_layout``: int8 (in, out) as stored -> codes, int8 (out, in).

    Chapter: Methods without data.
    """
    out, inside = _checked(tuple(stored.shape)[::-1])
    c = np.ascontiguousarray(np.asarray(stored)).view(np.uint8).astype(np.int16) - 128
    c = c.reshape(-1, 4)[:, (0, 2, 1, 3)].reshape(out // 2, inside // TILE, 2, TILE)
    c = c.transpose(0, 2, 1, 3).reshape(out, -1, 16)[:, :, np.argsort(ORDER)]
    return np.ascontiguousarray(c.reshape(out, inside).astype(np.int8))


def _checked(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or shape[0] % TILE or shape[1] % TILE or 0 in shape:
        raise QlabError(
            f"EETQ's layout needs a matrix whose sides are multiples of {TILE}, got {tuple(shape)}"
        )
    return int(shape[0]), int(shape[1])
