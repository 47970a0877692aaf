"""The importance matrix: its definition, its two formats, and files that are not right."""

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab import QlabError
from qlab.cli import main
from qlab.gguf import GGUFError, GGUFFile, GGUFWriter, quantize
from qlab.gguf.imatrix import (
    Entry,
    Imatrix,
    compute_imatrix,
    cut_chunks,
    read_imatrix,
    write_imatrix,
)
from tests.gguf.seeded_models import PROMPTS, seeded_model, tokenizer


def entry(values, count):
    return Entry(np.asarray(values, np.float32).reshape(1, -1), np.array([count]))


@pytest.fixture
def small():
    return Imatrix(
        {"blk.1.b.weight": entry([3.0, 0.0], 6), "blk.0.a.weight": entry([1, 2, 3], 5)},
        chunk_size=4,
        chunks=1,
        datasets=["früh.txt"],
    )


@pytest.fixture(scope="module")
def model():
    return seeded_model("odder", num_hidden_layers=2)


def test_it_is_the_mean_square_of_the_inputs(model):
    """By another way: the inputs themselves, of all layers, one at a time."""
    rng = np.random.default_rng(0)
    chunks = [torch.from_numpy(rng.integers(0, 300, (2, n))) for n in (5, 17)]
    found = compute_imatrix(model, chunks)
    seen = {}
    layer = model.model.layers[1]
    for name, module in (("attn_q", layer.self_attn.q_proj), ("ffn_down", layer.mlp.down_proj)):
        module.register_forward_hook(
            lambda m, args, y, name=name: seen.setdefault(name, []).append(args[0].flatten(0, 1))
        )
    for chunk in chunks:
        with torch.no_grad():
            model(chunk)
    for name, parts in seen.items():
        x = torch.cat(parts).double()
        assert len(x) == 44
        want = x.square().mean(dim=0).float().numpy()
        np.testing.assert_allclose(found[f"blk.1.{name}.weight"], want, rtol=1e-6)
        assert found.entries[f"blk.1.{name}.weight"].counts.tolist() == [44]
    assert (found.chunk_size, found.chunks) == (17, 2)
    # Layers that read the same inputs have the same row.
    assert np.array_equal(found["blk.1.attn_q.weight"], found["blk.1.attn_v.weight"])
    assert not model.model.layers[0].self_attn.q_proj._forward_pre_hooks


def test_the_order_of_the_text_does_not_matter_to_the_first_layer(model):
    """What the first projections read is a function of each token alone: a law of the sums."""
    ids = np.arange(40)
    one = compute_imatrix(model, [ids])["blk.0.attn_q.weight"]
    two = compute_imatrix(model, [ids[::-1].copy()])["blk.0.attn_q.weight"]
    parts = compute_imatrix(model, [ids[:7], ids[7:]])["blk.0.attn_q.weight"]
    np.testing.assert_allclose(two, one, rtol=1e-6)
    np.testing.assert_allclose(parts, one, rtol=1e-6)


def test_tokens_that_cannot_be(model):
    for chunks in ([], [[]], [[300]], [[-1, 2]], [[0.5]], [[[[1]]]]):
        with pytest.raises(QlabError):
            compute_imatrix(model, chunks)
    broken = seeded_model("odder", num_hidden_layers=1)
    with torch.no_grad():
        broken.model.embed_tokens.weight[3] = float("nan")
    with pytest.raises(QlabError, match=r"blk\.0\.attn_q\.weight is not finite"):
        compute_imatrix(broken, [[1, 2, 3]])
    assert not broken.model.layers[0].self_attn.q_proj._forward_pre_hooks


def test_chunks_are_cut_as_llama_imatrix_does():
    words = tokenizer()
    text = " ".join(PROMPTS)
    ids = words(text)["input_ids"]
    assert ids[0] == words.bos_token_id
    chunks = cut_chunks(words, text, 10)
    assert len(chunks) == len(ids) // 10 and {len(c) for c in chunks} == {10}
    for i, chunk in enumerate(chunks):
        assert chunk[0] == words.bos_token_id and chunk[1:] == ids[10 * i + 1 : 10 * i + 10]
    assert cut_chunks(words, "a b", 500) == [words("a b")["input_ids"]]
    with pytest.raises(QlabError):
        cut_chunks(words, text, 1)


