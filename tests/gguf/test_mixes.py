"""The mixes against what llama_model_quantize made of the same models.

tools/record_llamacpp.py wrote the record; it needs llama-cpp-python, which these tests do not.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.errors import QlabError
from qlab.gguf import GGUFFile, block_type, quantize
from qlab.gguf.convert import to_gguf
from qlab.gguf.mixes import MIXES, Facts, choose_types, get_mix, is_mix, use_more_bits
from tests.gguf.seeded_models import SIZES, runs, seeded_importance, seeded_model, tokenizer

RECORD = Path(__file__).parents[1] / "parity" / "data" / "llamacpp.json"


@cache
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))["models"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (model, path of its F32 file)."""
    folder, found = tmp_path_factory.mktemp("seeded"), {}
    for name in SIZES:
        model = seeded_model(name)
        to_gguf(model, tokenizer(), folder / f"{name}.gguf", name=name)
        found[name] = model, folder / f"{name}.gguf"
    return found


def facts(name, importance):
    size = SIZES[name]
    heads, kv_heads = size["num_attention_heads"], size["num_key_value_heads"]
    layers = size["num_hidden_layers"]
    return Facts(
        layers, heads // kv_heads, size["tie_word_embeddings"], importance, seventy=layers == 80
    )


def shapes(path):
    with GGUFFile(path) as file:
        return {t.name: t.shape for t in file.tensors.values()}


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", SIZES)
def test_the_models_are_those_of_the_record(models, name):
    assert sha256(models[name][1]) == record()[name]["f32"], "run tools/record_llamacpp.py seeded"


@pytest.mark.parametrize("part", ["mixes", "with importance"])
@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_has_the_type_that_llamacpp_gives_it(models, name, part):
    """All mixes, those with types that are not written here included."""
    there = shapes(models[name][1])
    for mix in MIXES.values():
        told = record()[name][part][mix.name]
        try:
            types = choose_types(mix, there, facts(name, part == "with importance"))
        except QlabError:
            assert told is None, mix.name
            continue
        if told is None:  # refused for want of a row of importance, which to_gguf looks at
            assert mix.name == "q1_0", mix.name
        assert runs(types) == told["types"], mix.name


@pytest.mark.parametrize("name", ["grouped", "tied", "odd", "odder"])
def test_every_tensor_has_the_bytes_that_llamacpp_gives_it(models, name):
    """Of the first and the last layer; the tests of whole files below see the others."""
    compared = 0
    ends = ("blk.0.", f"blk.{SIZES[name]['num_hidden_layers'] - 1}.")
    with GGUFFile(models[name][1]) as file:
        for kind, told in record()[name]["tensors"].items():
            if not block_type(kind).can_encode:
                continue
            for tensor, digits in told.items():
                if tensor.startswith("blk.") and not tensor.startswith(ends):
                    continue
                made = quantize(file.tensors[tensor].dequantize(), kind)
                found = hashlib.sha256(made.tobytes()).hexdigest()
                assert found.startswith(digits), (tensor, kind)
                compared += 1
    assert compared > 20


# One of each kind, and those whose rules ask whether there is an importance matrix.
FILES = [
    *(("grouped", mix, False) for mix in ("f16", "bf16", "q8_0", "q4_k_m", "q3_k_l", "iq4_xs")),
    *(("tied", mix, False) for mix in ("q4_0", "q5_1", "q2_k", "q5_k_m", "q6_k", "iq4_nl")),
    *(("tied", mix, True) for mix in ("q4_0", "q5_0", "q2_k_s", "q4_k_m", "iq4_xs", "iq4_nl")),
    *(("tied", mix, False) for mix in ("iq3_s", "iq3_m")),
    *(("tied", mix, True) for mix in MIXES if mix.startswith(("iq1", "iq2", "iq3"))),
    *(("grouped", mix, True) for mix in ("iq2_m", "iq3_xs")),
    *(("odd", mix, False) for mix in ("q4_k_m", "q2_k", "tq2_0", "q5_k_s")),
    *(("odder", mix, False) for mix in ("q4_k_m", "q4_0")),
]


