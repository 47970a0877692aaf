"""CodebookTensor: packed codes and the codebooks that were fitted to the tensor.

Chapter: Beyond the straight line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlab.core import granularity as gran
from qlab.core._array import Array, dtype_name, namespace, to_float32, to_numpy
from qlab.core.kmeans import Solver, kmeans_1d, kmeans_rows, nearest
from qlab.core.learned import LearnedFormat
from qlab.core.packing import pack, unpack
from qlab.core.qtensor import QTensor
from qlab.core.scheme import Scheme
from qlab.core.vectors import ProductQuantizer, VectorQuantizer, decode_vectors
from qlab.errors import QlabError

# Words of a scheme -> dtype of the entries of a codebook, their bytes, the largest.
_ENTRIES = {"sfp32": ("float32", 4, 3.4028234663852886e38), "sfp16": ("float16", 2, 65504.0)}
# Blocks of more values than this are searched on bins (kmeans_1d says what that can cost).
_EXACT, _BINS = 1 << 15, 1 << 13


@dataclass(frozen=True, eq=False, repr=False)
class CodebookTensor(QTensor):
    """A QTensor whose ``scale`` holds codebooks: x̂ = codebook[block, code]. Immutable.

    Attributes:
        packed: uint8 (..., bytes a row); codes packed along the last axis.
        scale: the codebooks, float (books, 2**bits, dim), in the order of the blocks.
        zero_point: None.
        scheme: a learned format, the granularity, the dtype of the codebooks.
        shape: the original shape.
        dtype: name of the original dtype; what ``dequantize`` returns.
    """

    @property
    def codebook(self) -> Array:
        """float (books, 2**bits, dim)."""
        return self.scale

    @property
    def codes(self) -> Array:
        """uint8, one a weight (kmeans) or one for ``dim`` weights (vq, pq)."""
        fmt = _learned(self.scheme)
        shape = self.scheme.granularity.padded_shape(self.shape or (1,))
        return unpack(self.packed, fmt.bits, shape[-1] // fmt.dim)

    def dequantize(self) -> Array:
        """x̂ in the original shape and dtype."""
        fmt = _learned(self.scheme)
        xp = namespace(self.packed)
        shape = self.shape or (1,)
        codes = self.codes
        if fmt.kind == "kmeans":
            block = self.scheme.granularity.block_shape(shape)
            blocks, _ = gran.to_blocks(codes, block)
            counts = tuple(int(n) for n in blocks.shape[::2])
            books = int(self.scale.shape[0])
            first = xp.arange(books, dtype=xp.int64, device=codes.device) * fmt.entries
            index = xp.astype(blocks, xp.int64) + gran.expand(xp.reshape(first, counts), block)
            table = xp.reshape(xp.astype(self.scale, xp.float32), (-1,))
            x = xp.reshape(xp.take(table, xp.reshape(index, (-1,)), axis=0), tuple(codes.shape))
        else:
            x = decode_vectors(codes, self.scale)
        x = x[tuple(slice(0, s) for s in shape)]
        return xp.astype(xp.reshape(x, self.shape), getattr(xp, self.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of codes and codebooks as stored."""
        codes = int(np.prod(tuple(self.packed.shape)))
        entries = int(np.prod(tuple(self.scale.shape)))
        return codes + entries * _ENTRIES[self.scheme.scale_word][1]


def quantize_codebook(
    x: Array,
    scheme: Scheme,
    *,
    weights: Array | None = None,
    pad: bool = False,
    solver: Solver = kmeans_rows,
    iterations: int = 25,
    seed: int = 0,
) -> CodebookTensor:
    """Fit the codebooks of a learned format to ``x``, and give each weight its nearest entry.

    Args:
        x: NumPy array or torch tensor of any floating dtype and shape.
        scheme: such as ``Scheme.parse("kmeans4-channel")``.
        weights: for kmeans, how much the squared error of each element counts; the shape of x.
        pad: grow the tensor with zeros to whole blocks. The zeros take part in the search.
        solver: what finds the centroids of sorted rows; ``kmeans_rows`` or a compiled twin.
        iterations, seed: of Lloyd's algorithm, for vq and pq.

    Raises: QlabError for blocks or sub-vectors that do not divide the shape, NaN or infinity, a
        granularity or a dtype of the codebook that the format does not have.

    Chapter: Beyond the straight line.
    """
    fmt = _learned(scheme)
    _check(scheme, fmt)
    shape = tuple(int(s) for s in x.shape)
    x32 = to_float32(x)
    xp = namespace(x32)
    values = to_numpy(x32).reshape(shape or (1,))
    if fmt.kind == "kmeans":
        mass = None if weights is None else to_numpy(weights).reshape(values.shape)
        books, codes = _kmeans(values, fmt, scheme, mass, pad, solver)
    else:
        books, codes = _vectors(values, fmt, scheme, iterations, seed)
    device = x32.device
    return CodebookTensor(
        pack(xp.asarray(codes.astype(np.uint8), device=device), fmt.bits),
        xp.asarray(books, device=device),
        None,
        scheme,
        shape,
        dtype_name(x),
    )


