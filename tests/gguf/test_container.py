"""The reader and the writer: what was written is read; what is broken is refused, and where."""

import ctypes
import resource
import signal
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from qlab import QlabError
from qlab.gguf import BLOCK_TYPES, GGUFError, GGUFFile, GGUFWriter, quantize
from qlab.gguf.inspect import diff, inspect
from tests.gguf import llamacpp
from tests.gguf.arrays import importance_for

VALUES = {
    "general.architecture": ("llama", "string"),
    "u8": (255, "uint8"),
    "i8": (-128, "int8"),
    "u16": (65535, "uint16"),
    "i16": (-32768, "int16"),
    "u32": (2**32 - 1, "uint32"),
    "i32": (-(2**31), "int32"),
    "u64": (2**64 - 1, "uint64"),
    "i64": (-(2**63), "int64"),
    "f32": (1.5, "float32"),
    "f64": (0.1, "float64"),
    "yes": (True, "bool"),
    "no": (False, "bool"),
    "text": ("a née ☃ \0 b", "string"),
    "empty text": ("", "string"),
    "words": (["once", "", "früh"], "array[string]"),
    "no words": ([], "array[string]"),
    "bools": ([True, False], "array[bool]"),
    "numbers": ([1, 2, 3], "array[uint16]"),
    "no numbers": ([], "array[float32]"),
    "floats": ([0.5, -2.0], "array[float64]"),
    "nested": ([[1, 2], [], [3]], "array[array[int32]]"),
    "deep": ([[["a"], []], [["b", "c"]]], "array[array[array[string]]]"),
}


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def weights():
    return np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)


@pytest.fixture
def file(tmp_path, weights):
    path = tmp_path / "a.gguf"
    with GGUFWriter(path) as out:
        for key, (value, kind) in VALUES.items():
            out.add(key, value, kind)
        for name, kind in BLOCK_TYPES.items():
            if kind.can_encode:
                out.add_weights(
                    f"{name}.weight", weights, name, importance_for(name, weights.shape[-1])
                )
        out.add_weights("one", weights[0, :1], "F32")
        out.add_weights("four", weights.reshape(2, 3, 2, 256), "Q4_K")
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_what_was_written_is_read(tmp_path, weights, version, alignment):
    path = tmp_path / "a.gguf"
    with GGUFWriter(path, alignment, version) as out:
        for key, (value, kind) in VALUES.items():
            out.add(key, value, kind)
        out.add_weights("a", weights[:, :32], "Q4_0")
        out.add_weights("b", weights, "F16")
    with GGUFFile(path) as found:
        assert (found.version, found.alignment) == (version, alignment)
        for key, (value, kind) in VALUES.items():
            assert plain(found.metadata[key]) == value
            empty_inside = kind == "array[array[int32]]" and value == []
            assert found.types[key] == kind or empty_inside
        assert all(t.offset % alignment == 0 for t in found.tensors.values())
        assert np.array_equal(found.tensors["a"].data, quantize(weights[:, :32], "Q4_0"))
        assert np.array_equal(found.tensors["b"].dequantize(), weights.astype(np.float16))


def test_every_type_and_shape(file, weights):
    with GGUFFile(file) as found:
        for name, kind in BLOCK_TYPES.items():
            if kind.can_encode:
                tensor = found.tensors[f"{name}.weight"]
                assert tensor.kind is kind and tensor.shape == weights.shape
                assert np.array_equal(
                    tensor.data, quantize(weights, name, importance_for(name, weights.shape[-1]))
                )
        four = found.tensors["four"]
        assert four.shape == (2, 3, 2, 256) and four.dequantize().shape == four.shape
        assert np.array_equal(four.data.reshape(-1), quantize(weights, "Q4_K").reshape(-1))


