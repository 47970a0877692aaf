"""The vocabulary: each word against NumPy, and all paths against each other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qlab.errors import QlabError
from qlab.kernels.cpu.simd import PATHS
from qlab.kernels.cpu.simd import path as simd_path
from tests.kernels.cpu.on_path import sample

SCRIPT = Path(__file__).parent / "on_path.py"
ROOT = Path(__file__).resolve().parents[3]


def run_on(path, folder):
    file = folder / f"{path}.npz"
    done = subprocess.run(
        [sys.executable, SCRIPT, file],
        env={**os.environ, "QLAB_CPU": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done, file


def can_run(path):
    import llvmlite.binding as llvm

    have = {name for name, there in llvm.get_host_cpu_features().items() if there}
    return PATHS[path][0] <= have


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each path of this processor gives."""
    folder, found = tmp_path_factory.mktemp("paths"), {}
    for path in PATHS:
        if can_run(path):
            done, file = run_on(path, folder)
            assert done.returncode == 0, done.stderr
            found[path] = dict(np.load(file))
            assert found[path]["path"] == path
    assert "portable" in found
    return found


def wanted():
    """What the words of ``on_path.words`` must give, by NumPy; fma left out."""
    a, f, h = sample()
    x, y = a[:64], a[64:128]
    i, j = x.view(np.int32), y.view(np.int32)
    u, v = f[:16], f[16:]

    def dots(total, codes, inputs):
        products = codes.astype(np.int64) * inputs.view(np.int8).astype(np.int64)
        return (total + products.reshape(16, 4).sum(axis=1)).astype(np.int32)

    ui, uj = i.view(np.uint32), j.view(np.uint32)
    parts = [
        x & 15, x >> 4, x << 3, x | y,
        i + j, i - j, i * j, ui >> 5 | uj << 7, ui & np.uint32(0xFFFF0000),
        dots(i.astype(np.int64), x, y), dots(0, a[128:192], a[192:]),
        dots(j.astype(np.int64), x & 127, y), dots(0, a[128:192] & 127, a[192:]),
        np.tile(a[5:9], 16), a[3:19].astype(np.int32), a[3:19].view(np.int8).astype(np.int32),
        u + v, u - v, u * v,
        h.astype(np.float32), i.astype(np.float32), i,
        np.rint(u * np.float32(100)).astype(np.int32), np.abs(u),
        u[i & 15], u[ui >> 28],
        np.full(16, int(i.max()) + int(j.sum())).astype(np.int32),
        np.r_[x[::4], np.zeros(48, np.uint8)],
    ]  # fmt: skip
    return np.concatenate([np.ascontiguousarray(p).view(np.uint8) for p in parts])


@pytest.mark.slow
def test_each_word_on_each_path(results):
    expected = wanted()
    for path, found in results.items():
        words = found["words"][:1792]
        differ = {int(place) // 64 for place in np.flatnonzero(words != expected)}
        assert not differ, f"{path}: words {differ}"


@pytest.mark.slow
def test_fma_rounds_once_where_the_processor_can(results):
    _, f, _ = sample()
    u, v = f[:16].astype(np.float64), f[16:].astype(np.float64)
    once = (u * v + v).astype(np.float32)  # exact in float64 but for its last rounding
    for path, found in results.items():
        got = found["words"][1792:].view(np.float32)
        if path == "portable":
            assert np.array_equal(got, f[:16] * f[16:] + f[16:])
        else:
            assert np.array_equal(got, once)


@pytest.mark.slow
def test_kernels_give_the_same_bits_on_all_paths(results):
    first = results["portable"]
    for path, found in results.items():
        for name in set(first) - {"path", "words"}:
            if name == "NF4":  # its sums are rounded differently without fma
                np.testing.assert_allclose(found[name], first[name], rtol=1e-5, atol=1e-5)
            else:
                assert np.array_equal(found[name], first[name]), f"{path}: {name}"


def test_an_unknown_path_is_refused(tmp_path):
    done, _ = run_on("fast", tmp_path)
    assert done.returncode and "QLAB_CPU=fast is unknown: use one of avx512" in done.stderr


def test_a_path_that_the_processor_lacks_is_refused(monkeypatch):
    import llvmlite.binding as llvm

    monkeypatch.setenv("QLAB_CPU", "avx512")
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"avx2": True})
    with pytest.raises(QlabError, match="this processor lacks avx512bw"):
        simd_path.__wrapped__()


def test_without_features_the_path_is_portable(monkeypatch):
    import llvmlite.binding as llvm

    monkeypatch.delenv("QLAB_CPU", raising=False)
    monkeypatch.setattr(llvm, "get_host_cpu_features", dict)
    assert simd_path.__wrapped__() == "portable"


def test_the_instruction_is_there():
    """On a processor that has it, a dot4 is one vpdpbusd."""
    if simd_path() != "avx512":
        pytest.skip("needs AVX512-VNNI")
    import numba

    from qlab.kernels.cpu.simd import dot4, load_bytes, splat_bytes, splat_int, store

    @numba.njit
    def one(a, out):
        store(out, 0, dot4(splat_int(0), load_bytes(a, 0), splat_bytes(a, 64)))

    one(np.zeros(68, np.uint8), np.zeros(64, np.uint8))
    assembly = one.inspect_asm(one.signatures[0])
    assert assembly.count("vpdpbusd\t") == 1
