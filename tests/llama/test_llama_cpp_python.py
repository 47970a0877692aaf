"""llama-cpp-python on our files: it still does what the record says, and tells stories."""

import json

import pytest

from qlab import story
from qlab.gguf import load_gguf, to_gguf
from tests.gguf.seeded_models import PROMPTS, seeded_model, tokenizer
from tools import record_llamacpp


def recorded(name):
    return json.loads((record_llamacpp.DATA / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["tied", "odd"])
def test_the_mixes_of_the_record(name, tmp_path):
    to_gguf(seeded_model(name), tokenizer(), tmp_path / "f32.gguf", name=name)
    found = record_llamacpp.quantizations(tmp_path / "f32.gguf")
    assert found == recorded("llamacpp.json")["models"][name]


def test_the_words_of_the_record(tmp_path):
    teller, told = story.load(), recorded("llamacpp_story.json")
    to_gguf(teller.model, teller.tokenizer, tmp_path / "f32.gguf", name="story")
    found = record_llamacpp.telling(tmp_path / "f32.gguf", teller)
    assert found["continuations"] == told["continuations"]
    # Another machine may add float32 numbers in another order.
    assert found["perplexity"] == pytest.approx(told["perplexity"], rel=1e-6)


@pytest.mark.parametrize("mix", ["q8_0", "q4_k_m", "q2_k"])
def test_a_story_told_as_a_reader_would_have_it_told(mix, tmp_path, monkeypatch):
    from llama_cpp import Llama, llama_cpp

    # Built for a processor with AMX (version 0.3.36), llama.cpp crashed in some virtual machines on
    # k-quants that it had made itself, in the copy of the weights that it reorders for AMX.
    default = llama_cpp.llama_model_default_params

    def without_copies():
        params = default()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(llama_cpp, "llama_model_default_params", without_copies)
    teller, path = story.load(), tmp_path / "story.gguf"
    to_gguf(teller.model, teller.tokenizer, path, mix)
    theirs = Llama(str(path), n_ctx=256, n_threads=1, verbose=False)
    text = theirs(PROMPTS[0], max_tokens=24, temperature=0)["choices"][0]["text"]
    model, words = load_gguf(path)
    ours = story.tell(model, words, PROMPTS[0], 24)[len(PROMPTS[0]) :]
    # Inputs rounded to 8 bits may turn a close decision; the first words are no close ones.
    assert text[:12] == ours[:12]
