"""QTensors in a file: what is written is what is read, and nothing else is taken for it."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import qlab
from qlab.core import QTensor
from qlab.export import load_qtensors, save_qtensors
from qlab.export.tensors import VERSION

SCHEMES = [
    "int8-asym-tensor",
    "int3-asym-g8",
    "uint5-channel",
    "int4-full-g8-sfp16",
    "int6-b4x8-sbf16",
    "int4-asym-g8-se8m0",
    "int4-asym-g8-sfp8_e4m3",
    "mxfp8",
    "mxfp6_e3m2",
    "mxfp4",
    "nvfp4",
    "nf4-g32",
    "fp4_bnb-channel",
    "log5-token",
    "ternary-channel",
    "binary-tensor",
    "fp8_e5m2-channel1",
    "fp16",
    "bf16",
    "tf32",
    "fp32",
    "kmeans3-channel",
    "vq4x4-tensor",
    "pq3x8-tensor",
]


def same(a, b):
    """Every part of two QTensors is equal, types included."""
    assert type(a) is type(b)
    assert (a.scheme, a.shape, a.dtype) == (b.scheme, b.shape, b.dtype)
    for x, y in (
        (a.packed, b.packed),
        (a.scale, b.scale),
        (a.zero_point, b.zero_point),
        (a.tensor_scale, b.tensor_scale),
        (a.dequantize(), b.dequantize()),
    ):
        assert (x is None) == (y is None)
        if x is not None:
            assert type(x) is type(y) and x.dtype == y.dtype
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else np.array_equal(x, y)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_every_scheme_comes_back_as_it_was(tmp_path, library):
    w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    w = torch.from_numpy(w) if library == "torch" else w
    tensors = {f"layer.{s}": qlab.quantize(w, s) for s in SCHEMES}
    save_qtensors(tmp_path / "w.safetensors", tensors)
    back = load_qtensors(tmp_path / "w.safetensors")
    assert list(back) == sorted(tensors)
    for name, q in tensors.items():
        same(q, back[name])
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_holds_the_bytes_that_were_promised(tmp_path, scheme):
    w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    q = qlab.quantize(w, scheme)
    save_qtensors(tmp_path / "w", {"w": q})
    with safe_open(tmp_path / "w", framework="np") as file:
        stored = sum(file.get_tensor(k).nbytes for k in file.keys())
    # Scales and zero points are counted together, and stored as two runs of whole bytes.
    assert q.nbytes <= stored <= q.nbytes + 1


@pytest.mark.parametrize("shape", [(0, 8), (8,), (1,), (), (2, 3, 8), (5, 24)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_odd_shapes_and_dtypes(tmp_path, shape, dtype):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    q = {s: qlab.quantize(w, s) for s in ("int5-asym-tensor", "nf4-tensor")}
    if shape == (5, 24):
        q["padded"] = qlab.quantize(w, "int3-asym-g16", pad=True)
    save_qtensors(tmp_path / "w", q)
    for name, back in load_qtensors(tmp_path / "w").items():
        same(q[name], back)
        assert back.dequantize().dtype == dtype


def test_no_tensors_at_all(tmp_path):
    save_qtensors(tmp_path / "w", {})
    assert load_qtensors(tmp_path / "w") == {}


@pytest.fixture
def file(tmp_path):
    w = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    path = tmp_path / "w.safetensors"
    save_qtensors(path, {"a": qlab.quantize(w, "int4-asym-g16"), "b": qlab.quantize(w, "nvfp4")})
    return path


def test_any_single_changed_byte_is_found(file):
    """Each byte of the file in turn: header, lengths, names, codes, scales."""
    whole = file.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        file.write_bytes(changed)
        with pytest.raises(qlab.QlabError) as error:
            load_qtensors(file)
        assert "\n" not in str(error.value)
    file.write_bytes(whole)
    assert set(load_qtensors(file)) == {"a", "b"}


def test_any_cut_is_found(file):
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(qlab.QlabError, match="cut"):
            load_qtensors(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(qlab.QlabError, match="cut, or no safetensors"):
        load_qtensors(file)


def rewritten(file, change):
    with safe_open(file, framework="np") as old:
        metadata, arrays = old.metadata(), {k: old.get_tensor(k) for k in old.keys()}
    change(metadata, arrays)
    save_file(arrays, file, metadata)


def test_files_of_another_kind_or_a_newer_version_are_refused(file, tmp_path):
    rewritten(file, lambda m, a: m.update(version=str(VERSION + 1)))
    with pytest.raises(qlab.QlabError, match=r"newer qlab.*upgrade"):
        load_qtensors(file)
    rewritten(file, lambda m, a: m.update(version="0"))
    with pytest.raises(qlab.QlabError, match="altered"):
        load_qtensors(file)
    rewritten(file, lambda m, a: m.clear())
    with pytest.raises(qlab.QlabError, match="not written by save_qtensors"):
        load_qtensors(file)
    with pytest.raises(qlab.QlabError, match="is no file"):
        load_qtensors(tmp_path / "nothing")


def test_a_swap_that_keeps_every_byte_is_found(file):
    """Scales of one tensor under the name of another, or a scheme that reads codes otherwise."""

    def swap(metadata, arrays):
        arrays["a.scale"], arrays["b.scale"] = arrays["b.scale"], arrays["a.scale"]

    def relabel(metadata, arrays):
        about = json.loads(metadata["tensors"])
        about["b"]["scheme"] = "nf4-g16-sfp8_e4m3"
        metadata["tensors"] = json.dumps(about, sort_keys=True)

    whole = file.read_bytes()
    for change in (swap, relabel):
        file.write_bytes(whole)
        rewritten(file, change)
        with pytest.raises(qlab.QlabError, match="altered"):
            load_qtensors(file)


def test_a_failed_write_keeps_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(qlab.QlabError, match="No space left"):
        save_qtensors(file, {})
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_mixed_or_foreign_values_are_refused(tmp_path):
    w = np.ones((2, 8), np.float32)
    a, b = qlab.quantize(w, "int8-tensor"), qlab.quantize(torch.from_numpy(w), "int8-tensor")
    with pytest.raises(qlab.QlabError, match="two files"):
        save_qtensors(tmp_path / "w", {"a": a, "b": b})
    with pytest.raises(qlab.QlabError, match="'a' is a ndarray"):
        save_qtensors(tmp_path / "w", {"a": w})
    assert isinstance(a, QTensor) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_doubly_quantized_scales_stay_bytes(tmp_path, library):
    from qlab.core import Scheme
    from qlab.methods.nf4 import nf4

    w = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    q = nf4(torch.from_numpy(w) if library == "torch" else w, None, Scheme.parse("nf4-g64"))
    save_qtensors(tmp_path / "q.safetensors", {"w": q})
    back = load_qtensors(tmp_path / "q.safetensors")["w"]
    assert type(back) is type(q) and back.nbytes == q.nbytes
    assert np.array_equal(np.asarray(back.dequantize()), np.asarray(q.dequantize()))
