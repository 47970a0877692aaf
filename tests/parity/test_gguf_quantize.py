"""Every block type against llama.cpp's C: equal bytes, equal weights.

The C is the prebuilt x86-64 build inside xllamacpp: float32 throughout and no fused multiply-add.
"""

import numpy as np
import pytest

from qlab import QlabError, gguf
from tests.gguf import llamacpp
from tests.gguf.arrays import COLUMNS, ROWS, hard_arrays, importances, story_matrices

COMPILED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
PLAIN = ("F16", "BF16", "Q8_1", "Q8_K", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4")
GRIDS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def expected(x, name, importance=None):
    if name in ("Q8_1", "Q8_K"):
        return llamacpp.quantize_activations(x, name.lower().replace("k", "K"))
    return llamacpp.quantize(x, gguf.block_type(name).type_id, importance)


def assert_same(got, want, name, arrays):
    """Equal bytes; else the message says in which arrays and at which bytes of a block."""
    if np.array_equal(got, want):
        return
    wrong = (got != want).reshape(len(arrays), ROWS, -1, gguf.block_type(name).block_bytes)
    which = {
        a: sorted(set(np.nonzero(w)[2])) for a, w in zip(arrays, wrong, strict=True) if w.any()
    }
    pytest.fail(f"{name} differs in {which}")


def test_the_traits_are_those_of_the_library():
    for kind in gguf.BLOCK_TYPES.values():
        found = llamacpp.traits(kind.type_id)
        assert found.name.decode().lower() == kind.name.lower()
        assert (found.block_size, found.block_bytes) == (kind.block_size, kind.block_bytes)


def test_every_type_of_the_library_is_known():
    """Up to the last type this library has; gone types have blocks of no weights."""
    known = {kind.type_id for kind in gguf.BLOCK_TYPES.values()}
    there = {i for i in range(43) if llamacpp.traits(i).block_size}
    assert there == known


@pytest.mark.oracle("type {name}", "llama.cpp", "equal bytes, with and without importance")
@pytest.mark.parametrize("importance", importances())
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_hard_arrays(name, engine, importance):
    arrays = hard_arrays()
    x = np.concatenate(list(arrays.values()))
    row = importances()[importance]
    if row is not None and not gguf.block_type(name).uses_importance:
        row = None  # the C ignores it, too
    got = gguf.quantize(x, name, importances()[importance], engine=engine)
    assert_same(got, expected(x, name, row), name, arrays)


@pytest.mark.oracle("type {name}", "llama.cpp", "equal bytes")
@pytest.mark.parametrize("name", GRIDS)
def test_hard_arrays_of_types_with_a_table(name):
    """Here the C ends the process where float32 overflows, and ``quantize`` raises an error."""
    arrays, kind = hard_arrays(), gguf.block_type(name)
    stopped = set()
    for importance, row in importances().items():
        if row is None and kind.needs_importance:
            continue
        wanted = llamacpp.quantize_or_stop(list(arrays.values()), kind.type_id, row)
        # The readable engine is slow: it takes two of six importances.
        engines = ("numba", "numpy") if importance in ("none", "far apart") else ("numba",)
        for (array, x), want in zip(arrays.items(), wanted, strict=True):
            for engine in engines:
                if want is None:
                    stopped.add(array)
                    with pytest.raises(QlabError, match="overflow"):
                        gguf.quantize(x, name, row, engine=engine)
                else:
                    got = gguf.quantize(x, name, row, engine=engine)
                    assert np.array_equal(got, want), (array, importance, engine)
    assert stopped <= {"huge", "squares overflow"}


@pytest.mark.oracle("type {name}", "llama.cpp", "equal bytes")
@pytest.mark.parametrize("name", PLAIN)
def test_hard_arrays_of_types_without_a_search(name):
    arrays = hard_arrays()
    x = np.concatenate(list(arrays.values()))
    assert_same(gguf.quantize(x, name), expected(x, name), name, arrays)


@pytest.mark.parametrize("name", COMPILED + PLAIN + GRIDS)
def test_real_weights(name):
    kind = gguf.block_type(name)
    rng = np.random.default_rng(3)
    for matrix in story_matrices().values():
        rows = [] if kind.needs_importance else [None]
        if kind.uses_importance:
            rows.append(rng.chisquare(1, matrix.shape[1]).astype(np.float32))
        for importance in rows:
            want = expected(matrix, name, importance)
            assert np.array_equal(gguf.quantize(matrix, name, importance), want)
            few = gguf.quantize(matrix[:6], name, importance, engine="numpy")
            assert np.array_equal(few, want[:6])


@pytest.mark.parametrize("name", COMPILED + GRIDS)
def test_random_arrays_of_every_spread(name):
    """Many seeds, each with another law and another scale: 1024 super-blocks a type."""
    rng = np.random.default_rng(11)
    laws = [rng.standard_normal, rng.standard_cauchy, rng.random, rng.standard_exponential]
    x = np.stack([law(COLUMNS) * 10.0 ** rng.uniform(-8, 8) for law in laws * 128])
    x = x.astype(np.float32)
    kind = gguf.block_type(name)
    for importance in (None, rng.chisquare(1, COLUMNS).astype(np.float32)):
        if kind.uses_importance if importance is not None else not kind.needs_importance:
            got = gguf.quantize(x, name, importance, engine="numba")
            assert np.array_equal(got, expected(x, name, importance))


READ = [n for n in COMPILED + PLAIN + GRIDS if n not in ("Q8_1", "Q8_K")]


@pytest.mark.oracle("type {name}", "llama.cpp", "equal weights from any bytes")
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("engine", ["numpy", "auto"])
def test_any_bytes_are_read_alike(name, engine):
    """NaN for NaN, and otherwise the same bits: an infinite scale gives both."""
    kind = gguf.block_type(name)
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, (64, 4 * kind.block_bytes), dtype=np.uint8)
    data[0], data[1] = 0, 255
    got = gguf.dequantize(data, name, engine=engine)
    want = llamacpp.dequantize(data, kind.type_id)
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_all_halves_are_read_alike(name):
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8)[None]
    got = gguf.dequantize(data, name, engine="numba")
    want = llamacpp.dequantize(data, gguf.block_type(name).type_id)
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all()


