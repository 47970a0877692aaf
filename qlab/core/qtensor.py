"""QTensor: a quantized tensor, and ``quantize``, which makes one by round-to-nearest.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlab.core import granularity as gran
from qlab.core._array import Array, dtype_name, namespace, to_float32
from qlab.core.affine import affine_dequantize, affine_params, affine_quantize
from qlab.core.packing import pack, unpack
from qlab.core.scheme import SCALE_DTYPES, Scheme


@dataclass(frozen=True, eq=False)
class QTensor:
    """Packed codes with what is needed to read them. Immutable.

    Attributes:
        packed: uint8 (..., bytes a row); codes packed along the last axis, offset to be unsigned
            (stored = code - format.qmin).
        scale: float, one a block; shape = number of blocks along each axis.
        zero_point: int32, the shape of ``scale``, or None when the scheme is symmetric.
        scheme: format, granularity, symmetry.
        shape: the original shape.
        dtype: name of the original dtype, such as ``float32``; what ``dequantize`` returns.
    """

    packed: Array
    scale: Array
    zero_point: Array | None
    scheme: Scheme
    shape: tuple[int, ...]
    dtype: str

    @property
    def codes(self) -> Array:
        """Integer codes, int8 (uint8 for unsigned formats), in the padded shape."""
        fmt = self.scheme.format
        xp = namespace(self.packed)
        shape = self.scheme.granularity.padded_shape(self.shape or (1,))
        stored = unpack(self.packed, fmt.bits, shape[-1])
        if not fmt.signed:
            return stored
        return xp.astype(xp.astype(stored, xp.int16) + fmt.qmin, xp.int8)

    def dequantize(self) -> Array:
        """x̂ in the original shape and dtype."""
        xp = namespace(self.packed)
        padded = self.scheme.granularity.padded_shape(self.shape or (1,))
        block = self.scheme.granularity.block_shape(self.shape or (1,))
        blocks, _ = gran.to_blocks(self.codes, block)
        scale = gran.expand(xp.astype(self.scale, xp.float32), block)
        zero = None if self.zero_point is None else gran.expand(self.zero_point, block)
        x = xp.reshape(affine_dequantize(blocks, scale, zero), padded)
        x = x[tuple(slice(0, s) for s in (self.shape or (1,)))]
        return xp.astype(xp.reshape(x, self.shape), getattr(xp, self.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points as stored (zero points packed like codes)."""
        codes = 1
        for s in self.packed.shape:
            codes *= s
        blocks = 1
        for s in self.scale.shape:
            blocks *= s
        bits = blocks * SCALE_DTYPES[self.scheme.scale_word][1]
        if self.zero_point is not None:
            bits += blocks * self.scheme.format.bits
        return int(codes + -(-bits // 8))

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element of the original shape, metadata counted."""
        count = 1
        for s in self.shape:
            count *= s
        return self.nbytes * 8 / count if count else 0.0

    def __repr__(self) -> str:
        return (
            f"QTensor({self.scheme}, shape={tuple(self.shape)}, {self.bits_per_weight:.3f} "
            f"bits per weight)"
        )


def quantize(x: Array, scheme: str | Scheme, *, pad: bool = False) -> QTensor:
    """Quantize by round-to-nearest, with scales from the minimum and maximum of each block.

    Args:
        x: NumPy array or torch tensor of any floating dtype and shape; computed in float32.
        scheme: such as ``"int4-asym-g128"``.
        pad: grow the tensor with zeros to whole blocks when they do not divide it (the padding is
            counted in ``nbytes`` and removed by ``dequantize``).

    Raises: QlabError for an unknown scheme, blocks that do not divide the shape (unless ``pad``),
        NaN or infinity.
    """
    scheme = Scheme.parse(scheme)
    x32 = to_float32(x)
    shape = tuple(int(s) for s in x.shape)
    xp = namespace(x32)
    if not shape:
        x32 = xp.reshape(x32, (1,))
    x32 = _whole_blocks(x32, scheme, pad)
    block = scheme.granularity.block_shape(tuple(x32.shape))
    minimum, maximum = block_range(x32, block)
    scale, zero_point = affine_params(minimum, maximum, scheme.format, scheme.symmetric)
    return from_params(x32, scale, zero_point, scheme, shape=shape, dtype=dtype_name(x))


def from_params(
    x32: Array,
    scale: Array,
    zero_point: Array | None,
    scheme: Scheme,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
) -> QTensor:
    """Round ``x32`` (float32, whole blocks) to nearest with the given parameters.

    Scales are first rounded to the dtype in which they are stored, so that the codes are the
    nearest ones for what ``dequantize`` will use.
    """
    xp = namespace(x32)
    block = scheme.granularity.block_shape(tuple(x32.shape))
    dtype_of_scale, _, smallest, largest = SCALE_DTYPES[scheme.scale_word]
    stored = xp.astype(xp.clip(scale, smallest, largest), getattr(xp, dtype_of_scale))
    used = xp.astype(stored, xp.float32)
    blocks, _ = gran.to_blocks(x32, block)
    zero = None if zero_point is None else gran.expand(zero_point, block)
    codes = affine_quantize(blocks, gran.expand(used, block), zero, scheme.format, scheme.symmetric)
    return from_codes(
        xp.reshape(codes, tuple(x32.shape)),
        stored,
        zero_point,
        scheme,
        shape=shape,
        dtype=dtype,
    )


def from_codes(
    codes: Array,
    scale: Array,
    zero_point: Array | None,
    scheme: Scheme,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
) -> QTensor:
    """Pack codes (integers in the format's range, whole blocks) that a method has chosen."""
    xp = namespace(codes)
    stored = xp.astype(xp.astype(codes, xp.int16) - scheme.format.qmin, xp.uint8)
    packed = pack(stored, scheme.format.bits)
    return QTensor(
        packed,
        scale,
        zero_point,
        scheme,
        tuple(codes.shape) if shape is None else shape,
        dtype,
    )


def block_range(x: Array, block: tuple[int, ...]) -> tuple[Array, Array]:
    """Minimum and maximum of each block, (n0, n1, ...)."""
    xp = namespace(x)
    blocks, axes = gran.to_blocks(x, block)
    if 0 in blocks.shape:
        empty = xp.zeros(tuple(blocks.shape[::2]), dtype=xp.float32)
        return empty, empty
    return xp.min(blocks, axis=axes), xp.max(blocks, axis=axes)


def _whole_blocks(x: Array, scheme: Scheme, pad: bool) -> Array:
    shape = tuple(x.shape)
    if not pad:
        scheme.granularity.check_divides(shape)
        return x
    xp = namespace(x)
    target = scheme.granularity.padded_shape(shape)
    for axis, (have, want) in enumerate(zip(shape, target, strict=True)):
        if want > have:
            fill = tuple(want - have if i == axis else s for i, s in enumerate(x.shape))
            x = xp.concat([x, xp.zeros(fill, dtype=x.dtype, device=x.device)], axis=axis)
    return x
