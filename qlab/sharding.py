"""Tensor parallelism: a quantized weight cut in pieces, one a worker.

    by rows (outputs)     y = concat_i(x Ŵ_iᵀ)       every worker sees all of x
    by columns (inputs)   y = Σ_i x_i Ŵ_iᵀ           every worker sees its part of x

A cut may not go through a block that shares a scale, nor through a byte of packed codes. Then a
piece has the very codes and parameters of the whole, and its x̂ is that part of the whole's.

Source: Shoeybi et al. 2019 (arXiv 1909.08053), section 3: column- and row-parallel layers (named
after the transposed weight there). Chapter: Many machines: training and quantizing at scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from qlab.core import QTensor, Scheme
from qlab.core._array import namespace
from qlab.core.learned import LearnedFormat
from qlab.core.parts import DOUBLED, parts_of
from qlab.core.qtensor import assemble
from qlab.errors import QlabError

AXES = {"rows": 0, "columns": 1}


def cuts(q: QTensor, workers: int, by: str = "rows") -> tuple[int, ...]:
    """Where each piece begins along the axis, and its end: ``workers + 1`` places.

    Pieces differ by one block at most.

    Args:
        q: of a matrix (out_features, in_features).
        workers: pieces.
        by: ``rows`` or ``columns``.

    Raises: QlabError for a scheme whose scales do not belong to places (doubly quantized ones), a
        padded tensor, or too few whole blocks for all workers.

    Chapter: Many machines: training and quantizing at scale.
    """
    if by not in AXES:
        raise QlabError(f"cut by '{by}': there are rows and columns")
    if len(q.shape) != 2 or workers < 1:
        raise QlabError(f"{workers} pieces of shape {tuple(q.shape)}: take a matrix, and 1 or more")
    if isinstance(q.scheme.format, LearnedFormat) or any(p in parts_of(q) for p in DOUBLED):
        raise QlabError(
            f"scheme '{q.scheme}' has tables or scales of scales that do not belong to a place: "
            "cut the weight, then quantize the pieces"
        )
    if q.scheme.granularity.padded_shape(q.shape) != tuple(q.shape):
        raise QlabError(f"shape {tuple(q.shape)} is padded in '{q.scheme}': it has no even pieces")
    axis = AXES[by]
    length = q.shape[axis]
    step = smallest_piece(q, by)
    if length // step < workers:
        raise QlabError(
            f"{length} {by} are {length // step} whole blocks of {step} in '{q.scheme}', too few "
            f"for {workers} workers: cut by {'columns' if by == 'rows' else 'rows'}, or use a "
            "smaller group_size"
        )
    blocks, more = divmod(length // step, workers)
    ends = [0]
    for i in range(workers):
        ends.append(ends[-1] + step * (blocks + (i < more)))
    return (*ends[:-1], length)


def smallest_piece(q: QTensor, by: str) -> int:
    """Rows or columns that belong together: one scale's, and whole bytes of codes.

    A granularity of one scale for the axis (``tensor``, or ``channel`` by columns) may be cut
    anywhere: each piece takes a copy of that scale.

    Chapter: Many machines: training and quantizing at scale.
    """
    axis = AXES[by]
    block = q.scheme.granularity.block_shape(tuple(q.shape))[axis]
    step = 1 if one_scale(q.scheme, q.shape, axis) else block
    if by == "columns":  # codes are packed along a row: whole bytes only
        bits = q.scheme.format.bits
        while step * bits % 8:
            step *= 2
    return int(step)


def one_scale(scheme: Scheme, shape: tuple[int, ...], axis: int) -> bool:
    """Whether all places along the axis share a scale, however many they are.

    Groups and rectangles have a size of their own: one that fills the axis is still one block.
    """
    granularity = scheme.granularity
    fixed = granularity.kind in ("group", "block")
    return not fixed and granularity.block_shape(shape)[axis] == shape[axis]


def split(q: QTensor, workers: int, by: str = "rows") -> list[QTensor]:
    """The pieces of ``q``, each an ordinary QTensor with its codes and parameters as they are.

    Args, Raises: as ``cuts``.

    Chapter: Many machines: training and quantizing at scale.
    """
    ends = cuts(q, workers, by)
    axis, bits = AXES[by], q.scheme.format.bits
    pieces = []
    for begin, end in pairwise(ends):
        shape = (end - begin, q.shape[1]) if axis == 0 else (q.shape[0], end - begin)
        packed = (
            q.packed[begin:end, ...]
            if axis == 0
            else q.packed[:, begin * bits // 8 : -(-end * bits // 8)]
        )
        if one_scale(q.scheme, q.shape, axis):  # a copy
            part = slice(None)
        else:
            size = q.shape[axis] // q.scale.shape[axis]
            part = slice(begin // size, end // size)
        index = (part, slice(None)) if axis == 0 else (slice(None), part)
        zero = None if q.zero_point is None else q.zero_point[index]
        scale = q.scale[index]
        pieces.append(assemble(packed, scale, zero, q.scheme, shape, q.dtype, q.tensor_scale))
    return pieces


def join(pieces: Sequence[QTensor], by: str = "rows") -> QTensor:
    """The whole of which ``split`` made the pieces, in their order.

    Raises: QlabError without pieces, or for pieces of different schemes.

    Chapter: Many machines: training and quantizing at scale.
    """
    if not pieces or len({p.scheme for p in pieces}) > 1 or by not in AXES:
        raise QlabError("join needs pieces of one scheme, cut by rows or columns")
    axis, first = AXES[by], pieces[0]
    xp = namespace(first.packed)
    length = sum(p.shape[axis] for p in pieces)
    shape = (length, first.shape[1]) if axis == 0 else (first.shape[0], length)
    shared = one_scale(first.scheme, shape, axis)

    def whole(parts: list) -> object:  # type: ignore[type-arg]
        return parts[0] if shared else xp.concat(parts, axis=axis)

    packed = xp.concat([p.packed for p in pieces], axis=axis)
    scale = whole([p.scale for p in pieces])
    zero = None if first.zero_point is None else whole([p.zero_point for p in pieces])
    return assemble(packed, scale, zero, first.scheme, shape, first.dtype, first.tensor_scale)