@pytest.mark.parametrize(("name", "mix", "importance"), FILES)
def test_the_file_is_llamacpps_to_the_last_byte(models, tmp_path, name, mix, importance):
    model, path = models[name]
    rows = seeded_importance(shapes(path)) if importance else None
    to_gguf(model, tokenizer(), tmp_path / "a.gguf", mix, rows, name=name)
    part = "with importance" if importance else "mixes"
    assert sha256(tmp_path / "a.gguf") == record()[name][part][mix]["file"]


def test_a_mix_needs_what_it_needs(models, tmp_path):
    model, path = models["grouped"]
    out = tmp_path / "a.gguf"
    rows = seeded_importance(shapes(path))
    with pytest.raises(QlabError, match="importance matrix"):
        to_gguf(model, tokenizer(), out, "q2_k_s")
    missing = {k: v for k, v in rows.items() if k != "blk.3.attn_q.weight"}
    with pytest.raises(QlabError, match=r"no row for blk\.3\.attn_q\.weight"):
        to_gguf(model, tokenizer(), out, "q2_k_s", missing)
    with pytest.raises(QlabError, match="names no tensor"):
        to_gguf(model, tokenizer(), out, "q4_k_m", {"blk.99.attn_q.weight": rows.popitem()[1]})
    with pytest.raises(QlabError, match=r"shape \(7,\)"):
        to_gguf(model, tokenizer(), out, "q4_k_m", {"blk.0.attn_q.weight": np.ones(7)})
    with pytest.raises(QlabError, match="no GGUF mix is called 'q4_k_x': did you mean q4_k"):
        to_gguf(model, tokenizer(), out, "q4_k_x")
    assert list(tmp_path.iterdir()) == []


def test_words(models):
    assert get_mix("Q4_K_M") is get_mix("q4_k") is MIXES["q4_k_m"]
    assert is_mix("IQ4_XS") and not is_mix("int4-g128")


@given(st.integers(1, 200))
def test_a_third_of_the_middle_and_both_ends_get_more_bits(layers):
    more = [use_more_bits(i, layers) for i in range(layers)]
    first, last = layers // 8, layers - 7 * layers // 8
    assert all(more[:first]) and all(more[layers - last :])
    middle = more[first : layers - last]
    assert sum(middle) == len(middle) // 3


MATRICES = st.dictionaries(
    st.sampled_from(["attn_q", "attn_k", "attn_v", "attn_output", "ffn_down", "ffn_gate"]),
    st.tuples(st.integers(2, 4), st.integers(1, 40).map(lambda n: 8 * n)),
    min_size=1,
)


@given(MATRICES, st.integers(1, 20), st.sampled_from(sorted(MIXES)), st.booleans(), st.booleans())
def test_any_shape_gets_a_type_whose_blocks_fit(matrices, layers, mix, tied, importance):
    """And more words in the output: its type is never of fewer bits than the base."""
    mix = MIXES[mix]
    there = {f"blk.{i}.{k}.weight": s for i in range(layers) for k, s in matrices.items()}
    there |= {"token_embd.weight": (9, 256), "output_norm.weight": (256,)}
    if not tied:
        there["output.weight"] = (9, 256)
    try:
        types = choose_types(mix, there, Facts(layers, 1, tied, importance))
    except QlabError as error:
        assert "importance matrix" in str(error) or "no multiple" in str(error)
        return
    assert list(types) == list(there) and types["output_norm.weight"] == "F32"
    for name, kind in types.items():
        assert there[name][-1] % block_type(kind).block_size == 0
    output = block_type(types["token_embd.weight" if tied else "output.weight"])
    assert output.bits_per_weight() >= block_type(mix.base).bits_per_weight()
