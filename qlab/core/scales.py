"""The scale of a block: from what the block holds, and rounded to how it is stored.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import math

from qlab.core import granularity as gran
from qlab.core._array import Array, bit_pattern, from_bit_pattern, namespace
from qlab.core.affine import TINY, affine_params
from qlab.core.floats import BF16, E8M0, FP8_E4M3, FloatFormat
from qlab.core.integers import IntFormat
from qlab.core.scheme import SCALE_DTYPES, Scheme


def fit(minimum: Array, maximum: Array, scheme: Scheme) -> tuple[Array, Array | None]:
    """scale and zero_point of blocks with that range, before the scale is rounded.

    Args:
        minimum, maximum: float32, one value a block, finite.

    Integers: ``affine_params``. Floats and codebooks: amax / largest level, so that the largest
    magnitude becomes the largest level; 1 for formats of 16 bits and more, which need none; and
    with power-of-two scales that of the MX standard, ``power_of_two``. A block of zeros gets scale
    1; or 0 where scales have eight bits, which ``store`` raises to the smallest there is (so do
    torchao's MX and NVFP4).
    """
    xp = namespace(minimum, maximum)
    fmt = scheme.format
    if isinstance(fmt, IntFormat):
        scale, zero_point = affine_params(minimum, maximum, fmt, scheme.symmetric, scheme.full)
    else:
        zero_point = None
        scale = xp.maximum(xp.abs(minimum), xp.abs(maximum))
        if scheme.is_cast:
            scale = xp.ones_like(scale)
        elif scheme.scale_word == "se8m0" and isinstance(fmt, FloatFormat):
            scale = power_of_two(scale, fmt)
        else:
            scale = scale / fmt.max
    empty = (minimum == 0) & (maximum == 0)
    of_zeros = 0.0 if SCALE_DTYPES[scheme.scale_word][1] == 8 else 1.0
    return xp.where(empty, xp.full_like(scale, of_zeros), scale), zero_point


def power_of_two(amax: Array, fmt: FloatFormat) -> Array:
    """The scale of an MX block: 2^(floor(log2 amax) - floor(log2 largest level)).

    Rounded down, so up to a factor of two may be missing: 7.9 in units of 4 / 4 is beyond the 6 of
    fp4_e2m1 and saturates. That is the standard's rule, and torchao's
    ``ScaleCalculationMode.FLOOR``.

    Source: Open Compute Project, Microscaling Formats (MX) v1.0, section 6.3.
    """
    xp = namespace(amax)
    exponent = (bit_pattern(amax) >> 23) - (math.frexp(fmt.max)[1] - 1)
    return E8M0.decode(xp.astype(xp.clip(exponent, 0, 254), xp.uint8))


def store(
    scale: Array, scheme: Scheme, tensor_scale: Array | None = None
) -> tuple[Array, Array | None]:
    """Scales as they are stored, and the scale of the whole tensor where the scheme has one.

    sfp32, sfp16, sbf16 and sfp8_e4m3 round to the nearest, half to even; se8m0 rounds up to a power
    of two, so that nothing is clipped (a power of two stays as it is). Scales beyond the range of
    the type are clipped to it.

    With sfp8_e4m3 the scales are divided by ``tensor_scale`` first, by default the largest scale /
    448, so that the whole range of fp8_e4m3 is used.

    Args:
        scale: float32, positive, one a block.
        tensor_scale: float32, shape (1,), or None.

    Returns: scale (float32 or float16) and tensor_scale (float32, shape (1,)), or None.
    """
    xp = namespace(scale)
    dtype, _, smallest, largest = SCALE_DTYPES[scheme.scale_word]
    if not scheme.has_tensor_scale:
        return _round(xp.clip(scale, smallest, largest), scheme.scale_word, dtype), None
    if tensor_scale is None:
        tensor_scale = tensor_scale_of(scale, 448.0)
    scale = xp.clip(scale / tensor_scale, smallest, largest)
    return _round(scale, scheme.scale_word, dtype), tensor_scale


def tensor_scale_of(values: Array, divisor: float) -> Array:
    """max(values) / divisor as float32 of shape (1,); 1 if that is nothing or nearly so."""
    xp = namespace(values)
    flat = xp.reshape(xp.astype(values, xp.float32), (-1,))
    if not flat.shape[0]:
        return xp.ones((1,), dtype=xp.float32, device=values.device)
    largest = xp.max(flat, axis=0, keepdims=True) / divisor
    return xp.where(largest < TINY, xp.ones_like(largest), largest)


def used(scale: Array, tensor_scale: Array | None) -> Array:
    """The float32 number that multiplies the levels of each block."""
    xp = namespace(scale)
    scale = xp.astype(scale, xp.float32)
    return scale if tensor_scale is None else tensor_scale * scale


def inverse(scale: Array, tensor_scale: Array | None) -> Array:
    """What the values of a block are multiplied by: 1 / scale, or (1 / tensor_scale) / scale.

    Floats and codebooks multiply by the inverse where integers divide by the scale. The two differ
    in the last bit, hence in a code where a value lies on the border of two levels; bitsandbytes
    and torchao multiply.
    """
    xp = namespace(scale)
    scale = xp.astype(scale, xp.float32)
    return 1.0 / scale if tensor_scale is None else (1.0 / tensor_scale) / scale


def mean_magnitude(x: Array, block: tuple[int, ...]) -> Array:
    """mean |x| of each block, summed in float64: the scale of ``binary``.

    The least-squares scale of signs. Source: Rastegari et al. 2016 (arXiv 1603.05279), section 3.1.
    A block of zeros gets 1.
    """
    xp = namespace(x)
    blocks, axes = gran.to_blocks(xp.astype(xp.abs(x), xp.float64), block)
    mean = xp.astype(xp.mean(blocks, axis=axes), xp.float32)
    mean = xp.where(mean == 0, xp.ones_like(mean), mean)
    return xp.where(mean < TINY, xp.full_like(mean, TINY), mean)


def encode_scale(scale: Array, word: str) -> Array:
    """Stored scales as the bits of their type: float arrays as they are, or uint16, or uint8."""
    formats = {"sbf16": BF16, "se8m0": E8M0, "sfp8_e4m3": FP8_E4M3}
    return formats[word].encode(scale) if word in formats else scale


def decode_scale(stored: Array, word: str) -> Array:
    """The inverse of ``encode_scale``."""
    formats = {"sbf16": BF16, "se8m0": E8M0, "sfp8_e4m3": FP8_E4M3}
    return formats[word].decode(stored) if word in formats else stored


def _round(scale: Array, word: str, dtype: str) -> Array:
    xp = namespace(scale)
    if word == "se8m0":
        bits = bit_pattern(xp.astype(scale, xp.float32))
        up = xp.astype((bits & 0x7FFFFF) > 0, xp.int32)
        # Below 2^-126, where only 2^-127 is left, float32 is subnormal: its fraction bit alone.
        return xp.where(
            bits <= 1 << 22,
            xp.full_like(scale, 2.0**-127),
            from_bit_pattern(((bits >> 23) + up) << 23),
        )
    if word in ("sbf16", "sfp8_e4m3"):
        return decode_scale(encode_scale(scale, word), word)
    return xp.astype(scale, getattr(xp, dtype))
