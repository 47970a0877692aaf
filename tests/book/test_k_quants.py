"""What the chapter on k-quants derives, on input of our own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab import gguf
from qlab.gguf.arithmetic import in_order
from qlab.gguf.blocks._k import pack_k_nibbles, pack_six_bits
from qlab.gguf.mixes import MIXES, Facts, choose_types, get_mix, use_more_bits
from tests.gguf import llamacpp

f32 = np.float32
seeds = st.integers(0, 2**32 - 1)


def search_in_the_open(x, w, tries=21, n=15):
    """The chapter's search."""
    low, high = np.minimum(x.min(1), 0), x.max(1)
    W, wx = in_order(w), in_order(w * x)
    inverse = f32(n) / (high - low)
    scale, best = f32(1) / inverse, low

    def codes_at(inverse, low):
        return np.clip(np.rint(inverse[:, None] * (x - low[:, None])), 0, n).astype(f32)

    def error(l, d, m):  # noqa: E741
        gap = d[:, None] * l + m[:, None] - x
        return in_order(w * (gap * gap))

    codes = codes_at(inverse, low)
    least = error(codes, scale, low)
    for i in range(tries):
        inverse = (f32(-1) + f32(0.1) * f32(i) + f32(n)) / (high - best)
        l = codes_at(inverse, best)  # noqa: E741
        wl = w * l
        sl, sll, sxl = in_order(wl), in_order(wl * l), in_order(wl * x)
        D = W * sll - sl * sl
        d, m = (W * sxl - wx * sl) / D, (sll * wx - sl * sxl) / D
        d = np.where(m > 0, sxl / sll, d)
        m = np.minimum(m, 0)
        found = error(l, d, m)
        better = (D > 0) & (found < least)
        least, codes = np.where(better, found, least), np.where(better[:, None], l, codes)
        scale, best = np.where(better, d, scale), np.where(better, m, best)
    return codes, scale, -best


def q4_k_in_the_open(x):
    """Bytes (super-blocks, 144) of blocks (n, 32)."""
    cost = np.sqrt(in_order(x * x) / f32(32))[:, None] + np.abs(x)
    kept, scale, minus = search_in_the_open(x, cost)
    integers, units = [], []
    for values in (scale.reshape(-1, 8), minus.reshape(-1, 8)):
        largest = values.max(1)
        integers.append(np.rint((f32(63) / largest)[:, None] * values))
        units.append(largest / f32(63))
    a, b = (
        (u.astype(np.float16).astype(f32)[:, None] * k).reshape(-1, 1)
        for u, k in zip(units, integers, strict=True)
    )
    fresh = np.clip(np.rint((x + b) / np.where(a > 0, a, f32(1))), 0, 15)
    codes = np.where(a > 0, fresh, kept)
    return np.concatenate(
        [
            np.stack(units, 1).astype(np.float16).view(np.uint8),
            pack_six_bits(*(k.astype(np.uint8) for k in integers)),
            pack_k_nibbles(codes.astype(np.uint8)),
        ],
        axis=1,
    )