def _kmeans(
    x: np.ndarray,
    fmt: LearnedFormat,
    scheme: Scheme,
    weights: np.ndarray | None,
    pad: bool,
    solver: Solver,
) -> tuple[np.ndarray, np.ndarray]:
    if pad:
        x, weights = _grown(x, scheme), None if weights is None else _grown(weights, scheme)
    scheme.granularity.check_divides(x.shape)
    rows, order = _block_rows(x, scheme)
    count, n = rows.shape
    if rows.size == 0:
        return _stored(np.zeros((count, fmt.entries, 1)), scheme), np.zeros(x.shape, np.uint8)
    mass = np.ones_like(rows) if weights is None else _block_rows(weights, scheme)[0]
    if n > _EXACT:
        found = [
            kmeans_1d(r, fmt.entries, m, bins=_BINS, solver=solver)
            for r, m in zip(rows, mass, strict=True)
        ]
        centroids = np.stack([f.centroids for f in found])
    else:
        where = np.argsort(rows, axis=1, kind="stable")
        centroids, _ = solver(
            np.take_along_axis(rows, where, axis=1),
            fmt.entries,
            np.take_along_axis(mass, where, axis=1),
        )
    books = _stored(centroids[:, :, None], scheme)
    used = books[:, :, 0].astype(np.float64)
    codes = np.stack([nearest(r, c) for r, c in zip(rows, used, strict=True)])
    blocks, _ = gran.to_blocks(x, scheme.granularity.block_shape(x.shape))
    turned = codes.reshape([blocks.shape[i] for i in order])
    return books, turned.transpose(np.argsort(order)).reshape(x.shape)


def _block_rows(x: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, list[int]]:
    """The blocks as rows (blocks, elements), float64; and the order of axes that made them so."""
    blocks, inside = gran.to_blocks(x, scheme.granularity.block_shape(x.shape))
    order = [*range(0, blocks.ndim, 2), *inside]
    count = int(np.prod(blocks.shape[::2]))
    size = int(np.prod([blocks.shape[i] for i in inside]))
    return blocks.transpose(order).reshape(count, size).astype(np.float64), order


def _vectors(
    x: np.ndarray, fmt: LearnedFormat, scheme: Scheme, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if x.shape[-1] % fmt.dim:
        raise QlabError(
            f"format '{fmt.name}': sub-vectors of {fmt.dim} do not divide the last axis of shape "
            f"{x.shape}; choose a size that divides {x.shape[-1]}"
        )
    places = x.shape[-1] // fmt.dim
    if x.size == 0:
        books = np.zeros((1 if fmt.kind == "vq" else places, fmt.entries, fmt.dim))
        return _stored(books, scheme), np.zeros((*x.shape[:-1], places), np.uint8)
    if fmt.kind == "vq":
        vq = VectorQuantizer(fmt.bits, fmt.dim, iterations, seed).fit(x)
        stored = _stored(np.asarray(vq.codebook)[None], scheme)
        codes = VectorQuantizer(fmt.bits, fmt.dim, codebook=stored[0].astype(np.float64)).encode(x)
        return stored, codes
    pq = ProductQuantizer(fmt.bits, fmt.dim, iterations, seed).fit(x)
    stored = _stored(np.asarray(pq.codebooks), scheme)
    codes = ProductQuantizer(fmt.bits, fmt.dim, codebooks=stored.astype(np.float64)).encode(x)
    return stored, codes


def _stored(books: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Codebooks in the dtype in which they are kept, so that codes are the nearest for that."""
    dtype, _, largest = _ENTRIES[scheme.scale_word]
    return np.asarray(np.clip(books, -largest, largest), dtype=dtype)


def _grown(x: np.ndarray, scheme: Scheme) -> np.ndarray:
    target = scheme.granularity.padded_shape(x.shape)
    return np.pad(x, [(0, want - have) for have, want in zip(x.shape, target, strict=True)])


def _learned(scheme: Scheme) -> LearnedFormat:
    if not isinstance(scheme.format, LearnedFormat):
        raise QlabError(f"scheme '{scheme}' has no codebook to fit: use kmeans4, vq8x4 or pq8x4")
    return scheme.format


def _check(scheme: Scheme, fmt: LearnedFormat) -> None:
    if scheme.scale_word not in _ENTRIES:
        raise QlabError(f"scheme '{scheme}': a codebook is stored in one of {', '.join(_ENTRIES)}")
    if not scheme.symmetric:
        raise QlabError(f"scheme '{scheme}': a codebook has no zero point; drop 'asym'")
    kind = scheme.granularity.kind
    if kind == "global" or (fmt.kind != "kmeans" and kind != "tensor"):
        raise QlabError(
            f"scheme '{scheme}': {fmt.name} has one codebook a "
            f"{'block' if fmt.kind == 'kmeans' else 'tensor'}; use '{fmt.name}-tensor'"
        )