def test_llama_cpp_reads_the_same_places(tmp_path, weights):
    """Its own reader, on a file with all that it takes (it knows no nested arrays)."""
    path = tmp_path / "a.gguf"
    kinds = [k for k, b in BLOCK_TYPES.items() if b.can_encode and k not in ("Q8_1", "Q8_K")]
    with GGUFWriter(path, alignment=64) as out:
        for key, (value, kind) in VALUES.items():
            if not kind.startswith("array[array"):
                out.add(key, value, kind)
        for name in kinds:
            out.add_weights(name, weights, name, importance_for(name, weights.shape[-1]))
    lib = llamacpp.library()

    class Parameters(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]

    def call(name, result, *args):
        function = getattr(lib, name)
        function.restype = result
        return function(*args)

    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, Parameters]
    handle = call(
        "gguf_init_from_file", ctypes.c_void_p, str(path).encode(), Parameters(True, None)
    )
    assert handle
    handle = ctypes.c_void_p(handle)
    start = call("gguf_get_data_offset", ctypes.c_size_t, handle)
    with GGUFFile(path) as found:
        assert call("gguf_get_n_kv", ctypes.c_int64, handle) == len(found.metadata)
        assert call("gguf_get_n_tensors", ctypes.c_int64, handle) == len(found.tensors)
        for i, tensor in enumerate(found.tensors.values()):
            at = ctypes.c_int64(i)
            name = call("gguf_get_tensor_name", ctypes.c_char_p, handle, at).decode()
            assert name == tensor.name
            assert call("gguf_get_tensor_type", ctypes.c_int, handle, at) == tensor.kind.type_id
            offset = call("gguf_get_tensor_offset", ctypes.c_size_t, handle, at)
            assert start + offset == tensor.offset
            assert call("gguf_get_tensor_size", ctypes.c_size_t, handle, at) == tensor.nbytes
        for i, key in enumerate(found.metadata):
            assert call("gguf_get_key", ctypes.c_char_p, handle, ctypes.c_int64(i)).decode() == key
    lib.gguf_free.argtypes = [ctypes.c_void_p]
    call("gguf_free", None, handle)


def test_the_package_gguf_reads_it(tmp_path, weights):
    from gguf import GGUFReader

    path = tmp_path / "a.gguf"
    with GGUFWriter(path) as out:
        for key, (value, kind) in VALUES.items():
            if not kind.startswith("array[array"):
                out.add(key, value, kind)
        out.add_weights("w", weights, "Q6_K")
    reader = GGUFReader(path)
    for key, (value, kind) in VALUES.items():
        if not kind.startswith("array[array") and value != []:
            assert reader.fields[key].contents() == value
    assert np.array_equal(reader.tensors[0].data, quantize(weights, "Q6_K"))


def test_it_reads_what_the_package_gguf_writes(tmp_path, weights):
    from gguf import GGUFWriter as Theirs

    path = tmp_path / "a.gguf"
    out = Theirs(path, "llama")
    out.add_uint32("n", 7)
    out.add_array("words", ["a", "b"])
    out.add_array("numbers", [1.5, 2.5])
    out.add_tensor("w", weights)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    with GGUFFile(path) as found:
        assert found.metadata["general.architecture"] == "llama"
        assert found.metadata["n"] == 7 and found.metadata["words"] == ["a", "b"]
        assert found.metadata["numbers"].tolist() == [1.5, 2.5]
        assert np.array_equal(found.tensors["w"].dequantize(), weights)