@pytest.mark.parametrize("name", [*COMPILED, "F16", "BF16"])
def test_compiled_dequantizers_take_any_shape(name):
    """One block, none, many dimensions, and enough for threads; all as the code to read."""
    kind = gguf.block_type(name)
    rng = np.random.default_rng(6)
    many = 3 * (1 << 16) // kind.block_size + 1
    for shape in [(1,), (0, 1), (2, 0, 3), (3, 2, 1, 5), (many, 1)]:
        data = rng.integers(0, 256, (*shape[:-1], shape[-1] * kind.block_bytes), dtype=np.uint8)
        want = gguf.dequantize(data, name, engine="numpy")
        for threads in (1, 3):
            got = gguf.dequantize(data, name, engine="numba", threads=threads)
            assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize("engine", ["numpy", "numba"])
@pytest.mark.parametrize(
    "name", [n for n in COMPILED + GRIDS if n.startswith(("Q4", "Q5", "Q8", "IQ"))]
)
def test_ties(name, engine):
    """The first of equals counts: the sign of the peak, and which of 0 and -0 is the minimum."""
    rng = np.random.default_rng(7)
    few = [
        [0.0, -0.0],
        [0.0, -0.0, 1.0],
        [0.0, -0.0, -1.0],
        [1.0, -1.0],
        [-0.0, 1e-40, -1e-40, 3.0],
    ]
    rows = [rng.choice(np.array(v, np.float32), (40, 256)) for v in few]
    # Half of a row of one kind, so that blocks differ in what they hold.
    rows.append(np.where(rng.random((40, 256)) < 0.97, np.float32(-0.0), rows[1]))
    x = np.concatenate(rows)
    row = np.ones(256, np.float32) if gguf.block_type(name).needs_importance else None
    assert np.array_equal(gguf.quantize(x, name, row, engine=engine), expected(x, name, row))


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "IQ4_NL", "Q4_0", "IQ2_S", "IQ1_M"])
def test_threads_change_nothing(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1024)).astype(np.float32)
    importance = rng.chisquare(1, 1024).astype(np.float32)
    one = gguf.quantize(x, name, importance, threads=1)
    assert np.array_equal(one, gguf.quantize(x, name, importance, threads=3))
    assert np.array_equal(one, llamacpp.quantize(x, gguf.block_type(name).type_id, importance))
