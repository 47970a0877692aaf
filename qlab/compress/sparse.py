"""SparseTensor: the weights that stay, and where they stood.

Two layouts, and both cost one bit a weight for the places:

    bitmask   a bit for each weight, 1 where it stays; then the weights that stay, row by row.
              Where rows keep different numbers of weights, a reader also needs to know where each
              begins: an int32 a row.
    2:4       of each 4 neighbors 2 stay; an index of 2 bits for each of them. This is what sparse
              tensor cores of NVIDIA read. Groups with fewer than 2 store zeros.

Values are numbers, or codes of a scheme: then the scales and zero points of the scheme are kept as
they are.

In the indices i0 < i1 of a group the lower two bits of a nibble are i0, the upper two i1; nibbles
are packed from the lowest bits on, so four of them are one int16 of CUTLASS's metadata (before
CUTLASS reorders it for its threads).

Source: Mishra et al. 2021 (arXiv 2104.08378), section 3; the choice of indices where fewer than two
weights stay is that of ``torch.sparse``. Chapter: Pruning, low rank, distillation: what
quantization is combined with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qlab.core import QTensor, pack, unpack
from qlab.core._array import to_float32
from qlab.core.integers import IntFormat
from qlab.core.qtensor import assemble
from qlab.errors import QlabError

LAYOUTS = ("bitmask", "2:4")


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """A matrix (rows, columns) most of whose elements may be zero. Immutable.

    Attributes:
        layout: ``bitmask`` or ``2:4``.
        places: uint8 (rows, bytes a row): bits, or pairs of indices of 2 bits.
        values: what stays, in the order of rows: a float tensor, or uint8 packed codes.
        shape: (rows, columns).
        count: how many values there are; with ``2:4`` half of the elements, zeros among them.
        even: whether each row keeps the same number; if not, a bitmask needs offsets.
        codes_of: None for numbers; else a QTensor without codes, whose scheme, scale and zero point
            belong to the values.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """

    layout: str
    places: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]
    count: int
    even: bool
    codes_of: QTensor | None = None

    @property
    def place_bytes(self) -> int:
        """Bytes that say where the values stood."""
        offsets = 0 if self.even or self.layout == "2:4" else 4 * self.shape[0]
        return int(self.places.numel()) + offsets

    @property
    def nbytes(self) -> int:
        """Bytes of values, places, and the parameters of the codes."""
        values = self.values.numel() * self.values.element_size()
        parameters = 0 if self.codes_of is None else self.codes_of.nbytes
        return int(values + self.place_bytes + parameters)

    @property
    def bits_per_weight(self) -> float:
        """Bits for each element of the matrix, zeros included."""
        return self.nbytes * 8 / (self.shape[0] * self.shape[1])

    def restore(self) -> torch.Tensor | QTensor:
        """The matrix, or the QTensor, that ``to_sparse`` was given: every bit of it."""
        rows, columns = self.shape
        if self.codes_of is None:
            return _scatter(self, self.values, torch.zeros((), dtype=self.values.dtype))
        q, bits = self.codes_of, self.codes_of.scheme.format.bits
        kept = unpack(self.values, bits, self.count)
        stored = _scatter(self, kept, _stored_zero(q, (rows, columns)))
        return assemble(
            pack(stored, bits), q.scale, q.zero_point, q.scheme, q.shape, q.dtype, q.tensor_scale
        )

    def __repr__(self) -> str:
        return (
            f"SparseTensor({self.layout}, {self.shape}, {self.bits_per_weight:.3f} bits a weight)"
        )


def to_sparse(x: torch.Tensor | QTensor, layout: str = "bitmask") -> SparseTensor:
    """Store what is not zero.

    Args:
        x: a float matrix, or a QTensor of one whose scheme has a code for zero; NaN is refused.
        layout: ``bitmask`` for any zeros, ``2:4`` where no 4 neighbors hold more than 2.

    Negative zeros come back as zeros. Of a QTensor, weights whose code stands for zero are left
    out, whether pruning or rounding has made them so.

    Raises: QlabError for another layout, a group that breaks 2:4, a QTensor that is padded or has
        no code for zero.

    Chapter: Pruning, low rank, distillation: what quantization is combined with.
    """
    if layout not in LAYOUTS:
        raise QlabError(f"unknown layout '{layout}': choose one of {', '.join(LAYOUTS)}")
    if len(x.shape) != 2:
        raise QlabError(f"to_sparse takes a matrix, got shape {tuple(x.shape)}")
    shape = (int(x.shape[0]), int(x.shape[1]))
    empty, bits = None, 0
    if isinstance(x, QTensor):
        fmt = x.scheme.format
        bits, zero = fmt.bits, _stored_zero(x, shape)
        stored = unpack(x.packed, bits, shape[1])
        stays = stored != zero
        if not isinstance(fmt, IntFormat):  # some have a negative zero too
            stays = fmt.decode(fmt.from_stored(stored)) != 0
            stored = torch.where(stays, stored, zero)
        empty = assemble(
            x.packed[:0], x.scale, x.zero_point, x.scheme, x.shape, x.dtype, x.tensor_scale
        )
    else:
        to_float32(x.detach(), "x")  # refuses NaN and infinity
        stored, stays = x.detach(), x.detach() != 0
    if layout == "2:4":
        first, second = _pairs(stays)
        # i0 and i1 side by side, each with 2 bits: the nibble is i0 + 4 · i1.
        indices = torch.stack([first, second], dim=-1)
        groups = stored.reshape(shape[0], -1, 4)
        values = groups.gather(-1, indices.long()).reshape(shape[0], -1)
        places = pack(indices.reshape(shape[0], -1).to(torch.uint8), 2)
        even = True
    else:
        values, places = stored[stays], pack(stays.to(torch.uint8), 1)
        kept = stays.sum(dim=1)
        even = bool((kept == kept[:1]).all())
    count = values.numel()
    if empty is not None:
        values = pack(values.reshape(-1), bits)
    return SparseTensor(layout, places, values, shape, count, even, empty)


def _pairs(stays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices i0 < i1 of two elements of each group of 4 that hold all that stays.

    stays: bool (rows, columns). Returns: int64 (rows, columns / 4), twice.
    """
    rows, columns = stays.shape
    if columns % 4:
        raise QlabError(f"2:4 needs rows of a multiple of 4 elements, got {columns}")
    groups = stays.reshape(rows, columns // 4, 4)
    many = groups.sum(dim=-1) > 2
    if bool(many.any()):
        row, group = (int(i) for i in many.nonzero()[0])
        raise QlabError(
            f"row {row} has more than 2 values in columns {4 * group} to {4 * group + 3}: prune "
            "with pattern='2:4', or use layout 'bitmask'"
        )
    m0, m1, _, m3 = groups.unbind(-1)
    first = torch.where(m0, 0, torch.where(m1, 1, 2))
    # The second is 1 only beside 0. Where nothing else stays it is the third element, or the last.
    last = torch.where(m3 | ~(m0 | m1), 3, 2)
    return first, torch.where(m0 & m1, 1, last)


def _scatter(s: SparseTensor, values: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """The matrix with ``values`` at their places; elsewhere ``zero``, one or (rows, columns)."""
    rows, columns = s.shape
    full = zero.expand(rows, columns).clone()
    if s.layout == "2:4":
        indices = unpack(s.places, 2, columns // 2).reshape(rows, -1, 2).long()
        groups = full.reshape(rows, columns // 4, 4)
        return groups.scatter(-1, indices, values.reshape(rows, -1, 2)).reshape(rows, columns)
    full[unpack(s.places, 1, columns).bool()] = values
    return full


def _stored_zero(q: QTensor, shape: tuple[int, int]) -> torch.Tensor:
    """The stored code of zero of each element: uint8 (rows, columns)."""
    fmt = q.scheme.format
    gran = q.scheme.granularity
    if gran.padded_shape(shape) != shape:
        raise QlabError(f"scheme '{q.scheme}' pads shape {shape}: use blocks that divide it")
    if isinstance(fmt, IntFormat):
        if q.zero_point is None:
            zero = torch.zeros(shape, dtype=torch.int32)
        elif "float" in str(q.zero_point.dtype):
            raise QlabError("real zero points give zero no code: quantize with integer ones")
        else:
            block = gran.block_shape(shape)
            zero = q.zero_point.cpu().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        return torch.as_tensor(fmt.to_stored(zero), dtype=torch.uint8)
    code = fmt.encode(torch.zeros(1))
    if float(fmt.decode(code)) != 0:
        raise QlabError(f"scheme '{q.scheme}' has no code for zero: use an integer format or nf4")
    return torch.as_tensor(fmt.to_stored(code), dtype=torch.uint8).expand(shape)