@pytest.mark.parametrize("suffix", ["gguf", "dat", "imatrix"])
def test_written_and_read(small, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_imatrix(small, path)
    assert (path.read_bytes()[:4] == b"GGUF") == (suffix != "dat")
    found = read_imatrix(path)
    assert list(found) == ["blk.0.a.weight", "blk.1.b.weight"] and len(found) == 2
    assert found["blk.0.a.weight"].dtype == np.float32
    np.testing.assert_allclose(found["blk.0.a.weight"], np.array([0.2, 0.4, 0.6]), rtol=2e-7)
    assert found.datasets == ("früh.txt",) and found.chunks == 1
    counts = [e.counts.tolist() for e in found.entries.values()]
    assert counts == ([[2], [2]] if suffix == "dat" else [[5], [6]])  # 5 / 4, rounded up


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.tuples(
            st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=4),
            st.integers(1, 10**6),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 1000),
)
def test_any_matrix_comes_back(tmp_path_factory, rows, chunk_size):
    path = tmp_path_factory.mktemp("imatrix") / "a"
    made = Imatrix({k: entry(*v) for k, v in rows.items()}, chunk_size, 3)
    write_imatrix(made, path, "gguf")
    found = read_imatrix(path)
    for name in made:
        assert np.array_equal(found[name], made[name])
    write_imatrix(made, path, "dat")
    old = read_imatrix(path)
    for name in made:  # below 1e-37 there are no 24 bits to keep
        np.testing.assert_allclose(old[name], made[name], rtol=3e-7, atol=1e-37)
    write_imatrix(old, path, "gguf")  # the older one to the newer: chunks become tokens
    again = read_imatrix(path)
    assert again.chunk_size == 512
    for name in made:
        np.testing.assert_allclose(again[name], old[name], rtol=3e-7, atol=1e-37)


def test_experts(tmp_path):
    """Several matrices in one tensor; one that saw nothing counts all columns alike."""
    made = Imatrix(
        {"e": Entry(np.array([[2, 4], [0, 0], [9, 3]], np.float32), np.array([2, 0, 3]))}, 4, 1
    )
    write_imatrix(made, tmp_path / "a")
    found = read_imatrix(tmp_path / "a")
    assert found["e"].tolist() == [[1, 2], [1, 1], [3, 1]]
    assert found.entries["e"].counts.tolist() == [2, 0, 3]


def test_a_row_of_it_is_what_quantize_takes(model):
    found = compute_imatrix(model, [list(range(50))])
    row = found["blk.0.ffn_down.weight"][:64]
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    assert not np.array_equal(quantize(x, "IQ4_NL", row), quantize(x, "IQ4_NL"))


def test_cut_at_any_byte(small, tmp_path):
    path = tmp_path / "a"
    for format in ("gguf", "dat"):
        write_imatrix(small, path, format)
        data = path.read_bytes()
        # Old files end without the last two fields, and llama.cpp takes that.
        ends = len(data) - 8 - len("früh.txt".encode()) if format == "dat" else None
        end = len(data)
        if format == "gguf":
            with GGUFFile(path) as file:
                end = file.data_end  # what follows is padding
        for n in range(end):
            path.write_bytes(data[:n])
            if n == ends:
                assert list(read_imatrix(path)) == list(small)
                continue
            with pytest.raises(GGUFError):
                read_imatrix(path)
        path.write_bytes(data + b"\0")
        if format == "dat":
            with pytest.raises(GGUFError, match="too many"):
                read_imatrix(path)


@pytest.mark.parametrize("format", ["gguf", "dat"])
def test_altered_anywhere(small, tmp_path, format):
    """A right answer or an error, never another exception; no value that is not a mean square."""
    path = tmp_path / "a"
    write_imatrix(small, path, format)
    data = path.read_bytes()
    refused = 0
    for at in range(len(data)):
        for value in (data[at] ^ 1, data[at] ^ 0x80, 0xFF):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                found = read_imatrix(path)
            except GGUFError:
                refused += 1
                continue
            for row in found.values():
                assert row.dtype == np.float32 and np.isfinite(row).all() and (row >= 0).all()
    assert refused > len(data) // 2  # of three times as many; most others change a value


def dat(*entries, end=b""):
    out = struct.pack("<i", len(entries))
    for name, chunks, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", chunks, len(values))
        out += np.asarray(values, "<f4").tobytes()
    return out + end


