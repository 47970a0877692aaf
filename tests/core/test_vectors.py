"""Vector and product quantization, and the tensor that carries a fitted codebook."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.core.codebook_tensor import CodebookTensor, quantize_codebook
from qlab.core.kmeans import kmeans_1d
from qlab.core.scheme import Scheme
from qlab.core.vectors import ProductQuantizer, VectorQuantizer

SCHEMES = ["kmeans4-tensor", "kmeans3-channel", "kmeans2-g8", "vq4x4", "pq3x2", "vq8x4-sfp16"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- the quantizers -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([VectorQuantizer, ProductQuantizer]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_each_sub_vector_gets_its_nearest_entry(kind, bits, dim, places, rows, seed):
    x = normal(rows, places * dim, seed=seed)
    q = kind(bits, dim, iterations=5).fit(x)
    codes = q.encode(x)
    assert codes.shape == (rows, places) and codes.min() >= 0 and codes.max() < 1 << bits
    decoded = q.decode(codes)
    books = q.codebook[None] if kind is VectorQuantizer else q.codebooks
    cut = x.reshape(rows, places, dim).astype(np.float64)
    for j in range(places):
        far = ((cut[:, j, None] - books[j % len(books)]) ** 2).sum(-1)
        mine = ((cut[:, j] - decoded.reshape(rows, places, dim)[:, j]) ** 2).sum(-1)
        assert mine == pytest.approx(far.min(1), rel=1e-4, abs=1e-6)  # decoded to float32
    assert (q.encode(decoded) == codes).all()


def test_with_as_many_entries_as_vectors_nothing_is_lost():
    x = normal(16, 4)
    q = VectorQuantizer(4, 4).fit(x)
    assert q.decode(q.encode(x)) == pytest.approx(x, abs=1e-6)


def test_in_one_dimension_it_is_not_better_than_the_optimum():
    x = normal(64, 64)
    q = VectorQuantizer(3, 1, iterations=50).fit(x)
    error = ((q.decode(q.encode(x)) - x) ** 2).sum()
    assert error >= kmeans_1d(x, 8).inertia * (1 - 1e-6)


def test_more_dimensions_at_the_same_rate_pack_better():
    """2 bits a weight, Gaussian: 1, 2, 4 dimensions. The space-filling and the shape gain."""
    x = normal(512, 64)
    errors = []
    for dim in (1, 2, 4):
        q = VectorQuantizer(2 * dim, dim).fit(x)
        errors.append(float(((q.decode(q.encode(x)) - x) ** 2).mean()))
    assert errors[0] > errors[1] * 1.05 > errors[2] * 1.05**2
    assert errors[2] > 2.0**-4  # never below the bound


def test_codebooks_for_each_place_fit_places_that_differ():
    x = normal(400, 8) * np.repeat([1.0, 10.0], 4).astype(np.float32)
    one, each = VectorQuantizer(4, 4).fit(x), ProductQuantizer(4, 4).fit(x)
    errors = [((q.decode(q.encode(x)) - x) ** 2).mean() for q in (one, each)]
    assert errors[1] < errors[0]


def test_the_seed_decides():
    x = normal(100, 8)
    a, b = (VectorQuantizer(4, 4, seed=3).fit(x).codebook for _ in range(2))
    assert (a == b).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VectorQuantizer(0, 4), "codes of 0 bits"),
        (lambda: VectorQuantizer(17, 4), "codes of 17 bits"),
        (lambda: ProductQuantizer(4, 0), "sub-vectors of 0"),
        (lambda: VectorQuantizer(2, 4).fit(normal(3, 6)), "do not divide"),
        (lambda: VectorQuantizer(2, 2).encode(normal(3, 6)), r"call fit\(x\) first"),
        (lambda: VectorQuantizer(2, 2).fit(np.full((3, 6), np.nan)), "nan at position"),
        (lambda: ProductQuantizer(1, 2).fit(normal(3, 6)).encode(normal(3, 8)), "rows of 8"),
    ],
)
def test_bad_input_of_a_quantizer(call, message):
    with pytest.raises(qlab.QlabError, match=message):
        call()


# --- the tensor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_word_is_all_it_takes(scheme):
    x = normal(32, 64)
    q = qlab.quantize(x, scheme)
    assert isinstance(q, CodebookTensor) and q.scheme == Scheme.parse(scheme)
    assert Scheme.parse(q.scheme.name) == q.scheme
    x_hat = q.dequantize()
    assert x_hat.shape == x.shape and x_hat.dtype == x.dtype
    assert 5 < qlab.sqnr(x, q) < 60
    # Quantizing what was restored, with as many different values, changes nothing.
    if q.scheme.format.kind == "kmeans":
        again = qlab.quantize(x_hat, scheme)
        assert again.dequantize() == pytest.approx(x_hat, abs=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_and_numpy_give_the_same(scheme, dtype):
    x = torch.from_numpy(normal(16, 32)).to(dtype)
    a, b = qlab.quantize(x, scheme), qlab.quantize(x.float().numpy(), scheme)
    assert a.dequantize().dtype == dtype
    assert (a.codes.numpy() == b.codes).all()
    assert (a.codebook.numpy() == b.codebook).all()


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        # 64 x 128 weights = 8192. Codes, then codebook bits over the weights.
        ("kmeans4-tensor", 4 + 16 * 32 / 8192),
        ("kmeans4-channel", 4 + 64 * 16 * 32 / 8192),
        ("kmeans4-channel-sfp16", 4 + 64 * 16 * 16 / 8192),
        ("kmeans2-g32", 2 + 256 * 4 * 32 / 8192),
        ("vq8x4", 2 + 256 * 4 * 32 / 8192),
        ("pq4x4", 1 + 32 * 16 * 4 * 32 / 8192),
    ],
)
def test_the_codebook_is_counted(scheme, bits):
    q = qlab.quantize(normal(64, 128), scheme)
    assert q.bits_per_weight == pytest.approx(bits, rel=1e-12)
    assert q.nbytes * 8 == q.bits_per_weight * 8192


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["tensor", "channel", "channel1", "token", "g4", "b2x4"]),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_each_block_has_the_optimum(word, bits, seed):
    x = normal(6, 8, seed=seed)
    scheme = Scheme.parse(f"kmeans{bits}-{word}")
    q = quantize_codebook(x, scheme)
    block = scheme.granularity.block_shape(x.shape)
    error = 0.0
    for i in range(0, 6, block[0]):
        for j in range(0, 8, block[1]):
            error += kmeans_1d(x[i : i + block[0], j : j + block[1]], 1 << bits).inertia
    assert ((q.dequantize() - x) ** 2).sum() == pytest.approx(error, rel=1e-4, abs=1e-9)


def test_k_means_beats_every_fixed_format_on_the_same_blocks():
    x = np.random.default_rng(0).standard_t(4, (64, 64)).astype(np.float32)
    for word in ("tensor", "channel"):
        best = qlab.mse(x, qlab.quantize(x, f"kmeans4-{word}"))
        for fmt in ("int4", "nf4", "log4", "fp4_e2m1"):
            assert best < qlab.mse(x, qlab.quantize(x, f"{fmt}-{word}")), (word, fmt)


def test_the_compiled_search_gives_the_same_tensor():
    from qlab.kernels.cpu.kmeans import kmeans_rows

    x = normal(32, 64)
    scheme = Scheme.parse("kmeans3-channel")
    plain, fast = quantize_codebook(x, scheme), quantize_codebook(x, scheme, solver=kmeans_rows)
    assert fast.dequantize() == pytest.approx(plain.dequantize(), abs=1e-6)


def test_weights_move_the_levels():
    x, heavy = normal(4, 64), np.ones((4, 64))
    heavy[:, :8] = 100
    scheme = Scheme.parse("kmeans2-channel")
    plain, weighted = quantize_codebook(x, scheme), quantize_codebook(x, scheme, weights=heavy)

    def important(q):
        return float(((q.dequantize() - x)[:, :8] ** 2).mean())

    assert important(weighted) < important(plain)
    assert qlab.mse(x, weighted) > qlab.mse(x, plain)


HARD = {
    "zeros": np.zeros((4, 16), np.float32),
    "one outlier": np.concatenate([normal(4, 15), np.full((4, 1), 1e9, np.float32)], 1),
    "constant rows": np.repeat(np.array([[1], [-2], [0], [1e-40]], np.float32), 16, 1),
    "denormal": (np.arange(64).reshape(4, 16) * 1e-45).astype(np.float32),
    "huge": (normal(4, 16) * 3e37).astype(np.float32),
    "one element": np.array([[2.5]], np.float32),
    "empty": np.zeros((0, 16), np.float32),
    "no columns": np.zeros((3, 0), np.float32),
    "scalar": np.float32(3.0).reshape(()),
    "vector": normal(48),
    "odd": normal(7, 5),
    "cube": normal(3, 4, 8),
}


@pytest.mark.parametrize("scheme", ["kmeans3-tensor", "kmeans3-channel", "vq3x1", "pq2x1"])
@pytest.mark.parametrize("name", HARD)
def test_hard_input(scheme, name):
    x = HARD[name]
    q = qlab.quantize(x, scheme)
    x_hat = q.dequantize()
    assert x_hat.shape == x.shape and np.isfinite(x_hat).all()
    if x.size:
        wide = x.astype(np.float64)
        # The error of any codebook with an entry inside the range is at most the range.
        assert np.abs(x_hat - wide).max() <= np.ptp(wide) * (1 + 1e-5) + np.abs(wide).max() * 1e-6
    if name in ("zeros", "one element", "scalar") or (
        name == "constant rows" and "channel" in scheme
    ):
        assert (x_hat == x).all()


def test_blocks_that_do_not_divide_are_refused_or_padded():
    x = normal(4, 10)
    with pytest.raises(qlab.QlabError, match="does not divide"):
        qlab.quantize(x, "kmeans2-g4")
    assert qlab.quantize(x, "kmeans2-g4", pad=True).dequantize().shape == x.shape


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("kmeans9-tensor", "1 to 8 bits, not 9"),
        ("kmeans0-tensor", "1 to 8 bits, not 0"),
        ("vq9x2", "1 to 8 bits, not 9"),
        ("vq4x0", "at least 1 weight"),
        ("vq4x4-channel", "use 'vq4x4-tensor'"),
        ("pq4x4-g8", "use 'pq4x4-tensor'"),
        ("kmeans4-global", "one codebook a block"),
        ("kmeans4-se8m0", "sfp32, sfp16"),
        ("vq4x3", "do not divide"),
        ("kmeens4", "kmeans4"),
    ],
)
def test_bad_schemes_are_named(scheme, message):
    with pytest.raises(qlab.QlabError, match=message):
        qlab.quantize(normal(4, 8), scheme)


def test_nan_is_refused_with_its_position():
    x = normal(4, 8)
    x[1, 2] = np.nan
    for scheme in ("kmeans4-channel", "vq4x4"):
        with pytest.raises(qlab.QlabError, match=r"\(1, 2\)"):
            qlab.quantize(x, scheme)


def test_a_learned_format_has_no_levels_of_its_own():
    from qlab.core.formats import format_names, get_format

    fmt = get_format("kmeans4")
    assert fmt.bits == 4 and "kmeans4" not in format_names()
    for call in (fmt.levels, lambda: fmt.decode(None), lambda: fmt.encode(None)):
        with pytest.raises(qlab.QlabError, match="read its codebook"):
            call()
