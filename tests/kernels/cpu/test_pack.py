"""Packing: the bytes of the kernel's order, what falls back, and what is refused."""

import warnings

import numpy as np
import pytest
import torch

import qlab
import qlab.kernels.cpu.linear
from qlab.errors import QlabError
from qlab.gguf.blocks import block_type
from qlab.kernels.cpu import pack as packing
from qlab.kernels.cpu.kinds import HEADER, Kind
from qlab.kernels.cpu.pack import pack, pack_gguf
from tests.kernels.cpu.cases import CASES, matrix, quantized


def test_a_load_holds_four_inputs_of_sixteen_rows():
    """Counted by hand: byte 4 r + i of a register belongs to row r and input i."""
    codes = np.arange(16 * 32).reshape(16, 32) % 16 - 8
    q = qlab.core.from_codes(
        codes.astype(np.int8), np.ones((16, 1), np.float32), None,
        qlab.Scheme.parse("int4-full-g32"),
    )  # fmt: skip
    tile = pack(q).buffer[HEADER:]
    for row in range(16):
        for column in range(32):
            register, lane = column // 4, 4 * row + column % 4
            byte = tile[register // 2 * 64 + lane]
            assert (byte >> 4 * (register % 2)) & 15 == codes[row, column] + 8


@pytest.mark.parametrize(("scheme", "how", "kind"), CASES)
def test_the_bytes_are_those_of_the_bits(scheme, how, kind):
    packed = pack(quantized(scheme, 32, 256), how)
    bits = {"CODEBOOK4": 4, "INT8_WEIGHT": 8, "INT8_CHANNEL": 8}.get(kind) or int(kind[3])
    assert packed.buffer.ctypes.data % 64 == 0 and packed.buffer.dtype == np.uint8
    codes = 32 * 256 * bits // 8
    assert codes < packed.nbytes <= codes + HEADER + 32 * 256 // 8 * 8
    assert packed.bits_per_weight == packed.nbytes * 8 / (32 * 256)


@pytest.mark.parametrize(
    ("name", "bits"), [("Q4_0", 4.5), ("Q8_0", 8.5), ("Q6_K", 6.5625), ("Q4_K", 4.625)]
)
def test_bits_of_gguf_types(name, bits):
    """As in the file; Q4_K's 6-bit scales take a byte each here, 1/8 of a bit more."""
    found = block_type(name)
    w = matrix(64, 1024)
    with np.errstate(all="ignore"):  # of the row of zeros
        data = found.encode(w.reshape(64, -1, found.block_size), None).reshape(64, -1)
    packed = pack_gguf(data, name, 1024)
    assert (packed.nbytes - HEADER) * 8 / w.size == bits


@pytest.mark.parametrize("scheme", ["fp8_e4m3-channel", "int4-g16", "int4-channel1", "kmeans4-g64"])
def test_a_scheme_without_a_kernel_falls_back_with_one_warning(scheme, monkeypatch):
    monkeypatch.setattr(packing, "_warned", set())
    q = qlab.quantize(matrix(20, 64), scheme)
    with pytest.warns(UserWarning, match=f"no kernel for {scheme}"):
        packed = pack(q)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(q)
    assert packed.kind is Kind.F32
    assert np.array_equal(
        qlab.kernels.cpu.linear.matvec(packed, np.eye(64)[5]), np.asarray(q.dequantize())[:, 5]
    )


def test_a_gguf_type_without_a_kernel_falls_back(monkeypatch):
    monkeypatch.setattr(packing, "_warned", set())
    found = block_type("TQ1_0")
    data = found.encode(matrix(16, 256)[:7].reshape(7, 1, 256), None).reshape(7, -1)
    with pytest.warns(UserWarning, match="GGUF's TQ1_0"):
        assert pack_gguf(data, "TQ1_0", 256).kind is Kind.F32


def test_torch_and_numpy_pack_to_the_same_bytes():
    w = matrix(20, 64)
    for scheme in ("int4-asym-g32", "nf4-g32"):
        one = pack(qlab.quantize(w, scheme))
        other = pack(qlab.quantize(torch.from_numpy(w), scheme))
        assert np.array_equal(one.buffer, other.buffer)
    half = torch.from_numpy(w).bfloat16()
    assert pack(half).kind is Kind.BF16 and pack(half.half()).kind is Kind.F16


def test_casts_are_packed_as_they_are():
    w = matrix(20, 64)
    for scheme, kind in (("bf16", Kind.BF16), ("fp16", Kind.F16), ("fp32", Kind.F32)):
        q = qlab.quantize(w, scheme)
        packed = pack(q)
        assert packed.kind is kind
        got = qlab.kernels.cpu.linear.matvec(packed, np.eye(64)[7])
        assert np.array_equal(got, np.asarray(q.dequantize())[:, 7])


def test_bad_input_is_named():
    q = quantized("int4-g32", 20, 64)
    with pytest.raises(QlabError, match="inputs='int8' is unknown"):
        pack(q, "int8")
    with pytest.raises(QlabError, match="needs a matrix, got shape"):
        pack(np.zeros(5))
    with pytest.raises(QlabError, match="W8A8 needs 'int8-channel'"):
        pack(q, "token")
    with pytest.raises(QlabError, match="takes 18 bytes"):
        pack_gguf(np.zeros((2, 17), np.uint8), "Q4_0", 32)
    with pytest.raises(QlabError, match="blocks of 32"):
        pack_gguf(np.zeros((2, 18), np.uint8), "Q4_0", 33)
