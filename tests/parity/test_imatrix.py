"""The importance matrix against llama-imatrix's own, recorded by tools/record_imatrix.py."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qlab.gguf.convert import to_gguf
from qlab.gguf.imatrix import compute_imatrix, cut_chunks, read_imatrix, write_imatrix
from tests.gguf.imatrix_cases import CASES, CHUNK, text
from tests.gguf.seeded_models import seeded_model, tokenizer

DATA = Path(__file__).parent / "data"


@cache
def ours(case):
    model = seeded_model(**CASES[case])
    chunks = cut_chunks(tokenizer(), text(), CHUNK)
    return compute_imatrix(model, chunks, output=True, datasets=["text.txt"])


def test_the_record_is_of_these_cases():
    note = json.loads((DATA / "imatrix.json").read_text(encoding="utf-8"))
    assert note["cases"] == list(CASES) and note["chunk"] == CHUNK


@pytest.mark.parametrize("case", CASES)
def test_it_is_llama_cpps_to_rounding(case):
    """Same matrices, same counts, and sums that differ as two orders of float32 additions do.

    Both add some hundred squares, and a forward pass of float32 differs in the last bits: 1e-4
    leaves room for another torch, and a wrong token or column would be off by tens of percent.
    """
    theirs, mine = read_imatrix(DATA / f"imatrix_{case}.gguf"), ours(case)
    assert list(mine) == list(theirs)
    assert (mine.chunk_size, mine.chunks) == (theirs.chunk_size, theirs.chunks)
    assert mine.datasets == theirs.datasets
    for name in theirs:
        assert np.array_equal(mine.entries[name].counts, theirs.entries[name].counts)
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4)


def test_which_matrices_there_are():
    """All of the layers; the output matrix, if it is not the embeddings; no norms."""
    parts = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")
    layers = [f"blk.{i}.{part}.weight" for i in range(2) for part in parts]
    assert list(read_imatrix(DATA / "imatrix_llama.gguf")) == [*layers, "output.weight"]
    assert list(read_imatrix(DATA / "imatrix_tied.gguf")) == layers


@pytest.mark.parametrize("case", CASES)
def test_files_are_the_same_bytes(case, tmp_path):
    """What was read from one format is written in each as llama-imatrix writes it."""
    found = read_imatrix(DATA / f"imatrix_{case}.gguf")
    for suffix in ("gguf", "dat"):
        write_imatrix(found, tmp_path / f"a.{suffix}")
        want = (DATA / f"imatrix_{case}.{suffix}").read_bytes()
        assert (tmp_path / f"a.{suffix}").read_bytes() == want
    old = read_imatrix(DATA / f"imatrix_{case}.dat")
    write_imatrix(old, tmp_path / "b.dat")
    assert (tmp_path / "b.dat").read_bytes() == (tmp_path / "a.dat").read_bytes()
    for name in found:  # the older format divides and multiplies once more
        np.testing.assert_allclose(old[name], found[name], rtol=3e-7)


def test_a_model_is_quantized_with_it(tmp_path):
    """The mix that llama.cpp makes only with an importance matrix takes ours and the recorded."""
    model, words = seeded_model(**CASES["qwen3"]), tokenizer()
    theirs = read_imatrix(DATA / "imatrix_qwen3.gguf")
    for name, importance in (("plain", None), ("ours", ours("qwen3")), ("theirs", theirs)):
        to_gguf(model, words, tmp_path / name, "q4_k_s", importance)
    plain, mine, recorded = ((tmp_path / n).read_bytes() for n in ("plain", "ours", "theirs"))
    assert len(plain) == len(mine) and plain != mine
    # Rounding may tip a search somewhere; it must not do so in many places.
    differ = np.frombuffer(mine, np.uint8) != np.frombuffer(recorded, np.uint8)
    assert differ.mean() < 0.01
