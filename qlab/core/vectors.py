"""Vector quantization: one code for several weights at once.

The weights of a row are cut into sub-vectors of ``dim`` neighbors. A code of ``bits`` bits names
one of 2^bits sub-vectors of a codebook: bits / dim bits a weight.

- ``VectorQuantizer``: one codebook for all sub-vectors.
- ``ProductQuantizer``: one codebook for each place in the row, as for vectors in a database.

Sources: Linde, Buzo and Gray 1980 (An algorithm for vector quantizer design); Jégou, Douze and
Schmid 2011 (Product quantization for nearest neighbor search, IEEE TPAMI 33). Chapter: Beyond the
straight line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlab.core._array import Array, check_finite, namespace, to_numpy
from qlab.core.lloyd import assign, lloyd
from qlab.errors import QlabError


@dataclass(frozen=True)
class VectorQuantizer:
    """A codebook of sub-vectors, found by Lloyd's algorithm.

    Attributes:
        bits: of a code, 1 to 16.
        dim: weights a code stands for.
        iterations: of Lloyd's algorithm.
        seed: of its start.
        codebook: float64 (2**bits, dim) once fitted, else None.

    Chapter: Beyond the straight line.
    """

    bits: int = 8
    dim: int = 4
    iterations: int = 25
    seed: int = 0
    codebook: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check(self.bits, self.dim)

    def fit(self, x: Array) -> VectorQuantizer:
        """The same quantizer with a codebook for the sub-vectors of ``x`` (..., m · dim)."""
        points = sub_vectors(x, self.dim).reshape(-1, self.dim)
        found = lloyd(points, 1 << self.bits, seed=self.seed, iterations=self.iterations)
        return VectorQuantizer(self.bits, self.dim, self.iterations, self.seed, found.centroids)

    def encode(self, x: Array) -> np.ndarray:
        """Codes, int64 (..., m), of ``x`` (..., m · dim)."""
        cut = sub_vectors(x, self.dim)
        codes, _ = assign(cut.reshape(-1, self.dim), _fitted(self.codebook))
        return codes.reshape(cut.shape[:-1])

    def decode(self, codes: Array) -> Array:
        """x̂, float32 (..., m · dim), of codes (..., m). NumPy or torch, as the codes."""
        return decode_vectors(codes, _fitted(self.codebook)[None])


@dataclass(frozen=True)
class ProductQuantizer:
    """A codebook for each place in the row.

    Attributes:
        bits: of a code, 1 to 16.
        dim: weights a code stands for.
        iterations: of Lloyd's algorithm.
        seed: of its start.
        codebooks: float64 (m, 2**bits, dim) once fitted, else None.

    Chapter: Beyond the straight line.
    """

    bits: int = 8
    dim: int = 4
    iterations: int = 25
    seed: int = 0
    codebooks: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check(self.bits, self.dim)

    def fit(self, x: Array) -> ProductQuantizer:
        """The same quantizer with codebooks for the rows of ``x`` (n, m · dim)."""
        cut = sub_vectors(x, self.dim)
        cut = cut.reshape(-1, *cut.shape[-2:])  # (n, m, dim)
        k = 1 << self.bits
        found = [
            lloyd(cut[:, j], k, seed=self.seed + j, iterations=self.iterations).centroids
            for j in range(cut.shape[1])
        ]
        return ProductQuantizer(self.bits, self.dim, self.iterations, self.seed, np.stack(found))

    def encode(self, x: Array) -> np.ndarray:
        """Codes, int64 (..., m), of ``x`` (..., m · dim)."""
        books = _fitted(self.codebooks)
        cut = sub_vectors(x, self.dim)
        if cut.shape[-2] != len(books):
            raise QlabError(
                f"rows of {cut.shape[-2] * self.dim} numbers for codebooks fitted to rows of "
                f"{len(books) * self.dim}"
            )
        rows = cut.reshape(-1, len(books), self.dim)
        codes = np.stack([assign(rows[:, j], book)[0] for j, book in enumerate(books)], axis=1)
        return codes.reshape(cut.shape[:-1])

    def decode(self, codes: Array) -> Array:
        """x̂, float32 (..., m · dim), of codes (..., m). NumPy or torch, as the codes."""
        return decode_vectors(codes, _fitted(self.codebooks))


def sub_vectors(x: Array, dim: int) -> np.ndarray:
    """``x`` (..., m · dim) as float64 (..., m, dim).

    Raises: QlabError if ``dim`` does not divide the last axis, or for NaN or infinity.
    """
    check_finite(x, "x")
    values = to_numpy(x).astype(np.float64)
    last = values.shape[-1] if values.ndim else 1
    if values.ndim == 0 or last % dim:
        raise QlabError(
            f"sub-vectors of {dim} do not divide the last axis of shape {values.shape}: "
            f"choose a size that divides {last}"
        )
    return values.reshape(*values.shape[:-1], last // dim, dim)


def decode_vectors(codes: Array, books: Array) -> Array:
    """Look codes (..., m) up in books (m, k, dim), or in one book (1, k, dim): (..., m · dim)."""
    xp = namespace(codes)
    count, k, dim = books.shape
    flat = xp.astype(xp.asarray(books, device=codes.device), xp.float32)
    flat = xp.reshape(flat, (count * k, dim))
    index = xp.astype(codes, xp.int64)
    if count > 1:
        index = index + xp.arange(count, dtype=xp.int64, device=codes.device) * k
    found = xp.take(flat, xp.reshape(index, (-1,)), axis=0)
    return xp.reshape(found, (*codes.shape[:-1], codes.shape[-1] * dim))


def _check(bits: int, dim: int) -> None:
    if not 1 <= bits <= 16:
        raise QlabError(f"codes of {bits} bits: a vector codebook has 1 to 16")
    if dim < 1:
        raise QlabError(f"sub-vectors of {dim} weights: at least 1")


def _fitted(codebook: np.ndarray | None) -> np.ndarray:
    if codebook is None:
        raise QlabError("this quantizer has no codebook yet: call fit(x) first")
    return codebook