BROKEN = {
    "nothing": b"",
    "no entries": struct.pack("<i", 0),
    "2^31 - 1 entries": struct.pack("<i", 2**31 - 1) + bytes(20),
    "fewer than none": struct.pack("<i", -5) + bytes(20),
    "a name of 2^31 - 1 bytes": struct.pack("<ii", 1, 2**31 - 1) + bytes(20),
    "a name of -1 bytes": struct.pack("<ii", 1, -1) + bytes(20),
    "a name not UTF-8": dat((b"\xff", 1, [1.0])),
    "a name twice": dat((b"a", 1, [1.0]), (b"a", 1, [1.0])),
    "2^31 - 1 columns": struct.pack("<ii1sii", 1, 1, b"a", 1, 2**31 - 1) + bytes(20),
    "NaN": dat((b"a", 1, [1.0, np.nan])),
    "infinity": dat((b"a", 1, [np.inf])),
    "below zero": dat((b"a", 1, [-1.0])),
    "half an end": dat((b"a", 1, [1.0]), end=bytes(6)),
    "a dataset's name that is cut": dat((b"a", 1, [1.0]), end=struct.pack("<ii", 1, 9) + b"abc"),
    "another file": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_dat_files(tmp_path, name):
    path = tmp_path / "a.dat"
    path.write_bytes(BROKEN[name])
    with pytest.raises(GGUFError) as error:
        read_imatrix(path)
    assert 0 <= error.value.offset <= len(BROKEN[name])


def test_broken_gguf_files(tmp_path):
    path = tmp_path / "a.gguf"

    def write(kind="imatrix", datasets=("a",), size=4, tensors=(("w.in_sum2", [1.0]),), more=()):
        with GGUFWriter(path) as out:
            out.add("general.type", kind)
            out.add("imatrix.datasets", list(datasets), None if datasets else "array[string]")
            out.add("imatrix.chunk_count", 1, "uint32")
            if size is not None:
                out.add("imatrix.chunk_size", size, "uint32" if isinstance(size, int) else None)
            for name, values in (*tensors, *more):
                data = np.asarray(values, np.float32)
                out.add_tensor(name, data.shape, "F32", data.view(np.uint8))

    good = (("w.counts", [4.0]),)
    write(more=good)
    assert read_imatrix(path)["w"].tolist() == [0.25]
    for says, change in [
        ("no importance matrix", {"kind": "model"}),
        ("datasets", {"datasets": [1]}),
        ("chunk_size", {"size": None}),
        ("chunk_size", {"size": "4"}),
        ("not both", {"more": ()}),
        ("not both", {"tensors": ()}),
        ("without entries", {"tensors": (), "more": (("w", [1.0]),)}),
        ("1 sums and 2 counts", {"more": (("w.counts", [1, 1]),)}),
        ("value of -1", {"tensors": (("w.in_sum2", [-1.0]),)}),
        ("value of nan", {"tensors": (("w.in_sum2", [np.nan]),)}),
        ("whole numbers", {"more": (("w.counts", [0.5]),)}),
    ]:  # fmt: skip
        write(**{"more": good, **change})
        with pytest.raises(GGUFError, match=says):
            read_imatrix(path)
    with GGUFWriter(path) as out:
        out.add("general.type", "imatrix")
        out.add("imatrix.datasets", ["a"])
        out.add("imatrix.chunk_count", 1)
        out.add("imatrix.chunk_size", 1)
        out.add_weights("w.in_sum2", np.ones(32, np.float32), "Q8_0")
        out.add_weights("w.counts", np.ones(1, np.float32))
    with pytest.raises(GGUFError, match="Q8_0, not F32"):
        read_imatrix(path)


def test_paths_and_formats(small, tmp_path):
    with pytest.raises(QlabError, match="check the path"):
        read_imatrix(tmp_path / "none")
    with pytest.raises(QlabError, match="cannot be read"):
        read_imatrix(tmp_path)
    with pytest.raises(QlabError, match="choose gguf or dat"):
        write_imatrix(small, tmp_path / "a", "csv")
    with pytest.raises(QlabError, match="without entries"):
        write_imatrix(Imatrix({}, 1, 0), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, capsys):
    words = tokenizer()
    folder, text = tmp_path / "model", tmp_path / "some.txt"
    seeded_model("odder", num_hidden_layers=1).save_pretrained(folder)
    words.save_pretrained(folder)
    text.write_text(" ".join(PROMPTS) + "\n", encoding="utf-8")
    out = tmp_path / "a.dat"
    capsys.readouterr()
    made = ["gguf", "imatrix", str(folder), "--out", str(out)]
    assert main([*made, "--text", str(text), "--chunk", "20", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = read_imatrix(out)
    assert said["matrices"] == len(found) == 7 and said["chunks"] == found.chunks
    assert said["tokens"] == 20 * said["chunks"] and said["chunk_size"] == 20
    assert found.datasets == ("some.txt",)
    for more, says in [
        ([], "exists already"),
        (["--overwrite", "--chunk", "20"], "--chunk cuts a text"),
        (["--overwrite", "--text", str(text), "--chunk", "1000"], "at most 512"),
    ]:
        assert main([*made, *more]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert main([*made, "--overwrite", "--format", "gguf", "--output-matrix"]) == 0
    assert "7 matrices" in capsys.readouterr().out  # tied: no output matrix of its own
    assert out.read_bytes()[:4] == b"GGUF"
