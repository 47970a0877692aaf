"""QTensor: a quantized tensor, and ``quantize``, which makes one by round-to-nearest.

Chapter: The mathematics of quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qlab.core import granularity as gran
from qlab.core import scales
from qlab.core._array import Array, cast_to_float32, check_finite, dtype_name, namespace
from qlab.core.affine import affine_dequantize, affine_quantize
from qlab.core.floats import FloatFormat
from qlab.core.integers import BinaryFormat, IntFormat
from qlab.core.learned import LearnedFormat
from qlab.core.packing import pack, packed_length, unpack
from qlab.core.rounding import draw, generator
from qlab.core.scheme import SCALE_DTYPES, Scheme
from qlab.core.threads import each
from qlab.errors import QlabError


@dataclass(frozen=True, eq=False)
class QTensor:
    """Packed codes with what is needed to read them. Immutable.

    Attributes:
        packed: uint8 (..., bytes a row); codes packed along the last axis, made unsigned
            (``format.to_stored``: code - qmin for integers, bit patterns and table entries as they
            are).
        scale: one a block; shape = number of blocks along each axis. float32, float16 for
            ``sfp16``; the other types of scales are held as float32 numbers that they can store.
        zero_point: int32, the shape of ``scale``, or None when the scheme is symmetric.
        scheme: format, granularity, symmetry.
        shape: the original shape.
        dtype: name of the original dtype, such as ``float32``; what ``dequantize`` returns.
        tensor_scale: float32, shape (1,), by which all scales are multiplied (``nvfp4``), or None.
    """

    packed: Array
    scale: Array
    zero_point: Array | None
    scheme: Scheme
    shape: tuple[int, ...]
    dtype: str
    tensor_scale: Array | None = None

    @property
    def codes(self) -> Array:
        """The codes in the padded shape.

        int8 (uint8 for unsigned integers), bit patterns (uint8, uint16 or uint32) for floats,
        entries (uint8) for codebooks.
        """
        fmt = self.scheme.format
        return fmt.from_stored(unpack(self.packed, fmt.bits, self._padded[-1]))

    def dequantize(self) -> Array:
        """x̂ in the original shape and dtype.

        x̂ is finite: what rounding carries beyond the range of that dtype is clipped to its end.
        """
        xp = namespace(self.packed)
        fmt, padded = self.scheme.format, self._padded
        block = self.scheme.granularity.block_shape(self.shape or (1,))
        used = scales.used(self.scale, self.tensor_scale)
        dtype = getattr(xp, self.dtype)
        limit = self._limit(used)

        def restore(piece: gran.Piece) -> Array:
            rows, which, inside = piece
            # A single axis is one piece, and its bytes are not its rows.
            packed = self.packed[rows, ...] if len(padded) > 1 else self.packed
            codes = fmt.from_stored(unpack(packed, fmt.bits, padded[-1]))
            blocks, _ = gran.to_blocks(codes, inside)
            scale = gran.expand(used[which, ...], inside)
            if isinstance(fmt, IntFormat):
                z = self.zero_point
                zero = None if z is None else gran.expand(z[which, ...], inside)
                x = affine_dequantize(blocks, scale, zero)
            else:
                x = fmt.decode(blocks) * scale
            if limit is not None:
                x = xp.clip(x, -limit, limit)
            return xp.astype(xp.reshape(x, tuple(codes.shape)), dtype, copy=False)

        # A piece at a time, so that what lies between the codes and x̂ stays in the cache.
        parts = each(restore, gran.row_chunks(padded, block), used)
        x = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        if padded != self.shape:
            x = x[tuple(slice(0, s) for s in (self.shape or (1,)))]
        return xp.reshape(x, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and parameters as stored: zero points packed like codes, scales in the
        bits of their type, and four bytes for the scale of the tensor where there is one."""
        blocks = math.prod(self.scale.shape)
        bits = blocks * SCALE_DTYPES[self.scheme.scale_word][1]
        if self.zero_point is not None:
            # Real zero points (HQQ) are stored like scales.
            real = "float" in str(self.zero_point.dtype)
            word = SCALE_DTYPES[self.scheme.scale_word][1]
            bits += blocks * (word if real else self.scheme.format.bits)
        if self.tensor_scale is not None:
            bits += 32
        return int(math.prod(self.packed.shape) + packed_length(bits, 1))

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element of the original shape, metadata counted."""
        count = math.prod(self.shape)
        return self.nbytes * 8 / count if count else 0.0

    @property
    def _padded(self) -> tuple[int, ...]:
        return self.scheme.granularity.padded_shape(self.shape or (1,))

    def _limit(self, used: Array) -> float | None:
        """The largest finite number of the dtype, if any x̂ might be beyond it."""
        xp = namespace(used)
        fmt = self.scheme.format
        largest = float(xp.finfo(getattr(xp, self.dtype)).max)
        largest = min(largest, float(xp.finfo(xp.float32).max))
        reach = fmt.max - fmt.min if self.zero_point is not None else max(fmt.max, -fmt.min)
        highest = float(xp.max(used)) if math.prod(used.shape) else 0.0
        return largest if highest * reach > largest * (1 - 2.0**-20) else None

    def __repr__(self) -> str:
        return (
            f"QTensor({self.scheme}, shape={tuple(self.shape)}, {self.bits_per_weight:.3f} "
            f"bits per weight)"
        )


def quantize(
    x: Array,
    scheme: str | Scheme,
    *,
    pad: bool = False,
    rounding: str = "nearest",
    seed: int | None = 0,
) -> QTensor:
    """Quantize with scales from the minimum and maximum of each block, rounding to nearest.

    Some formats take their scales otherwise: ``binary`` the mean magnitude of the block, the best
    for signs; formats of 16 bits and more the scale 1, so that they are plain casts. Learned ones
    (``kmeans4`` ...) fit a codebook instead (``quantize_codebook``).

    Args:
        x: NumPy array or torch tensor of any floating dtype and shape; computed in float32.
        scheme: such as ``"int4-asym-g128"``.
        pad: grow the tensor with zeros to whole blocks when they do not divide it (the padding is
            counted in ``nbytes`` and removed by ``dequantize``).
        rounding: ``nearest`` (half to even), or ``stochastic``: up or down at random, so that the
            expected x̂ is x wherever nothing is clipped.
        seed: of the random numbers of stochastic rounding; the same seed gives the same codes, for
            NumPy and torch alike. None takes a new one each time.

    Raises: QlabError for an unknown scheme, blocks that do not divide the shape (unless ``pad``),
        NaN or infinity (with its position), a float64 beyond the range of float32.

    Chapter: The mathematics of quantization.
    """
    scheme = Scheme.parse(scheme)
    if isinstance(scheme.format, LearnedFormat):
        from qlab.core.codebook_tensor import quantize_codebook

        if rounding != "nearest":
            raise QlabError(f"scheme '{scheme}' has no stochastic rounding: use rounding='nearest'")
        return quantize_codebook(x, scheme, pad=pad, seed=seed or 0)
    x32 = cast_to_float32(x)
    shape = tuple(int(s) for s in x.shape)
    xp = namespace(x32)
    if not shape:
        x32 = xp.reshape(x32, (1,))
    whole = whole_blocks(x32, scheme, pad)
    block = scheme.granularity.block_shape(tuple(whole.shape))
    minimum, maximum = block_range(whole, block)
    # NaN and infinity survive the minimum and maximum of their block, so this is the whole check.
    if not bool(xp.all(xp.isfinite(minimum) & xp.isfinite(maximum))):
        check_finite(x32, "x", x)
    scale, zero_point = scales.fit(minimum, maximum, scheme)
    tensor_scale = None
    if isinstance(scheme.format, BinaryFormat):
        scale = scales.mean_magnitude(whole, block)
    elif scheme.has_tensor_scale and isinstance(scheme.format, FloatFormat):
        amax = xp.maximum(xp.abs(minimum), xp.abs(maximum))
        tensor_scale = scales.tensor_scale_of(amax, 448.0 * scheme.format.max)
    return from_params(
        whole,
        scale,
        zero_point,
        scheme,
        shape=shape,
        dtype=dtype_name(x),
        tensor_scale=tensor_scale,
        rounding=rounding,
        seed=seed,
    )


def from_params(
    x32: Array,
    scale: Array,
    zero_point: Array | None,
    scheme: Scheme,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
    tensor_scale: Array | None = None,
    rounding: str = "nearest",
    seed: int | None = 0,
) -> QTensor:
    """Round ``x32`` (float32, whole blocks) to nearest with the given parameters.

    Scales are first rounded to the dtype in which they are stored (``scales.store``), so that the
    codes are the nearest ones for what ``dequantize`` will use. ``scale`` is the real one, the
    share of ``tensor_scale`` included. ``rounding`` and ``seed`` as in ``quantize``.
    """
    xp = namespace(x32)
    fmt = scheme.format
    block = scheme.granularity.block_shape(tuple(x32.shape))
    stored, tensor_scale = scales.store(scale, scheme, tensor_scale)
    if isinstance(fmt, IntFormat):
        factor = scales.used(stored, tensor_scale)
    else:
        factor = scales.inverse(stored, tensor_scale)
    source = generator(rounding, seed)

    def encode(part: gran.Piece) -> Array:
        rows, which, inside = part
        piece = x32[rows, ...]
        noise = draw(source, piece)
        if noise is not None:
            noise, _ = gran.to_blocks(noise, inside)
        blocks, _ = gran.to_blocks(piece, inside)
        f = gran.expand(factor[which, ...], inside)
        if isinstance(fmt, IntFormat):
            zero = None if zero_point is None else gran.expand(zero_point[which, ...], inside)
            codes = affine_quantize(blocks, f, zero, fmt, scheme.symmetric, scheme.full, noise)
        elif isinstance(fmt, FloatFormat):
            codes = fmt.encode(blocks * f, "saturate", noise=noise)
        else:
            codes = fmt.encode(blocks * f, noise=noise)
        return _pack(xp.reshape(codes, tuple(piece.shape)), scheme)

    # A piece at a time, so that what lies between x and the packed codes stays in the cache.
    # Noise is drawn in the order of the pieces, so then they are worked on in order.
    pieces = gran.row_chunks(tuple(x32.shape), block)
    parts = each(encode, pieces, x32) if source is None else [encode(p) for p in pieces]
    packed = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
    shape = tuple(x32.shape) if shape is None else shape
    return QTensor(packed, stored, zero_point, scheme, shape, dtype, tensor_scale)


def from_codes(
    codes: Array,
    scale: Array,
    zero_point: Array | None,
    scheme: Scheme,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
    tensor_scale: Array | None = None,
) -> QTensor:
    """Pack codes (in the format's range, whole blocks) that a method has chosen.

    ``scale`` and ``tensor_scale`` as they are stored, which ``scales.store`` gives.
    """
    return QTensor(
        _pack(codes, scheme),
        scale,
        zero_point,
        scheme,
        tuple(codes.shape) if shape is None else shape,
        dtype,
        tensor_scale,
    )


def assemble(
    packed: Array,
    scale: Array,
    zero_point: Array | None,
    scheme: Scheme,
    shape: tuple[int, ...],
    dtype: str,
    tensor_scale: Array | None = None,
) -> QTensor:
    """The QTensor with these parts, or the CodebookTensor where the scheme has a learned format."""
    kind = QTensor
    if isinstance(scheme.format, LearnedFormat):
        from qlab.core.codebook_tensor import CodebookTensor

        kind = CodebookTensor
    return kind(packed, scale, zero_point, scheme, shape, dtype, tensor_scale)


def _pack(codes: Array, scheme: Scheme) -> Array:
    return pack(scheme.format.to_stored(codes), scheme.format.bits)


def block_range(x: Array, block: tuple[int, ...]) -> tuple[Array, Array]:
    """Minimum and maximum of each block, (n0, n1, ...)."""
    xp = namespace(x)
    blocks, axes = gran.to_blocks(x, block)
    if 0 in blocks.shape:
        empty = xp.zeros(tuple(blocks.shape[::2]), dtype=xp.float32, device=x.device)
        return empty, empty
    return xp.min(blocks, axis=axes), xp.max(blocks, axis=axes)


def whole_blocks(x: Array, scheme: Scheme, pad: bool) -> Array:
    """``x`` if whole blocks fill it; else, with ``pad``, grown with zeros until they do.

    Raises: QlabError if blocks do not divide the shape and ``pad`` is false.
    """
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
