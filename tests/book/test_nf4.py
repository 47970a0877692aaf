"""What the chapter on NF4 says of bits, signs, optimality and files, on input of our own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import qlab
from qlab.core import Scheme, rate
from qlab.core.codebooks import NF4
from qlab.core.kmeans import kmeans_1d
from qlab.methods.nf4 import Nf4Options, nf4, to_bitsandbytes


def normal(seed, shape=(64, 1024)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_count_of_bits(size):
    w = normal(0, (256, 4096))
    q = nf4(w, None, Scheme.parse(f"nf4-g{size}"))
    assert q.bits_per_weight == pytest.approx(4 + 8 / size + 32 / (size * 256), abs=1e-4)


def test_the_cost_of_double_quantization_is_that_of_independent_errors():
    for seed in range(3):
        w = normal(seed)
        once = nf4(w, None, Scheme.parse("nf4-g64"), Nf4Options(double=False))
        twice = nf4(w, None, Scheme.parse("nf4-g64"))
        lost = qlab.sqnr(w, once) - qlab.sqnr(w, twice)
        off = float((((twice.scale - once.scale) / once.scale) ** 2).mean().sqrt())
        predicted = 10 * math.log10(1 + off**2 * 10 ** (qlab.sqnr(w, once) / 10))
        assert lost == pytest.approx(predicted, abs=0.05) and lost < 0.1


def test_one_weight_of_each_block_is_exact():
    w = normal(1)
    q = nf4(w, None, Scheme.parse("nf4-g64"), Nf4Options(double=False))
    error = (q.dequantize() - w).abs().reshape(-1, 64)
    far = w.abs().reshape(-1, 64).argmax(1, keepdim=True)
    assert (error.gather(1, far) == 0).all() and (error.amax(1) > 0).all()


def test_the_table_is_not_symmetric():
    assert sum(v > 0 for v in NF4.values) == 8 and sum(v < 0 for v in NF4.values) == 7
    w = normal(2)
    a, b = (qlab.sqnr(x, qlab.quantize(x, "nf4-g64")) for x in (w, -w))
    assert a != b and a == pytest.approx(b, abs=0.15)
    up, down = (qlab.sqnr(x, qlab.quantize(x, "nf4-g64")) for x in (w.abs(), -w.abs()))
    assert up > down + 0.3


def test_neither_meaning_of_optimal_holds_in_blocks_of_64():
    x = normal(3, (1, 1 << 17)).double().numpy().reshape(-1, 64)
    scales = np.abs(x).max(1, keepdims=True)
    y = x / scales
    table = np.array(NF4.levels())

    def noise(t):
        codes = np.searchsorted((t[1:] + t[:-1]) / 2, y)
        return (((t[codes] - y) * scales) ** 2).mean(), codes

    ours, codes = noise(table)
    assert 3.8 < rate.code_entropy(codes.ravel()) < 3.95
    best, _ = noise(
        kmeans_1d(y, 16, np.broadcast_to(scales**2, y.shape).copy(), bins=2048).centroids
    )
    assert 0.02 < 10 * math.log10(ours / best) < 0.6
    # Where the premise holds, it is nearly met: divide by 1.85 σ.
    free = x.ravel() / (x.std() * 1.848)
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, free)
    assert rate.code_entropy(codes) > 3.98


def test_a_file_can_be_read_with_numpy_alone():
    w = normal(4)
    for word in ("nf4-g64", "fp4_bnb-g128"):
        q = nf4(w, None, Scheme.parse(word))
        file = {name: tensor.numpy() for name, tensor in to_bitsandbytes(q).items()}
        name = next(n for n in file if n.startswith("quant_state"))
        facts = json.loads(file[name].tobytes())
        byte = file[""].ravel()
        codes = np.stack([byte >> 4, byte & 15], 1).ravel()
        tops = np.repeat(file["nested_absmax"], facts["nested_blocksize"])[: file["absmax"].size]
        scales = file["nested_quant_map"][file["absmax"]] * tops
        scales = scales + np.float32(facts["nested_offset"])
        x = file["quant_map"][codes].reshape(-1, facts["blocksize"]) * scales[:, None]
        assert np.array_equal(x.reshape(facts["shape"]), q.dequantize().numpy())
