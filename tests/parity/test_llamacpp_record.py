"""The storyteller as GGUF against llama.cpp: recorded files and words, and words told here.

tools/record_llamacpp.py wrote the record with llama-cpp-python. What runs here is llama.cpp too:
the prebuilt one inside xllamacpp.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
import torch

import qlab
from qlab.gguf import GGUFFile, block_type, quantize
from qlab.gguf.convert import to_gguf
from qlab.gguf.load import load_gguf
from qlab.gguf.mixes import MIXES
from tests.gguf.llama_model import LlamaModel
from tests.gguf.seeded_models import PROMPTS, runs, seeded_importance

RECORD = Path(__file__).parent / "data" / "llamacpp_story.json"
REMEDY = "the storyteller changed: run tools/record_llamacpp.py story"


@cache
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def teller():
    return qlab.story.load()


@pytest.fixture(scope="module")
def file(teller, tmp_path_factory):
    path = tmp_path_factory.mktemp("story") / "story.gguf"
    to_gguf(teller.model, teller.tokenizer, path, name="story")
    return path


def greedy(model, ids, count):
    """transformers' own: token ids, each the likeliest."""
    new, step, past = [], torch.tensor([ids]), None
    with torch.no_grad():
        for _ in range(count):
            out = model(input_ids=step, past_key_values=past, use_cache=True)
            new.append(int(out.logits[0, -1].argmax()))
            step, past = torch.tensor([new[-1:]]), out.past_key_values
    return new


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_the_file_is_that_of_the_record(file):
    assert sha256(file) == record()["model"]["f32"], REMEDY


@pytest.mark.parametrize("mix", MIXES)
def test_each_mix_is_the_file_that_llamacpp_made(mix, teller, tmp_path):
    """Those that need an importance matrix are refused without."""
    told, path = record()["model"]["mixes"][mix], tmp_path / "a.gguf"
    try:
        types = to_gguf(teller.model, teller.tokenizer, path, mix, name="story")
    except qlab.QlabError as error:
        assert told is None and "importance matrix" in str(error)
        assert list(tmp_path.iterdir()) == []
        return
    assert runs(types) == told["types"]
    assert sha256(path) == told["file"], REMEDY


@pytest.mark.parametrize("mix", [m for m in MIXES if m.startswith(("iq1", "iq2", "iq3"))])
def test_each_mix_with_importance_is_the_file_that_llamacpp_made(mix, teller, file, tmp_path):
    told, path = record()["model"]["with importance"][mix], tmp_path / "a.gguf"
    with GGUFFile(file) as whole:
        rows = seeded_importance({t.name: t.shape for t in whole.tensors.values()})
    types = to_gguf(teller.model, teller.tokenizer, path, mix, rows, name="story")
    assert runs(types) == told["types"]
    assert sha256(path) == told["file"], REMEDY


def test_each_tensor_has_llamacpps_bytes(file):
    with GGUFFile(file) as story:
        for kind, told in record()["model"]["tensors"].items():
            for tensor in ("token_embd.weight", "blk.2.ffn_down.weight", "blk.3.attn_q.weight"):
                if tensor in told and block_type(kind).can_encode:
                    made = quantize(story.tensors[tensor].dequantize(), kind).tobytes()
                    assert hashlib.sha256(made).hexdigest().startswith(told[tensor]), (tensor, kind)


def test_continuations_are_llamacpps_token_for_token(file, teller):
    with LlamaModel(file) as theirs:
        for prompt in PROMPTS:
            told = record()["continuations"][prompt]
            ids = teller.tokenizer(prompt)["input_ids"]
            assert theirs.tokenize(prompt) == told["prompt"] == ids
            expected = greedy(teller.model, ids, len(told["continuation"]))
            assert told["continuation"] == expected, REMEDY
            assert theirs.continue_greedily(ids, 20) == expected[:20]


def test_perplexity_is_llamacpps(teller):
    texts = teller.validation()[: record()["texts"]]
    found = qlab.perplexity(teller.model, teller.tokenizer, texts)
    # float32 sums in another order; 1e-3 is the promise, and this is what they keep.
    assert found == pytest.approx(record()["perplexity"], rel=1e-5), REMEDY


@pytest.mark.engine("export gguf", "llama.cpp")
@pytest.mark.parametrize("mix", ["q8_0", "q4_k_m", "q2_k", "iq4_xs"])
def test_llamacpp_reads_in_a_mix_what_we_read(mix, teller, tmp_path):
    """It computes with inputs rounded to 8 bits, so the logits are close and not equal."""
    path = tmp_path / "a.gguf"
    to_gguf(teller.model, teller.tokenizer, path, mix)
    model, _ = load_gguf(path)
    ids = teller.tokenizer(teller.validation()[0])["input_ids"][:60]
    with torch.no_grad():
        ours = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        whole = torch.log_softmax(teller.model(torch.tensor([ids])).logits[0], -1)
    with LlamaModel(path, context=64) as theirs:
        found = torch.log_softmax(torch.from_numpy(theirs.logits(ids)), -1)
    kl = (found.exp() * (found - ours)).sum(-1).mean()
    # These mixes give the output matrix Q6_K, whose inputs share a step in blocks of 256. One input
    # of the storyteller's there is thirty times as large as most, so it moves more than elsewhere.
    assert kl < (0.005 if mix == "q8_0" else 0.02)
    if mix != "q8_0":  # what the weights lost is more than what the rounded inputs do
        assert kl < 0.6 * (whole.exp() * (whole - ours)).sum(-1).mean()


@pytest.mark.engine("export gguf", "transformers")
def test_transformers_loads_our_files(file, teller, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to_gguf(teller.model, teller.tokenizer, tmp_path / "small.gguf", "q4_k_m")
    for path in (file, tmp_path / "small.gguf"):
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
        words = AutoTokenizer.from_pretrained(**where)
        ours, _ = load_gguf(path)
        for text in (PROMPTS[0], *teller.validation()[:3]):
            ids = teller.tokenizer(text)["input_ids"][:100]
            assert words(text)["input_ids"][:100] == ids
            with torch.no_grad():
                one = theirs(torch.tensor([ids])).logits
                two = ours(torch.tensor([ids])).logits
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)