def header(version=3, tensors=0, values=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def tensor(name, dims, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ARRAY = struct.pack("<I", 9)
LATE = bytes(64)
BROKEN = {
    "nothing": (b"", "empty"),
    "cut in the magic": (b"GG", "magic"),
    "another file": (b"PK\3\4" + LATE, "no GGUF"),
    "version 1": (header(1), "version 1"),
    "version 4": (header(4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^63 tensors": (header(tensors=2**63) + LATE, "tensors"),
    "2^64 - 1 values": (header(values=2**64 - 1) + LATE, "values"),
    "a key of 2^63 bytes": (header(values=1) + struct.pack("<Q", 2**63) + LATE, "key"),
    "a key not UTF-8": (header(values=1) + text(b"\xff\xfe") + LATE, "UTF-8"),
    "a key twice": (header(values=2) + 2 * (text("k") + struct.pack("<IB", 0, 1)), "twice"),
    "type 13": (header(values=1) + text("k") + struct.pack("<I", 13) + LATE, "type 13"),
    "a bool of 2": (header(values=1) + text("k") + struct.pack("<IB", 7, 2), "bool"),
    "an array of 2^62 numbers": (
        header(values=1) + text("k") + ARRAY + struct.pack("<IQ", 10, 2**62) + LATE,
        "elements",
    ),
    "an array of 2^61 texts": (
        header(values=1) + text("k") + ARRAY + struct.pack("<IQ", 8, 2**61) + LATE,
        "strings",
    ),
    "a text in an array of 2^64 - 8 bytes": (
        header(values=1) + text("k") + ARRAY + struct.pack("<IQQ", 8, 1, 2**64 - 8) + LATE,
        "string",
    ),
    "arrays 1000 deep": (
        header(values=1) + text("k") + ARRAY + 1000 * struct.pack("<IQ", 9, 1) + LATE,
        "deep",
    ),
    "alignment 0": (
        header(values=1) + text("general.alignment") + struct.pack("<II", 4, 0),
        "alignment",
    ),
    "alignment 24": (
        header(values=1) + text("general.alignment") + struct.pack("<II", 4, 24),
        "alignment",
    ),
    "alignment as text": (
        header(values=1) + text("general.alignment") + struct.pack("<I", 8) + text("32"),
        "alignment",
    ),
    "five dimensions": (header(tensors=1) + tensor("t", [1] * 5) + LATE, "dimensions"),
    "2^32 - 1 dimensions": (
        header(tensors=1) + text("t") + struct.pack("<I", 2**32 - 1) + LATE,
        "dimensions",
    ),
    "a dimension of 0": (header(tensors=1) + tensor("t", [4, 0]) + LATE, "dimension of 0"),
    "dimensions that overflow": (
        header(tensors=1) + tensor("t", [2**33, 2**33, 2**33]) + LATE,
        "beyond",
    ),
    "a product of 2^64": (header(tensors=1) + tensor("t", [2**32, 2**32]) + LATE, "beyond"),
    "tensor type 4": (header(tensors=1) + tensor("t", [4], kind=4) + LATE, "no GGUF type"),
    "a row that is no whole blocks": (header(tensors=1) + tensor("t", [33], 2) + LATE, "divide"),
    "beyond the end": (header(tensors=1) + tensor("t", [400]) + LATE, "beyond"),
    "an offset beyond the end": (header(tensors=1) + tensor("t", [4], 0, 2**62) + LATE, "beyond"),
    "an offset not aligned": (header(tensors=1) + tensor("t", [4], 0, 4) + LATE, "aligned"),
    "a name twice": (
        header(tensors=2) + tensor("t", [4]) + tensor("t", [4], 0, 32) + LATE,
        "twice",
    ),
    "tensors that overlap": (
        header(tensors=2) + tensor("t", [9]) + tensor("u", [4], 0, 32) + 2 * LATE,
        "overlap",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(tmp_path, name):
    data, says = BROKEN[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(GGUFError, match=says) as error:
        GGUFFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000  # whatever length the file claims; objects of the parser take some
    assert 0 <= error.value.offset <= len(data)


def test_text_that_is_not_utf8_fails_where_it_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(header(values=1) + text("k") + struct.pack("<I", 8) + text(b"\xff"))
    with GGUFFile(path) as found, pytest.raises(GGUFError, match="UTF-8"):
        found.metadata["k"]


def test_cut_at_any_byte(file, tmp_path):
    data = file.read_bytes()
    with GGUFFile(file) as whole:
        end = whole.data_end
    path = tmp_path / "cut.gguf"
    cuts = [*range(0, 1500), *range(1500, end, 97), end - 1]
    for n in cuts:
        path.write_bytes(data[:n])
        with pytest.raises(GGUFError):
            GGUFFile(path)


def touch(path):
    """Everything that a reader of the file would look at."""
    with GGUFFile(path) as found:
        for key in found.metadata:
            found.metadata[key]
        for one in found.tensors.values():
            assert one.data.nbytes == one.nbytes
        inspect(found)


def test_a_file_of_random_bytes_behind_the_magic(tmp_path):
    rng = np.random.default_rng(2)
    path = tmp_path / "a.gguf"
    for n in rng.integers(0, 200, 500):
        path.write_bytes(header(3, *rng.integers(0, 4, 2)) + rng.bytes(int(n)))
        try:
            touch(path)
        except GGUFError:
            pass


def test_a_write_that_fails_leaves_nothing(tmp_path, weights):
    path = tmp_path / "a.gguf"

    def fails():
        yield quantize(weights[:3], "Q4_K")
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError), GGUFWriter(path) as out:
        out.add_tensor("t", weights.shape, "Q4_K", fails)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), GGUFWriter(path) as out:
        out.add_tensor("t", weights.shape, "Q4_K", fails)
    with pytest.raises(ZeroDivisionError), GGUFWriter(path) as out:
        out.add("x", 1 // 0)
    with pytest.raises(GGUFError, match="bytes"), GGUFWriter(path) as out:
        out.add_tensor("t", (2, 256), "Q4_K", np.zeros(144, np.uint8))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_ctrl_c_leaves_nothing(tmp_path, weights):
    def interrupted():
        yield quantize(weights[:3], "Q4_K")
        raise KeyboardInterrupt

    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), GGUFWriter(path) as out:
        out.add_tensor("t", weights.shape, "Q4_K", interrupted)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing(tmp_path):
    """The system refuses to let the file grow beyond 100 kB, in the midst of a tensor."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(QlabError, match="free some space"), GGUFWriter(tmp_path / "a") as out:
            out.add_tensor("t", (50_000,), "F32", np.zeros(200_000, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


def test_killed_while_it_writes(tmp_path):
    """Nothing can clean up then, and still there is no file of the name, and the old one stays."""
    code = """
import os, signal, sys
import numpy as np
from qlab.gguf import GGUFWriter

def killed():
    yield np.zeros(4096, np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)

for name in sys.argv[1:]:
    with GGUFWriter(name) as out:
        out.add_tensor("t", (2048,), "F32", killed)
"""
    new, old = tmp_path / "new.gguf", tmp_path / "old.gguf"
    old.write_bytes(b"old")
    for path in (new, old):
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
    assert not new.exists() and old.read_bytes() == b"old"


def test_tensors_are_made_one_at_a_time(tmp_path):
    made = []

    def piece(i):
        def make():
            made.append(i)
            return (np.full(1024, i, np.uint8) for _ in range(4))

        return make

    path = tmp_path / "a.gguf"
    with GGUFWriter(path) as out:
        for i in range(3):
            out.add_tensor(f"t{i}", (1024,), "F32", piece(i))
        assert made == []
    assert made == [0, 1, 2]
    with GGUFFile(path) as found:
        assert all((found.tensors[f"t{i}"].data == i).all() for i in range(3))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (256, "uint8"), (-1, "uint32"), (1.5, "int32"), ("a", "float32"), (1, "string"),
        (1, "bool"), ([1, "a"], None), ([], None), (None, None), (2**64, None), ([1], "uint8"),
        (1, "array[uint8]"), ("ab", "array[string]"), ([300], "array[uint8]"), (1, "uint7"),
        (np.float16(1), None), ("\ud800", "string"), ([0.5], "array[int8]"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(tmp_path, value, kind):
    with pytest.raises(GGUFError):
        GGUFWriter(tmp_path / "a.gguf").add("k", value, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "bool"), (1, "uint32"), (-1, "int32"), (2**40, "uint64"), (-(2**40), "int64"),
        (1.0, "float32"), ("a", "string"), ([1, -1], "array[int32]"), (np.int8(3), "int8"),
        (np.zeros(2, np.uint16), "array[uint16]"), (["a"], "array[string]"),
        ([[1], [2]], "array[array[uint32]]"), ([[1], ["a"]], "array[array]"),
    ],
)  # fmt: skip
def test_types_are_inferred(tmp_path, value, kind):
    path = tmp_path / "a.gguf"
    with GGUFWriter(path) as out:
        out.add("k", value)
    with GGUFFile(path) as found:
        expected = "array" if kind == "array[array]" else kind
        assert found.types["k"] in (kind, f"array[{expected}]")
        assert np.array_equal(plain(found.metadata["k"]), plain(value)) or isinstance(value, list)


def test_the_writer_refuses_what_no_reader_takes(tmp_path, weights):
    out = GGUFWriter(tmp_path / "a.gguf")
    out.add_weights("t", weights)
    for name, shape, kind in [
        ("t", (1,), "F32"),
        ("x" * 64, (1,), "F32"),
        ("a", (1,) * 5, "F32"),
        ("a", (0,), "F32"),
        ("a", (3, 100), "Q4_K"),
        ("a", (3, 100), "Q4_X"),
    ]:
        with pytest.raises(QlabError):
            out.add_tensor(name, shape, kind, np.zeros(4, np.uint8))
    for alignment in (0, 3, -8, 2**32):
        with pytest.raises(GGUFError):
            GGUFWriter(tmp_path / "a.gguf", alignment)
    out.add("k", 1)
    with pytest.raises(GGUFError):
        out.add("k", 1)


def test_a_tensor_is_a_view_of_the_file(file):
    found = GGUFFile(file)
    view = found.tensors["Q4_K.weight"].data
    found.close()  # the view keeps the file
    assert view.sum() and not view.flags.writeable


def test_inspect_and_diff(tmp_path, weights):
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path, kind in ((a, "F32"), (b, "Q4_K")):
        with GGUFWriter(path) as out:
            out.add("general.architecture", "llama")
            out.add("llama.block_count", 2)
            out.add("name", kind)
            out.add("tokenizer.ggml.tokens", ["a"] * 7)
            out.add_weights("token_embd.weight", weights, kind)
            out.add_weights("blk.0.w.weight", weights, "F32")
    with GGUFFile(a) as one, GGUFFile(b) as two:
        assert diff(one, one)["same"]
        found = diff(one, two)
        assert [row["key"] for row in found["metadata"]] == ["name"]
        (row,) = found["tensors"]
        assert row["name"] == "token_embd.weight" and 0.01 < row["relative_error"] < 0.2
        report = inspect(two)
        text = " ".join(report["warnings"])
        assert "block_count is 2" in text and "7 tokens" in text and "context_length" in text
        mean = (8 * (6 * 2 * 144) + 32 * weights.size) / (2 * weights.size)
        assert report["bits_per_weight"] == pytest.approx(mean)
    with GGUFWriter(a) as out:
        out.add_tensor("t", (2,), "F32", np.array([np.nan, 1], np.float32).view(np.uint8))
    with GGUFFile(a) as one:
        assert any(
            "1 of 2 weights are not finite" in w for w in inspect(one, check=True)["warnings"]
        )


def test_the_command_line(tmp_path, weights, capsys):
    import json

    from qlab.cli import main

    path = tmp_path / "a.gguf"
    with GGUFWriter(path) as out:
        out.add("general.architecture", "llama")
        out.add_weights("w", weights, "Q6_K")
    assert main(["gguf", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"][0]["type"] == "Q6_K" and found["bits_per_weight"] == 6.5625
    assert main(["gguf", "inspect", str(path)]) == 0
    assert "6.5625 bits per weight" in capsys.readouterr().out
    assert main(["gguf", "diff", str(path), str(path)]) == 0
    assert "the same" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:30])
    assert main(["gguf", "inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qlab: ") and error.count("\n") == 1 and "at byte" in error
