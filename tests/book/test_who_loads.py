"""Who loads what: the record of tools/record_who_loads.py, and the cells that run here."""

from __future__ import annotations

import json
import math
import re

import pytest

import qlab
from qlab.viz.who_loads import MARKS, NOT_TRIED, WORDS, status_of
from tools import record_who_loads as who
from tools.toolbox import loaders
from tools.weights import weights_hash

RECORD = json.loads(who.RECORD.read_text("utf-8"))
AGAIN = "run tools/record_who_loads.py"


def test_the_record_is_of_the_weights_that_are_shipped():
    assert RECORD["weights"] == weights_hash(), AGAIN
    assert list(RECORD["ours"]) == list(who.FILES), AGAIN
    assert set(RECORD["engines"]) <= set(who.ENGINES)


def test_a_cell_is_a_number_or_a_reason():
    for engine, about in RECORD["engines"].items():
        assert set(about["cells"]) == set(who.FILES), (engine, AGAIN)
        assert about["version"]
        for name, cell in about["cells"].items():
            if cell["status"] == "refuses":
                assert cell["why"] and "\n" not in cell["why"]
                assert not re.search(r"/(tmp|root|home|work)/", cell["why"]), cell["why"]
                continue
            ours = RECORD["ours"][name]
            near = abs(cell["perplexity"] / ours - 1) <= who.AGREES
            assert cell["status"] == ("agrees" if near else "differs")
            assert math.isfinite(cell["perplexity"])


def agreeing(engine):
    return {n for n in RECORD["ours"] if status_of(RECORD, engine, n) == "agrees"}


@pytest.mark.engine("export gguf", "qlab engine (recorded)")
def test_qlabs_engine_reads_all_that_qlab_writes_but_onnx():
    """And but inputs of other kinds than its integer products have: a static range, and fp8."""
    inputs = (None, "int8-token")
    own = {n for n, f in who.FILES.items() if f.kind != "onnx" and f.activations in inputs}
    assert own == agreeing("qlab engine")


@pytest.mark.engine("export gguf", "llama.cpp (recorded)")
def test_llama_cpp_reads_every_gguf_file_and_nothing_else():
    assert agreeing("llama.cpp") == {n for n, f in who.FILES.items() if f.kind == "gguf"}


@pytest.mark.engine("export onnx", "ONNX Runtime (recorded)")
def test_onnx_runtime_reads_every_onnx_file_and_nothing_else():
    assert agreeing("ONNX Runtime") == {n for n, f in who.FILES.items() if f.kind == "onnx"}


@pytest.mark.engine("export gptq", "GPTQModel (recorded)")
def test_gptqmodel_reads_the_folders_in_its_layout():
    assert {"GPTQ 4 bits", "GPTQ v2 4 bits"} <= agreeing("gptqmodel")


def test_every_status_has_a_word_and_a_mark():
    assert set(WORDS) == set(MARKS) == {"agrees", "differs", "refuses", NOT_TRIED}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"perplexity": 30.2}, "agrees"),
        ({"perplexity": 31.2}, "differs"),
        ({"refused": "ValueError: no"}, "refuses"),
    ],
)
def test_what_a_cell_is_called(found, status):
    assert who.cell(found, 30.0)["status"] == status


def test_a_refusal_is_one_line_without_folders(tmp_path):
    error = ValueError(f"====\ncannot read {tmp_path / 'model'}\nbecause")
    assert loaders.first_line(error, tmp_path / "model") == "ValueError: cannot read FILE"
    assert loaders.first_line(ValueError(""), tmp_path) == "ValueError: no message"


def test_an_engine_that_ends_the_process_leaves_a_mark(tmp_path, monkeypatch):
    """The file that ends it is known by its mark, and the next call goes on behind it."""
    (tmp_path / "texts.json").write_text("[[1, 2, 3]]")
    (tmp_path / "files.json").write_text(json.dumps({"a": "a.x", "b": "b.x"}))

    def load(path):
        if path.name == "a.x":
            raise SystemExit(3)
        return math.log(2) * 2  # nats for two tokens

    monkeypatch.setitem(loaders.ENGINES, "broken", load)
    monkeypatch.setattr(loaders, "TEXTS", [])
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["loaders.py", "broken", str(tmp_path), str(out)])
    with pytest.raises(SystemExit):
        loaders.main()
    assert json.loads(out.read_text()) == {"a": {"refused": "the process ended without a word"}}
    loaders.TEXTS.clear()
    loaders.main()
    assert json.loads(out.read_text())["b"]["perplexity"] == pytest.approx(2)


@pytest.mark.parametrize("name", ["GPTQ v2 4 bits", "AWQ 4 bits", "GGUF Q8_0"])
def test_a_file_comes_back_as_it_was_written(tiny, tmp_path, name):
    """On a small random model: what ``save`` writes, ``qlab.load`` reads, and says the same."""
    from types import SimpleNamespace

    from qlab.nn import linear_layers

    model, tokenizer = tiny
    file, source = who.FILES[name], model
    if file.method:
        scheme = file.scheme.replace("g128", "g32")
        source = qlab.quantize_model(model, "rtn", scheme)[0]
    out = tmp_path / ("x.gguf" if file.kind == "gguf" else "x")
    kept = who.save(file, source, SimpleNamespace(model=model, tokenizer=tokenizer), out)
    texts = [[1, 5, 7, 9, 11, 3, 8]]
    again = who.perplexity_of(qlab.load(out).model, texts)
    assert again == pytest.approx(who.perplexity_of(kept, texts), rel=1e-5)
    assert linear_layers(model)
