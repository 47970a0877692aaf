"""SparseTensor: every bit comes back, and every byte is counted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.compress import Target, to_sparse
from qlab.compress.magnitude import magnitude
from qlab.errors import QlabError

seeds = st.integers(0, 2**31)


def sparse_matrix(seed, rows, columns, share, pattern=None):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return magnitude(w, None, Target.parse(None, pattern) if pattern else Target(share))


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    share=st.floats(0, 0.99),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_a_bitmask_gives_back_every_bit(seed, rows, columns, share, dtype):
    w = sparse_matrix(seed, rows, columns, share).to(dtype)
    s = to_sparse(w)
    assert torch.equal(s.restore(), w) and s.restore().dtype == dtype
    kept = int((w != 0).sum())
    even = len({int(n) for n in (w != 0).sum(1)}) == 1
    assert s.nbytes == kept * w.element_size() + rows * -(-columns // 8) + (0 if even else 4 * rows)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, rows=st.integers(1, 9), groups=st.integers(1, 9), kept=st.integers(0, 2))
def test_two_of_four_gives_back_every_bit(seed, rows, groups, kept):
    w = sparse_matrix(seed, rows, 4 * groups, 0, f"{max(kept, 1)}:4") * (kept > 0)
    s = to_sparse(w, "2:4")
    assert torch.equal(s.restore(), w)
    assert s.values.numel() == w.numel() // 2 and s.nbytes == 2 * w.numel() + rows * -(-groups // 2)


@pytest.mark.parametrize("layout", ["bitmask", "2:4"])
@pytest.mark.parametrize("scheme", [
    "int4-g16", "int4-asym-g16", "uint3-channel", "nf4-g16", "int8-tensor", "mxfp4", "nvfp4",
    "fp8_e4m3-channel", "ternary-channel", "int4-b4x16", "int3-g16-sfp16",
])  # fmt: skip
def test_codes_come_back_with_their_parameters(layout, scheme):
    w = sparse_matrix(0, 16, 64, 0, "2:4")
    w[3], w[4] = w[3].abs(), 0
    q = qlab.quantize(w, scheme)
    s = to_sparse(q, layout)
    back = s.restore()
    stays = q.dequantize() != 0
    assert torch.equal(back.codes[stays], q.codes[stays])
    assert torch.equal(back.dequantize(), q.dequantize())
    assert back.nbytes == q.nbytes and back.scheme == q.scheme
    # Codes for what stays, a bit for each weight, and the parameters of the dense tensor.
    parameters = q.nbytes - q.packed.numel()
    count = int(stays.sum()) if layout == "bitmask" else w.numel() // 2
    codes = -(-count * q.scheme.format.bits // 8)
    assert s.nbytes == codes + w.numel() // 8 + parameters + (64 if layout == "bitmask" else 0)


def test_the_bits_of_a_layer_are_those_of_the_formula():
    """b · (1 - s) + 1: 2:4 and a bitmask of half cost the same, and int4 in 2:4 is as int3."""
    w = sparse_matrix(0, 64, 128, 0, "2:4")
    q = qlab.quantize(w, "int4-g128-sfp16")
    assert to_sparse(q, "2:4").bits_per_weight == 3 + 16 / 128
    assert qlab.quantize(w, "int3-g128-sfp16").bits_per_weight == 3 + 16 / 128
    half = w.half()
    assert to_sparse(half).bits_per_weight == to_sparse(half, "2:4").bits_per_weight == 9


def test_special_values():
    w = torch.tensor([[0.0, -0.0, 1e-45, -1e38], [0, 0, 0, 0]])
    for layout in ("bitmask", "2:4"):
        back = to_sparse(w, layout).restore()
        assert torch.equal(back, w) and not torch.signbit(back[0, 0])
    assert to_sparse(torch.zeros(0, 8)).restore().shape == (0, 8)


@pytest.mark.parametrize(("make", "says"), [
    (lambda: to_sparse(torch.ones(2, 4), "2:4"), "row 0 has more than 2 values in columns 0 to 3"),
    (lambda: to_sparse(torch.zeros(2, 6), "2:4"), "multiple of 4"),
    (lambda: to_sparse(torch.ones(2, 4), "csr"), "unknown layout 'csr'"),
    (lambda: to_sparse(torch.ones(4)), "takes a matrix"),
    (lambda: to_sparse(torch.full((2, 4), float("nan"))), "nan at position"),
    (lambda: to_sparse(qlab.quantize(torch.ones(2, 16), "binary-g16")), "no code for zero"),
    (lambda: to_sparse(qlab.quantize(torch.ones(2, 20), "int4-g16", pad=True)), "pads shape"),
])  # fmt: skip
def test_bad_input_gets_one_clear_line(make, says):
    with pytest.raises(QlabError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
