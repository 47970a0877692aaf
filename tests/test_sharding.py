"""Cut a quantized weight for several workers: nothing changes but the place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core.parts import parts_of
from qlab.errors import QlabError
from qlab.sharding import cuts, join, smallest_piece, split

SCHEMES = (
    "int4-g32", "int4-asym-g32", "int3-g64", "int8-channel", "int4-channel", "int5-asym-channel",
    "nf4-g64", "int4-tensor", "int4-channel1", "ternary-g64", "fp8_e4m3-channel", "int4-b16x32",
    "mxfp4", "nvfp4", "int2-full-g16-sfp16",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    rows=st.integers(1, 6),
    columns=st.integers(1, 5),
    workers=st.integers(1, 5),
    by=st.sampled_from(["rows", "columns"]),
    seed=st.integers(0, 2**20),
)
def test_pieces_are_parts_of_the_whole(scheme, rows, columns, workers, by, seed):
    w = torch.randn(16 * rows, 64 * columns, generator=torch.Generator().manual_seed(seed))
    w[0], w[-1, -1] = 0, 1e4  # a row of zeros, an outlier
    q = qlab.quantize(w, scheme)
    length = w.shape[0 if by == "rows" else 1]
    if length // smallest_piece(q, by) < workers:
        with pytest.raises(QlabError, match="too few"):
            split(q, workers, by)
        return
    pieces = split(q, workers, by)
    ends, whole = cuts(q, workers, by), q.dequantize()
    for piece, begin, end in zip(pieces, ends, ends[1:], strict=False):
        part = whole[begin:end] if by == "rows" else whole[:, begin:end]
        assert torch.equal(piece.dequantize(), part) and part.numel() > 0
    again = join(pieces, by)
    assert all(torch.equal(a, parts_of(again)[k]) for k, a in parts_of(q).items())
    assert again.shape == q.shape
    # Shares are even: they differ by one piece at most, and by what no whole piece holds.
    sizes = np.diff(ends)
    assert sizes.max() - sizes.min() < 2 * smallest_piece(q, by)


@pytest.mark.oracle("sharding tensor-parallel", "torch.distributed", "the same sums and outputs")
def test_two_processes_multiply_as_one(tmp_path):
    """Real workers: all_gather after rows, all_reduce after columns."""
    torch.multiprocessing.spawn(worker, args=(str(tmp_path / "meet"),), nprocs=2)


def worker(rank, meet):
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(48, 128, generator=g), torch.randn(5, 128, generator=g)
    q = qlab.quantize(w, "int4-asym-g32")
    expected = x @ q.dequantize().T
    mine = x @ split(q, 2, "rows")[rank].dequantize().T
    parts = [torch.empty_like(mine) for _ in range(2)]
    distributed.all_gather(parts, mine)
    # A product of fewer rows may sum in another order.
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-4)
    begin, end = cuts(q, 2, "columns")[rank : rank + 2]
    y = x[:, begin:end] @ split(q, 2, "columns")[rank].dequantize().T
    distributed.all_reduce(y)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    distributed.destroy_process_group()


def test_bad_input():
    w = torch.randn(8, 64)
    for q, arguments, says in (
        (
            qlab.quantize(w, "int4-g32"),
            (3, "columns"),
            "2 whole blocks of 32 in 'int4-g32', too few",
        ),
        (qlab.quantize(w, "int4-g32"), (2, "layers"), "rows and columns"),
        (qlab.quantize(w, "int4-g32"), (0, "rows"), "take a matrix"),
        (qlab.quantize(w[0], "int4-g32"), (2, "rows"), "take a matrix"),
        (qlab.quantize(w[:, :40], "int4-g32", pad=True), (2, "rows"), "is padded"),
    ):
        with pytest.raises(QlabError, match=says):
            split(q, *arguments)
    with pytest.raises(QlabError, match="one scheme"):
        join([])
