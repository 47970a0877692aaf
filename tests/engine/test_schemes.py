"""The engine on quantized weights: QTensors, GGUF files, and a cache of int8."""

import numpy as np
import pytest
import torch

import qlab
import qlab.engine
from qlab.engine.weights import Blocks, join
from qlab.errors import QlabError
from qlab.gguf import GGUFError, load_gguf, to_gguf
from qlab.gguf.reader import GGUFFile
from qlab.gguf.writer import GGUFWriter
from tests.gguf.llama_model import LlamaModel
from tests.gguf.seeded_models import seeded_model, tokenizer

from .conftest import make
from .test_engine import CLOSE, draw, greedy, reference

# Kernels for integers round their inputs to 8 bits in blocks of 32: each input is off by up to
# 1/254 of its block's largest. Random models of few bits are the worst case; it stays below this
# share of the logits' own spread.
ROUNDED = 0.06


def spread(found, expected):
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


SCHEMES = [
    "int8-channel", "int8-g32", "int4-g32", "int4-asym-g32", "int4-g64", "int3-g32",
    "int2-asym-g32", "nf4-g64", "ternary-g32", "int4-channel",
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_model(scheme):
    model = make("qwen2", intermediate_size=128)
    small, _ = qlab.quantize_model(model, "rtn", scheme)
    plain = qlab.nn.dequantize_model(small)
    ids = draw(4, 60)
    expected = reference(plain, ids)
    exact = qlab.engine.load(small, exact=True)
    np.testing.assert_allclose(exact.logits(ids), expected, **CLOSE)
    quick = qlab.engine.load(small)
    assert spread(quick.logits(ids), expected) < ROUNDED
    assert quick.nbytes < exact.nbytes or scheme.startswith(("nf4", "int"))
    assert "F32" not in {k for name, k in quick.kinds.items() if name != "output"}


def test_integer_inputs_are_those_of_the_model():
    model = make("llama")
    small, _ = qlab.quantize_model(model, "rtn", "int8-channel", activations="int8-token")
    engine = qlab.engine.load(small)
    assert engine.kinds["blk.0.attn_q"] == "INT8_CHANNEL"
    ids = draw(5, 50)
    # The same integers but where an input lies halfway between two codes.
    assert spread(engine.logits(ids), reference(small, ids)) < 5e-3


def test_greedy_tokens_of_a_quantized_storyteller_are_those_of_transformers(story):
    small, _ = qlab.quantize_model(story.model, "rtn", "int4-g32")
    plain = qlab.nn.dequantize_model(small)
    engine = qlab.engine.load(small, exact=True)
    ids = story.tokenizer("Once upon a time")["input_ids"]
    theirs, gaps = greedy(plain, ids, 200)
    ours = list(engine.generate(ids, 200, stop=()))
    if ours != theirs:
        first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        assert gaps[first] < 2e-4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("gguf"), {}
    for name in ("tied", "odd"):
        for mix in ("f32", "q8_0", "q4_0", "q4_k_m"):
            made[name, mix] = folder / f"{name}-{mix}.gguf"
            to_gguf(seeded_model(name), tokenizer(), made[name, mix], mix, name=name)
    return made


@pytest.mark.oracle("engine logits", "llama.cpp", "nearer to float than twice its distance")
@pytest.mark.parametrize("name", ["tied", "odd"])
@pytest.mark.parametrize("mix", ["f32", "q8_0", "q4_0", "q4_k_m"])
def test_a_gguf_file(files, name, mix):
    path = files[name, mix]
    model, _ = load_gguf(path)
    ids = draw(6, 48, 300)
    expected = reference(model, ids)
    exact = qlab.engine.load(path, exact=True)
    # Their states grow to hundreds, so the logits carry fewer digits than elsewhere.
    assert spread(exact.logits(ids), expected) < 1e-4
    quick = qlab.engine.load(path)
    found = spread(quick.logits(ids), expected)
    with LlamaModel(path) as peer:
        # llama.cpp rounds inputs too. Noise of the same size, drawn twice, and a deep random model
        # that amplifies it: within a factor of two.
        assert found < max(2 * spread(peer.logits(ids.tolist()), expected), 1e-4)
    assert quick.tokenizer.bos_token_id == model.config.bos_token_id


# The 4-bit mixes keep the storyteller's output matrix in Q6_K, whose inputs are rounded in blocks.
# One of them is thirty times as large as most others, and its neighbors share its step: that costs
# 0.4%.
@pytest.mark.parametrize(("mix", "rel"), [("q8_0", 3e-3), ("q4_0", 1e-2), ("q4_k_m", 1e-2)])
def test_perplexity_of_a_file_is_that_of_its_weights(story, tmp_path, mix, rel):
    to_gguf(story.model, story.tokenizer, tmp_path / "s.gguf", mix)
    model, words = load_gguf(tmp_path / "s.gguf")
    texts = story.validation()[:8]
    theirs = qlab.perplexity(model, words, texts)
    assert qlab.engine.load(tmp_path / "s.gguf", exact=True).perplexity(texts) == pytest.approx(
        theirs, rel=1e-5
    )
    assert qlab.engine.load(tmp_path / "s.gguf").perplexity(texts) == pytest.approx(theirs, rel=rel)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_keys_and_values_in_int8(kind):
    model = make(kind)
    engine = qlab.engine.load(model)
    ids = draw(7, 120)
    cache = engine.cache(kind="int8")
    found = np.concatenate([engine.logits(part, cache) for part in np.split(ids, 4)])
    expected = engine.logits(ids)
    assert 0 < spread(found, expected) < ROUNDED
    # One byte a number and a float32 for each vector, where float32 has four.
    wide = -(-engine.sizes.head_dim // 16) * 16
    d = engine.sizes.head_dim
    assert cache.nbytes / engine.cache().nbytes == pytest.approx(
        (d + wide + 8) / (4 * (d + wide)), rel=1e-6
    )
    assert len(list(engine.generate(ids, 20, cache="int8"))) == 20


def test_batches_are_the_texts_one_by_one():
    engine = qlab.engine.load(make("llama"))
    prompts = [draw(i, n) for i, n in enumerate((5, 40, 1, 17))]
    for how in (
        {},
        {"temperature": 1.0, "top_k": 40, "seed": 7},
        {"temperature": 0.8, "repetition_penalty": 1.3, "seed": 7},
    ):
        steps = list(engine.generate_batch(prompts, 30, **how))
        for i, prompt in enumerate(prompts):
            alone = dict(how, seed=7 + i) if how else how
            assert [s[i] for s in steps] == list(engine.generate(prompt, 30, **alone))


def test_texts_that_end_leave_the_others_alone():
    engine = qlab.engine.load(make("llama"))
    prompts = [draw(i, 6) for i in range(3)]
    free = [list(engine.generate(p, 40)) for p in prompts]
    stop = free[0][5]
    steps = list(engine.generate_batch(prompts, 40, stop=[stop]))
    for i, text in enumerate(free):
        end = text.index(stop) if stop in text else 40
        assert [s[i] for s in steps if s[i] is not None] == text[:end]
    assert len(steps) == max(t.index(stop) if stop in t else 40 for t in free)


def test_the_seed_decides():
    engine = qlab.engine.load(make("llama"))
    how = dict(temperature=1.5, max_new_tokens=40)
    ids = draw(1, 9)
    one = list(engine.generate(ids, seed=1, **how))
    assert one == list(engine.generate(ids, seed=1, **how))
    assert len({tuple(engine.generate(ids, seed=s, **how)) for s in range(4)}) == 4
    assert list(engine.generate(ids, temperature=1.0, top_k=1, max_new_tokens=40)) == list(
        engine.generate(ids, 40)
    )


def test_the_number_of_threads_changes_nothing():
    engine = qlab.engine.load(make("llama", hidden_size=256, intermediate_size=512, head_dim=64))
    ids, found = draw(1, 200), []
    for threads in (1, 2):
        engine.threads = threads
        found.append(engine.logits(ids))
    np.testing.assert_array_equal(*found)


def test_joined_matrices_are_the_matrices():
    w = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    for scheme in ("int4-asym-g32", "int8-channel", "nf4-g64"):
        parts = [qlab.quantize(p, scheme) for p in w.split(32)]
        one = join(parts)
        assert torch.equal(one.dequantize(), torch.cat([p.dequantize() for p in parts]))
    assert join([qlab.quantize(w, "int4-g32"), qlab.quantize(w, "int4-g64")]) is None
    assert join([qlab.quantize(p, "int8-tensor") for p in w.split(32)]) is None
    data = np.zeros((3, 34), np.uint8)
    assert join([Blocks(data, "Q8_0"), Blocks(data, "Q4_0")]) is None


def _rewritten(path, out, change):
    """A copy of a GGUF file with other metadata or tensors."""
    with GGUFFile(path) as file, GGUFWriter(out) as made:
        metadata = {k: (file.metadata[k], file.types[k]) for k in file.metadata}
        tensors = {k: t.dequantize() for k, t in file.tensors.items()}
        change(metadata, tensors)
        for key, (value, kind) in metadata.items():
            made.add(key, value, kind)
        for key, x in tensors.items():
            made.add_weights(key, x, "F32")
    return out


def test_files_that_make_no_whole_model(files, tmp_path):
    def other(metadata, tensors):
        metadata["general.architecture"] = ("gpt2", "string")

    def lacks(metadata, tensors):
        del tensors["blk.1.attn_k.weight"]

    def shape(metadata, tensors):
        tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"][:-1]

    def more(metadata, tensors):
        tensors["blk.0.strange.weight"] = np.zeros((2, 2), np.float32)

    def layers(metadata, tensors):
        metadata["llama.block_count"] = (2_000_000_000, "uint32")

    for change, said in (
        (other, "architecture 'gpt2' cannot be loaded"),
        (lacks, "the weight blk.1.attn_k is missing"),
        (shape, "the weight blk.1.ffn_up has shape"),
        (more, "tensor blk.0.strange.weight has no place in a llama"),
        (layers, "2000000000 layers in a file of"),
    ):
        path = _rewritten(files["odd", "f32"], tmp_path / f"{change.__name__}.gguf", change)
        with pytest.raises((GGUFError, QlabError), match=said):
            qlab.engine.load(path)
    with pytest.raises(QlabError):
        qlab.engine.load(tmp_path / "none.gguf")
    (tmp_path / "cut.gguf").write_bytes(files["odd", "f32"].read_bytes()[:5000])
    with pytest.raises(QlabError):
        qlab.engine.load(tmp_path / "cut.gguf")
