"""Models and tokenizers to GGUF and back, with llama.cpp as the reader in between."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlab import gguf, quantize_model, story
from qlab.errors import QlabError
from qlab.gguf import GGUFError, GGUFFile, GGUFWriter
from qlab.gguf.architectures import interleave, uninterleave
from qlab.gguf.convert import to_gguf
from qlab.gguf.inspect import warnings
from qlab.gguf.load import load_gguf
from qlab.gguf.tokenizers import SPLITS, merges_of, read_tokenizer, write_tokenizer
from tests.gguf.llama_model import LlamaModel
from tests.gguf.seeded_models import seeded_model, tokenizer

IDS = [1, *range(5, 200, 2)]
ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS = {
    "Llama, heads that share keys": ("grouped", "llama", {"num_hidden_layers": 3}),
    "Llama, tied": ("tied", "llama", {"num_hidden_layers": 3}),
    "Llama with biases": ("odd", "llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, longer heads": ("odd", "llama", {"head_dim": 32}),
    "Llama 3.1's RoPE": ("odd", "llama", {"rope_parameters": {**ROPE, **LLAMA3}}),
    "linear RoPE": ("odd", "llama", {"rope_parameters": {**ROPE, "rope_type": "linear"}}),
    "YaRN": ("odd", "llama", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}),
    "Mistral": ("odd", "mistral", {}),
    "Qwen2": ("odd", "qwen2", {}),
    "Qwen2 with YaRN": ("odd", "qwen2", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}),
    "Qwen3": ("odd", "qwen3", {"head_dim": 32}),
}


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.engine("export gguf", "qlab")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_through_llamacpp_and_back(name, tmp_path):
    size, kind, changes = MODELS[name]
    model, path = seeded_model(size, kind, **changes), tmp_path / "a.gguf"
    to_gguf(model, tokenizer(), path)
    expected = logits(model, IDS)
    back, _ = load_gguf(path)
    assert np.array_equal(logits(back, IDS), expected)
    with LlamaModel(path, context=128) as theirs:
        # Sums in another order: up to 1e-4 of the largest logit over eight layers of random
        # weights, which amplify more than trained ones do. Another RoPE, bias or head: 0.1 and up.
        error = np.abs(theirs.logits(IDS) - expected).max()
        assert error < 1e-3 * np.abs(expected).max()
    with GGUFFile(path) as file:
        assert [w for w in warnings(file) if "rows in token_embd" not in w] == []


def test_a_file_of_any_type_loads_as_what_it_stands_for(tmp_path):
    model = seeded_model("tied", num_hidden_layers=1)
    weight = model.model.layers[0].mlp.down_proj.weight.detach().numpy()
    for mix in ("f16", "q8_0", "q4_k_s", "iq4_xs", "tq2_0"):
        types = to_gguf(model, tokenizer(), tmp_path / "a.gguf", mix)
        back, _ = load_gguf(tmp_path / "a.gguf")
        kind = types["blk.0.ffn_down.weight"]
        stands_for = gguf.dequantize(gguf.quantize(weight, kind), kind)
        found = back.model.layers[0].mlp.down_proj.weight.detach().numpy()
        assert np.array_equal(found, stands_for)


def test_layers_that_qlab_quantized_are_written_as_what_they_stand_for(tmp_path):
    small, _ = quantize_model(seeded_model("tied", num_hidden_layers=1), "rtn", "int4-g32")
    to_gguf(small, tokenizer(), tmp_path / "a.gguf")
    back, _ = load_gguf(tmp_path / "a.gguf")
    np.testing.assert_allclose(logits(back, IDS), logits(small, IDS), rtol=1e-5, atol=1e-4)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
def test_interleaved_rows_go_back(heads, half, columns):
    rows = np.arange(heads * 2 * half * max(columns, 1), dtype=np.float32)
    rows = rows.reshape(heads * 2 * half, columns) if columns else rows
    turned = interleave(rows, heads)
    assert np.array_equal(uninterleave(turned, heads), rows)
    # Coordinates j and j + d/2 of a head are neighbors then.
    one = np.arange(heads * 2 * half)
    assert interleave(one, heads)[:2].tolist() == [0, half]


# ---- tokenizers

TEXTS = (
    "",
    " ",
    "a",
    "Once upon a time, there was a fox.",
    "  two  spaces   three ",
    " leading and trailing ",
    "tabs\tand\nlines\n\n\n and\r\nreturns",
    "I've we'll THEY'RE he'd it's 'quoted' ’curly’",
    "1 12 123 1234 12345678 3.14 1,000",
    "the fox's moon... (really?!) -- #hashtag @you $5 50%",
    "café naïve Ångström Übermut ﬁ",
    "今天天气很好。我们去公园吧！",
    "привет мир नमस्ते دنیا שלום",
    "🚀 😶\u200d🌫️ 🦙🦙",
    "CamelCaseWords and snake_case_words",
    "\u00a0no-break\u2003em space\u3000",
    "<s> </s> <pad> are text here",
    "a" * 70,
)
STORIES = [s[:600] for s in story.texts("calibration")[:40]]


def byte_level(name):
    """A byte-level tokenizer that cuts words in the way of that name."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    split = SPLITS[name]
    parts = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.pattern:
        parts.append(pre_tokenizers.Split(Regex(split.pattern), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern))
    bpe = Tokenizer(models.BPE(ignore_merges=split.ignore_merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    if name == "qwen2":
        bpe.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*STORIES, *TEXTS], trainer)
    bpe.add_tokens(["<think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=512
    )


def sentencepiece(prefix=True, ends=("<s>", None)):
    """A tokenizer of SentencePiece's kind: bytes, characters, and pieces by their score."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    bpe.train_from_iterator(STORIES, trainer)
    learned = json.loads(bpe.to_str())["model"]
    made = dict.fromkeys("".join(pair) for pair in learned["merges"])
    rest = [token for token in learned["vocab"] if token not in made]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *made, *rest]
    types = [2, 3, 3] + 256 * [6] + (len(made) + len(rest)) * [1]
    scores = [0.0] * 259 + [-float(i) for i in range(len(made) + len(rest))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.add_bos_token": ends[0] is not None,
        "tokenizer.ggml.add_eos_token": ends[1] is not None,
    }


def write_vocabulary(path, tokenizer):
    """A file of a tokenizer and of the hyperparameters that llama.cpp wants to see."""
    with GGUFWriter(path) as out:
        out.add("general.architecture", "llama")
        for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
            out.add(f"llama.{key}", 8, "uint32")
        out.add("llama.attention.head_count", 1, "uint32")
        out.add("llama.attention.layer_norm_rms_epsilon", 1e-5, "float32")
        write_tokenizer(out, tokenizer, len(tokenizer))


def assert_llamacpp_cuts_alike(path, tokenizer, texts=TEXTS):
    with LlamaModel(path, vocabulary_only=True) as theirs:
        for text in texts:
            text = text.replace("<s> </s> <pad>", "<b> </b>")  # these would be tokens
            assert theirs.tokenize(text) == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "gpt-4o"])
def test_byte_level_tokenizers(name, tmp_path):
    made, path = byte_level(name), tmp_path / "a.gguf"
    write_vocabulary(path, made)
    with GGUFFile(path) as file:
        assert file.metadata["tokenizer.ggml.pre"] == name
        back = read_tokenizer(file.metadata, 512)
    assert back.get_vocab() == made.get_vocab()
    for text in (*TEXTS, "<think>so</think><|end|>"):
        assert back(text)["input_ids"] == made(text)["input_ids"], text
        assert back.decode(made(text)["input_ids"]) == made.decode(made(text)["input_ids"])
    assert_llamacpp_cuts_alike(path, made)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("ends", [("<s>", None), (None, None), ("<s>", "</s>")])
def test_tokenizers_of_sentencepieces_kind(prefix, ends, tmp_path):
    metadata, path = sentencepiece(prefix, ends), tmp_path / "a.gguf"
    made = read_tokenizer(metadata, 512)
    write_vocabulary(path, made)
    with GGUFFile(path) as file:
        for key, value in metadata.items():
            assert np.array_equal(file.metadata[key], value), key
    assert_llamacpp_cuts_alike(path, made)
    for text in TEXTS[:13]:
        ids = made(text, add_special_tokens=False)["input_ids"]
        assert made.decode(ids) == text


def test_a_tokenizer_as_transformers_makes_it_for_llama(tmp_path):
    from transformers import LlamaTokenizer

    metadata = sentencepiece()
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores = dict(zip(vocab, metadata["tokenizer.ggml.scores"].tolist(), strict=True))
    pieces = {t: s for t, s in scores.items() if not t.startswith("<")}
    made = LlamaTokenizer(vocab=vocab, merges=merges_of(pieces), add_bos_token=True)
    write_vocabulary(tmp_path / "a.gguf", made)
    # Its Metaspace puts no space before a text that begins with one; SentencePiece does.
    texts = [text for text in TEXTS if not text.startswith(" ")]
    assert_llamacpp_cuts_alike(tmp_path / "a.gguf", made, texts)


def test_the_storytellers_tokenizer_comes_back_equal(tmp_path):
    teller = story.load()
    write_vocabulary(tmp_path / "a.gguf", teller.tokenizer)
    with GGUFFile(tmp_path / "a.gguf") as file:
        back = read_tokenizer(file.metadata, 512)
    there, here = teller.tokenizer.backend_tokenizer, back.backend_tokenizer
    assert json.loads(here.to_str()) == json.loads(there.to_str())
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length"):
        assert getattr(back, name) == getattr(teller.tokenizer, name)
    assert_llamacpp_cuts_alike(tmp_path / "a.gguf", teller.tokenizer)


def test_a_chat_template_comes_along(tmp_path):
    made = byte_level("smollm")
    made.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_vocabulary(tmp_path / "a.gguf", made)
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert read_tokenizer(file.metadata, 512).chat_template == made.chat_template


def changed(tokenizer, **parts):
    """The same tokenizer with parts of its JSON replaced."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    spec = json.loads(tokenizer.backend_tokenizer.to_str()) | parts
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
UNLIKE = {
    "a normalizer": ({"normalizer": {"type": "Lowercase"}}, "normalizes by Lowercase"),
    "another pattern": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": r"\w+"},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    {**LEVEL, "use_regex": False},
                ],
            }
        },
        r"no name for it",
    ),
    "a space before": ({"pre_tokenizer": {**LEVEL, "add_prefix_space": True}}, "no name for it"),
    "whole lines": ({"pre_tokenizer": {**LEVEL, "use_regex": False}}, "no name for it"),
    "no words": ({"pre_tokenizer": None}, "no name for it"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_byte_level_tokenizers_that_llamacpp_would_not_copy(name, tmp_path):
    parts, says = UNLIKE[name]
    with pytest.raises(QlabError, match=says):
        write_vocabulary(tmp_path / "a.gguf", changed(tokenizer(), **parts))
    assert list(tmp_path.iterdir()) == []


def test_merges_that_follow_no_score(tmp_path):
    made = read_tokenizer(sentencepiece(), 512)
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    merges = model["merges"]
    joined = ["".join(pair) for pair in merges]
    first = next(i for i, token in enumerate(joined) if joined.count(token) > 1)
    apart = [*merges[:first], *merges[first + 1 :], merges[first]]  # two pairs of one token
    for wrong in (apart, merges[1::2]):
        with pytest.raises(QlabError, match="no SentencePiece"):
            write_vocabulary(tmp_path / "a.gguf", changed(made, model={**model, "merges": wrong}))


def test_a_tokenizer_of_another_kind(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(QlabError, match="WordLevel"):
        write_vocabulary(tmp_path / "a.gguf", made)


# ---- bad input


def test_models_that_gguf_has_no_place_for(tmp_path):
    out = tmp_path / "a.gguf"
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=300))
    with pytest.raises(QlabError, match=r"type 'gpt2'.*llama, mistral, qwen2, qwen3"):
        to_gguf(gpt2, tokenizer(), out)
    for kind, changes, says in [
        ("llama", {"hidden_act": "gelu"}, "silu only"),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, "'dynamic'"),
        ("qwen2", {"rope_parameters": {**ROPE, **LLAMA3}}, "'llama3'"),
        ("qwen3", {"attention_bias": True}, "o_proj' has a bias"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "sliding"),
        ("llama", {"vocab_size": 40}, "40 rows of embeddings"),
    ]:
        with pytest.raises(QlabError, match=says):
            to_gguf(seeded_model("odd", kind, **changes), tokenizer(), out)
    more = seeded_model("odd", num_hidden_layers=1)
    more.model.layers[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(QlabError, match="extra"):
        to_gguf(more, tokenizer(), out)
    assert list(tmp_path.iterdir()) == []


def rewritten(path, out, metadata=(), tensors=(), without=()):
    """The file with some values and tensors replaced or left out."""
    with GGUFFile(path) as file, GGUFWriter(out) as new:
        values = {k: (file.metadata[k], file.types[k]) for k in file.metadata} | dict(metadata)
        for key, (value, kind) in values.items():
            if key not in without:
                new.add(key, value, kind)
        for name, tensor in file.tensors.items():
            if name not in without:
                new.add_weights(name, tensor.dequantize(), "F32")
        for name, weights in dict(tensors).items():
            new.add_weights(name, weights, "F32")
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    to_gguf(seeded_model("odd", num_hidden_layers=1), tokenizer(), path)
    return path


U32 = "uint32"
WRONG = {
    "an unknown architecture": (
        {"metadata": {"general.architecture": ("falcon", "string")}},
        r"'falcon'.*llama, qwen2, qwen3",
    ),
    "no architecture": ({"without": ["general.architecture"]}, "None.*llama"),
    "no block_count": ({"without": ["llama.block_count"]}, "block_count"),
    "a billion layers": ({"metadata": {"llama.block_count": (10**9, U32)}}, "weights"),
    "wide": ({"metadata": {"llama.embedding_length": (2**20, U32)}}, "weights"),
    "no heads": ({"metadata": {"llama.attention.head_count": (0, U32)}}, "head_count"),
    "heads that do not share": ({"metadata": {"llama.attention.head_count_kv": (3, U32)}}, "share"),
    "a text for a number": ({"metadata": {"llama.context_length": ("a", "string")}}, "number"),
    "half a head turned": ({"metadata": {"llama.rope.dimension_count": (8, U32)}}, "part of"),
    "an unknown RoPE": ({"metadata": {"llama.rope.scaling.type": ("longrope", "string")}}, "RoPE"),
    "a tensor missing": ({"without": ["blk.0.attn_v.weight"]}, "attn_v.weight is missing"),
    "no embeddings": ({"without": ["token_embd.weight"]}, "token_embd"),
    "a tensor more": ({"tensors": {"blk.0.x.weight": np.ones(3)}}, "blk.0.x.weight"),
    "other factors of RoPE": ({"tensors": {"rope_freqs.weight": np.arange(1, 13.0)}}, "rope_freqs"),
    "no tokens": ({"without": ["tokenizer.ggml.tokens"]}, "tokenizer.ggml.tokens"),
    "an unknown tokenizer": ({"metadata": {"tokenizer.ggml.model": ("t5", "string")}}, "'t5'"),
    "unknown words": ({"metadata": {"tokenizer.ggml.pre": ("viking", "string")}}, "'viking'"),
    "an id too large": ({"metadata": {"tokenizer.ggml.bos_token_id": (300, U32)}}, "300"),
    "a token twice": (
        {"metadata": {"tokenizer.ggml.tokens": (["a"] * 300, "array[string]")}},
        "twice",
    ),
    "merges of nothing": (
        {"metadata": {"tokenizer.ggml.merges": (["qq zz"], "array[string]")}},
        "fit together",
    ),
    "merges that are no pairs": (
        {"metadata": {"tokenizer.ggml.merges": (["q"], "array[string]")}},
        "not a pair",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_no_model(name, small, tmp_path):
    changes, says = WRONG[name]
    path = rewritten(small, tmp_path / "a.gguf", **changes)
    with pytest.raises(GGUFError, match=says):
        load_gguf(path)


def test_a_write_that_fails_leaves_nothing(tmp_path):
    model = seeded_model("odd", num_hidden_layers=1)
    model.model.layers[0].mlp.up_proj.weight.data[3, 3] = torch.nan
    with pytest.raises(QlabError, match="NaN"):
        to_gguf(model, tokenizer(), tmp_path / "a.gguf", "q8_0")
    assert list(tmp_path.iterdir()) == []


# ---- the command line


def test_the_commands(tmp_path, capsys, monkeypatch):
    import qlab
    from qlab.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["quantize", "story", "--scheme", "q4_k_m", "--out", "a.gguf", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["scheme"] == "q4_k_m" and 4.5 < about["bits_per_weight"] < 6
    assert about["size_bytes"] == (tmp_path / "a.gguf").stat().st_size
    loaded = qlab.load("a.gguf")
    assert main(["tell", "a.gguf", "--max-tokens", "4"]) == 0
    told = capsys.readouterr().out
    assert told.strip() == story.tell(loaded.model, loaded.tokenizer, "Once upon a time", 4).strip()
    (tmp_path / "a.txt").write_text("The fox and the moon went for a walk.")
    assert main(["eval", "a.gguf", "--text", "a.txt", "--reference", "story", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["model"] == "a.gguf" and 0 < row["kl"] < 1
    for argv, says in [
        (["--scheme", "q4_k_m", "--out", "folder"], "FILE.gguf"),
        (["--scheme", "int4-g128", "--out", "b.gguf"], "no GGUF mix"),
        (["--scheme", "q4_k_m", "--method", "rtn", "--out", "b.gguf"], "--method"),
        (["--scheme", "q4_k_m", "--out", "a.gguf"], "exists already"),
        (["--scheme", "int4-g128", "--imatrix", "x", "--out", "b"], "--imatrix"),
        (["--scheme", "q2_k_s", "--out", "b.gguf"], "importance matrix"),
    ]:
        assert main(["quantize", "story", *argv]) == 2
        error = capsys.readouterr().err
        assert error.startswith("qlab: ") and error.count("\n") == 1 and says in error, error
    assert main(["tell", "none.gguf"]) == 2
    assert "no file at" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "a.txt"]