@settings(max_examples=40, deadline=None)
@given(seed=seeds, tail=st.sampled_from(["normal", "heavy", "uneven"]))
def test_the_chapter_s_search_writes_llama_cpp_s_bytes(seed, tail):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((64, 32)).astype(f32)
    if tail == "heavy":
        x = rng.standard_t(2, (64, 32)).astype(f32)
    if tail == "uneven":  # a sub-block far below its neighbors, whose stored scale is 0
        x[::8] *= f32(1e-4)
    ours = q4_k_in_the_open(x)
    np.testing.assert_array_equal(ours, gguf.quantize(x.reshape(-1, 256), "Q4_K"))
    np.testing.assert_array_equal(ours, llamacpp.quantize(x.reshape(-1, 256), 12))


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_the_best_pair_for_given_codes_is_the_weighted_least_squares_solution(seed):
    """The two equations of the chapter against NumPy's solver, and no neighbor is better."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(32), rng.uniform(0.1, 3, 32)
    codes = np.clip(np.rint((x - x.min()) / np.ptp(x) * 15), 0, 15)
    W, wl, wx = w.sum(), (w * codes).sum(), (w * x).sum()
    wll, wxl = (w * codes**2).sum(), (w * x * codes).sum()
    D = W * wll - wl**2
    d, m = (W * wxl - wx * wl) / D, (wll * wx - wl * wxl) / D
    root = np.sqrt(w)
    solved = np.linalg.lstsq(
        np.stack([codes, np.ones(32)], 1) * root[:, None], x * root, rcond=None
    )
    np.testing.assert_allclose([d, m], solved[0], rtol=1e-7)
    least = (w * (d * codes + m - x) ** 2).sum()
    for step in (1e-3, -1e-3):
        assert (w * ((d + step) * codes + m - x) ** 2).sum() > least
        assert (w * (d * codes + m + step - x) ** 2).sum() > least


def db(x, y, cost=1.0):
    return 10 * np.log10((cost * x.astype(float) ** 2).sum() / (cost * (x - y) ** 2.0).sum())


def test_each_step_from_q4_0_to_q4_k_on_normal_weights():
    """Q4_1 beats Q4_0 for half a bit; Q4_K beats both and costs what Q4_0 costs."""
    x = np.random.default_rng(0).standard_normal((256, 512)).astype(f32)
    found = {
        k: db(x, gguf.dequantize(gguf.quantize(x, k), k)) for k in ("Q4_0", "Q4_1", "Q4_K", "Q6_K")
    }
    assert found["Q4_0"] + 0.4 < found["Q4_1"] < found["Q4_K"] - 0.3
    assert gguf.block_type("Q4_K").block_bytes == 8 * gguf.block_type("Q4_0").block_bytes
    # Two bits more: 12.04 dB by the law of the mathematics; two more bits in half the block gain.
    assert 11 < found["Q6_K"] - found["Q4_K"] < 14


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"])
def test_importance_lowers_the_error_that_it_weighs_and_equals_llama_cpp(kind):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((32, 512)).astype(f32)
    h = np.exp(1.5 * rng.standard_normal(512)).astype(f32)
    without, with_it = (gguf.quantize(x, kind, i) for i in (None, h))
    np.testing.assert_array_equal(with_it, llamacpp.quantize(x, gguf.block_type(kind).type_id, h))
    a, b = (db(x, gguf.dequantize(q, kind), h) for q in (without, with_it))
    assert b > a + 0.2, (a, b)


def test_the_diagonal_is_exact_for_uncorrelated_inputs():
    """Equation of the importance matrix: the mean squared change of an output."""
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.1, 3, 64)
    inputs = rng.standard_normal((200_000, 64)) * scale
    e = rng.standard_normal(64)
    # The mean of n squares of a normal number is known to sqrt(2 / n) of itself, 0.3%: ten times.
    assert np.mean((inputs @ e) ** 2) == pytest.approx((e**2 * scale**2).sum(), rel=0.03)


def llama3_8b():
    hidden, inner, vocabulary, kv = 4096, 14336, 128256, 1024
    parts = {
        "attn_q": (hidden, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    tensors = {"token_embd.weight": (vocabulary, hidden), "output.weight": (vocabulary, hidden)}
    return tensors | {f"blk.{i}.{p}.weight": s for i in range(32) for p, s in parts.items()}


# What llama-quantize prints (tools/quantize/quantize.cpp), in GiB
PRINTED = {
    "q2_k": 2.96, "q3_k_s": 3.41, "q3_k_m": 3.74, "q3_k_l": 4.03, "q4_0": 4.34, "q4_1": 4.78,
    "q4_k_s": 4.37, "q4_k_m": 4.58, "q5_0": 5.21, "q5_1": 5.65, "q5_k_s": 5.21, "q5_k_m": 5.33,
    "q6_k": 6.14, "q8_0": 7.96,
}  # fmt: skip


@pytest.mark.parametrize("mix", PRINTED)
def test_sizes_of_llama_3_8b_are_those_that_llama_quantize_prints(mix):
    shapes = llama3_8b()
    types = choose_types(get_mix(mix), shapes, Facts(layers=32, heads_per_kv=4, tied=False))
    kinds = {name: gguf.block_type(kind) for name, kind in types.items()}
    size = sum(np.prod(shapes[n]) // k.block_size * k.block_bytes for n, k in kinds.items())
    # Two digits are printed, and the file holds 128,256 tokens as text: some 8 MB.
    assert size / 2**30 == pytest.approx(PRINTED[mix], abs=0.015)


def test_medium_mixes_spend_on_half_of_32_layers():
    assert sum(use_more_bits(i, 32) for i in range(32)) == 16
    assert [i for i in range(4) if use_more_bits(i, 4)] == [2, 3]
    assert {"q4_k_s", "q4_k_m"} <= set(MIXES)
