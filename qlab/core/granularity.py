"""Granularity: which elements of a tensor share their quantization parameters.

Every granularity is one idea: cut the tensor into equal blocks, one set of parameters a block. For
a weight of shape (out_features, in_features):

    tensor    one block, the whole tensor
    channel   (1, in_features): one block an output channel
    token     the same blocks, of an activation (..., features): one a token
    g128      (1, 128): 128 consecutive inputs of one output channel
    b16x32    (16, 32): a rectangle
    global    one block, and all tensors of a model share its parameters (``qlab.core.shared``)

Chapter: Granularity.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qlab.core._array import Array, namespace
from qlab.errors import QlabError

Shape = tuple[int, ...]
# Rows of a tensor, rows of its parameters, and the shape of a block inside.
Piece = tuple[slice, slice, Shape]


@dataclass(frozen=True)
class Granularity:
    """kind: ``tensor``, ``channel``, ``token``, ``group``, ``block`` or ``global``.

    Attributes:
        axis: for ``channel``, the axis that keeps its own parameters (0: output channels).
        size: for ``group`` (g,), for ``block`` (rows, columns).
    """

    kind: str
    axis: int = 0
    size: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        if self.kind == "group":
            return f"g{self.size[0]}"
        if self.kind == "block":
            return f"b{self.size[0]}x{self.size[1]}"
        if self.kind == "channel" and self.axis != 0:
            return f"channel{self.axis}"
        return self.kind

    @staticmethod
    def parse(word: str) -> Granularity | None:
        """The granularity that a word of a scheme names, or None if it names none."""
        if word in ("tensor", "channel", "token", "global"):
            return Granularity(word)
        if m := re.fullmatch(r"channel(\d)", word):
            return Granularity("channel", axis=int(m[1]))
        if m := re.fullmatch(r"g(\d+)", word):
            if int(m[1]) == 0:
                raise QlabError("group size 0: a group holds at least 1 element (usual: 32, 128)")
            return Granularity("group", size=(int(m[1]),))
        if m := re.fullmatch(r"b(\d+)x(\d+)", word):
            if int(m[1]) == 0 or int(m[2]) == 0:
                raise QlabError(f"block '{word}': both sides are at least 1")
            return Granularity("block", size=(int(m[1]), int(m[2])))
        return None

    def block_shape(self, shape: Shape) -> Shape:
        """The shape of one block of a tensor of this shape (same number of axes).

        Raises: QlabError if the tensor has too few axes for this granularity.
        """
        ndim = len(shape)
        if self.kind in ("tensor", "global"):
            return shape
        if ndim == 0:
            raise QlabError(f"granularity '{self.name}' needs an axis; the tensor is a scalar")
        if self.kind == "token":
            return (1,) * (ndim - 1) + shape[-1:]
        if self.kind == "channel":
            if self.axis >= ndim:
                raise QlabError(f"granularity '{self.name}': the tensor has only {ndim} axes")
            return tuple(1 if i == self.axis else s for i, s in enumerate(shape))
        if self.kind == "group":
            return (1,) * (ndim - 1) + self.size
        if ndim < 2:
            raise QlabError(f"granularity '{self.name}' needs 2 axes; the tensor has {ndim}")
        return (1,) * (ndim - 2) + self.size

    def padded_shape(self, shape: Shape) -> Shape:
        """``shape`` grown to whole blocks."""
        block = self.block_shape(shape)
        return tuple(-(-s // b) * b if b else s for s, b in zip(shape, block, strict=True))

    def check_divides(self, shape: Shape) -> None:
        """Raise QlabError unless blocks tile the shape exactly."""
        block = self.block_shape(shape)
        for axis, (s, b) in enumerate(zip(shape, block, strict=True)):
            if b and s % b:
                divisors = [d for d in range(min(b, s), 0, -1) if s % d == 0][:1]
                raise QlabError(
                    f"'{self.name}' does not divide axis {axis} of shape {tuple(shape)} "
                    f"({s} = {s // b} x {b} + {s % b}): choose a size that divides {s} "
                    f"(such as {divisors[0]}), or pass pad=True"
                )


def to_blocks(x: Array, block: Shape) -> tuple[Array, tuple[int, ...]]:
    """View ``x`` (s0, s1, ...) as (n0, b0, n1, b1, ...), and the axes (1, 3, ...) of one block.

    A reduction over those axes gives one value a block.
    """
    xp = namespace(x)
    shape: list[int] = []
    for s, b in zip(x.shape, block, strict=True):
        shape += [s // b if b else 0, b]
    return xp.reshape(x, tuple(shape)), tuple(range(1, 2 * len(block), 2))


def expand(params: Array, block: Shape) -> Array:
    """View ``params`` (n0, n1, ...) as (n0, 1, n1, 1, ...), to broadcast against ``to_blocks``."""
    xp = namespace(params)
    shape: list[int] = []
    for n in params.shape:
        shape += [n, 1]
    return xp.reshape(params, tuple(shape))


# Elements that are worked on at a time: 1 MiB of float32, which stays in the cache of a core.
CHUNK = 1 << 18


def row_chunks(shape: Shape, block: Shape) -> list[Piece]:
    """Cut a tensor of whole blocks along its first axis into pieces of about ``CHUNK`` elements.

    Work on a piece at a time, and what is computed in between stays in the cache: quantizing a
    matrix of 4096 x 4096 took a fifth of the time that it took at once.

    Returns: for each piece its rows, the rows of the parameters that belong to it, and the shape of
        a block inside it. A piece holds whole blocks, or lies within one.
    """
    n, high = shape[0], block[0]
    if len(shape) < 2 or not high or math.prod(shape) <= CHUNK:
        return [(slice(0, n), slice(0, n // high if high else 0), block)]
    rows = max(1, CHUNK // math.prod(shape[1:]))
    if high <= rows:
        rows -= rows % high
        ends = [(i, min(i + rows, n)) for i in range(0, n, rows)]
        return [(slice(i, j), slice(i // high, j // high), block) for i, j in ends]
    pieces = []
    for top in range(0, n, high):
        for i in range(top, top + high, rows):
            j = min(i + rows, top + high)
            inside = (j - i, *block[1:])
            pieces.append((slice(i, j), slice(top // high, top // high + 1), inside))
    return pieces
