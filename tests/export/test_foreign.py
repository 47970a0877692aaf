"""Folders for others: read back by qlab, by compressed-tensors and by transformers."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import qlab
from qlab.export import layouts
from qlab.export.foreign import load_foreign, save_foreign
from qlab.export.words import awq_interleave, awq_restore, pack_words, unpack_words
from qlab.nn import QuantLinear, quant_layers
from tests.models import random_model


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.integers(1, 70), st.integers(0, 99))
def test_words_come_back_and_are_those_of_compressed_tensors(bits, rows, count, seed):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    torch.manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, count))
    words = pack_words(codes, bits)
    assert torch.equal(unpack_words(words, bits, count).int(), codes.int())
    signed = (codes - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(words, pack_to_int32(signed, bits))


def test_awq_takes_even_and_odd_codes_apart():
    codes = torch.arange(16)[None] % 16
    packed = pack_words(awq_interleave(codes), 4)
    # Nibbles 0 ... 3 hold codes 0, 2, 4, 6; nibbles 4 ... 7 codes 1, 3, 5, 7.
    nibbles = [(int(packed[0, 0]) >> 4 * i) & 15 for i in range(8)]
    assert nibbles == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(awq_restore(awq_interleave(codes)), codes)


def layer_of(scheme, rows=64, columns=128, bias=True):
    torch.manual_seed(0)
    w = torch.randn(rows, columns) * torch.rand(rows, 1)
    return QuantLinear(qlab.quantize(w, scheme), torch.randn(rows) if bias else None)


@pytest.mark.parametrize("granularity", ["channel", "g32"])
@pytest.mark.parametrize("word", ["int2", "int3", "int4", "int8", "int4-asym", "int3-asym"])
def test_gptq_says_what_qlab_says(word, granularity):
    layer = layer_of(f"{word}-{granularity}-sfp16")
    for version in (1, 2):
        try:
            found = layouts.to_gptq(layer, version)
        except qlab.QlabError as error:
            assert version == 1
            assert "gptq_v2" in str(error)
            continue
        # The layout's own definition, in the open: ŵ = scale (code - zero).
        bits, size = layer.scheme.format.bits, layer.in_features // found["scales"].shape[0]
        codes = unpack_words(found["qweight"].T.contiguous(), bits, 128).int()
        zeros = unpack_words(found["qzeros"], bits, 64).int() + (version == 1)
        group = found["g_idx"].long()
        assert torch.equal(group, torch.arange(128) // size)
        w = found["scales"].T[:, group].float() * (codes - zeros.T[:, group])
        assert torch.equal(w, layer.weight)
        symmetric = layer.scheme.symmetric
        back = layouts.from_gptq(found, bits, symmetric, version, "float32")
        assert torch.equal(back.dequantize(), layer.weight)


def test_awq_says_what_qlab_says():
    layer = layer_of("int4-asym-g32-sfp16")
    found = layouts.to_awq(layer)
    codes = awq_restore(unpack_words(found["qweight"], 4, 64)).int()  # (in, out)
    zeros = awq_restore(unpack_words(found["qzeros"], 4, 64)).int()
    group = torch.arange(128) // 32
    w = (codes - zeros[group]) * found["scales"][group].float()
    assert torch.equal(w.T, layer.weight)
    assert torch.equal(layouts.from_awq(found, "float32").dequantize(), layer.weight)


@pytest.mark.parametrize("word", ["int4", "int3", "int8", "int2", "int4-asym", "int8-asym"])
@pytest.mark.parametrize("granularity", ["channel", "g32"])
def test_compressed_tensors_decompresses_what_qlab_says(word, granularity):
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    layer = layer_of(f"{word}-{granularity}", bias=False)
    found = layouts.to_compressed(layer, torch.float32)
    args = QuantizationArgs(
        num_bits=layer.scheme.format.bits,
        symmetric=layer.scheme.symmetric,
        strategy="channel" if granularity == "channel" else "group",
        group_size=32 if granularity == "g32" else None,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    theirs = PackedQuantizationCompressor.decompress(dict(found), scheme)["weight"]
    assert torch.equal(theirs, layer.weight)
    bits, symmetric = layer.scheme.format.bits, layer.scheme.symmetric
    back = layouts.from_compressed(found, bits, "int", symmetric, "float32")
    assert torch.equal(back.dequantize(), layer.weight)


CASES = [
    ("int4-g32-sfp16", "gptq", None),
    ("int4-asym-g32-sfp16", "gptq_v2", None),
    ("int4-asym-g32-sfp16", "awq", None),
    ("int4-g32", "compressed-tensors", None),
    ("int3-asym-channel", "compressed-tensors", None),
    ("int8-channel", "compressed-tensors", "int8-token"),
    ("int8-channel", "compressed-tensors", "int8-asym-tensor"),
    ("fp8_e4m3-channel", "compressed-tensors", "fp8_e4m3-token"),
]


@pytest.mark.engine("export {format}", "qlab")
@pytest.mark.parametrize(("scheme", "format", "activations"), CASES)
@pytest.mark.parametrize("kind", ["qwen2", "tiny"])
def test_a_folder_comes_back(kind, scheme, format, activations, tiny, tmp_path):
    model = random_model("qwen2") if kind == "qwen2" else tiny[0]
    ids = [torch.arange(20)[None] + 3]
    small, _ = qlab.quantize_model(model, "rtn", scheme, ids, activations=activations)
    save_foreign(small, tiny[1], tmp_path / "out", format)
    back = load_foreign(tmp_path / "out")
    for (name, ours), (other, theirs) in zip(quant_layers(small), quant_layers(back), strict=True):
        assert name == other
        assert torch.equal(ours.weight, theirs.weight)
        assert str(ours.activations or "") == str(theirs.activations or "")
    with torch.no_grad():
        # A bias in float16 (GPTQ, AWQ) moves a logit by up to 2^-11 of it.
        torch.testing.assert_close(back(ids[0]).logits, small(ids[0]).logits, rtol=0, atol=2e-3)
    assert qlab.load(tmp_path / "out").model(ids[0]).logits.shape[1] == 20


@pytest.mark.engine("export compressed-tensors", "transformers")
@pytest.mark.engine("method rtn", "transformers")
@pytest.mark.parametrize("scheme", ["int4-g32", "int3-channel", "int8-g32"])
def test_transformers_loads_compressed_tensors(scheme, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    small, _ = qlab.quantize_model(tiny[0], "rtn", scheme)
    save_foreign(small, tiny[1], tmp_path / "out", "compressed-tensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(20)[None] + 3
    with torch.no_grad():
        # The same weights through the same operations.
        torch.testing.assert_close(loaded(ids).logits, small(ids).logits, rtol=1e-5, atol=1e-5)


def test_what_a_format_cannot_hold_is_refused(tiny, tmp_path):
    model, tokenizer = tiny

    def save(scheme, format, **more):
        small, _ = qlab.quantize_model(model, "rtn", scheme, **more)
        save_foreign(small, tokenizer, tmp_path / "out", format)

    with pytest.raises(qlab.QlabError, match=r"unknown format 'gptk'.*gptq_v2"):
        save("int4-g32", "gptk")
    with pytest.raises(qlab.QlabError, match=r"layer 'model\.layers\.0.*5"):
        save("int5-g32", "gptq")
    with pytest.raises(qlab.QlabError, match="4 bits, not 8"):
        save("int8-g32", "awq")
    with pytest.raises(qlab.QlabError, match="nf4"):
        save("nf4-g64", "gptq", schemes={"*.down_proj": "nf4-g32"})
    with pytest.raises(qlab.QlabError, match="granularity 'tensor'"):
        save("int4-tensor", "gptq")
    with pytest.raises(qlab.QlabError, match="inputs are quantized too"):
        save("int4-channel", "gptq", activations="int8-token")
    with pytest.raises(qlab.QlabError, match="one scheme for all layers"):
        save("int4-g32", "gptq", schemes={"*.down_proj": "int8-g32"})
    with pytest.raises(qlab.QlabError, match="no quantized layers"):
        save_foreign(model, tokenizer, tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists(), "something was left behind"
    assert not list(tmp_path.iterdir())


def test_mixed_schemes_name_their_layers(tiny, tmp_path):
    small, _ = qlab.quantize_model(
        tiny[0], "rtn", "int4-g32", schemes={"*.down_proj": "int8-g32", "*.q_proj": None}
    )
    save_foreign(small, tiny[1], tmp_path / "out", "compressed-tensors")
    back = load_foreign(tmp_path / "out")
    kinds = {name.rpartition(".")[2]: layer.scheme.name for name, layer in quant_layers(back)}
    assert kinds["down_proj"].startswith("int8")
    assert kinds["up_proj"].startswith("int4")
    assert "q_proj" not in kinds


def test_a_broken_folder_is_refused(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    small, _ = qlab.quantize_model(tiny[0], "rtn", "int4-g32-sfp16")
    folder = tmp_path / "out"
    save_foreign(small, tiny[1], folder, "gptq")
    whole = load_file(folder / "model.safetensors")

    def broken(change):
        tensors = dict(whole)
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return load_foreign(folder)

    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(qlab.QlabError, match=r"up_proj\.qzeros is missing"):
        broken(lambda t: t.pop(f"{name}.qzeros"))
    with pytest.raises(qlab.QlabError, match="desc_act"):
        broken(lambda t: t.update({f"{name}.g_idx": t[f"{name}.g_idx"].flip(0)}))
    with pytest.raises(qlab.QlabError, match=r"lacks model\.norm"):
        broken(lambda t: t.pop("model.norm.weight"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["bits"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(qlab.QlabError, match=r"layer .*_proj"):
        broken(lambda t: None)


def test_real_zero_points_come_back_or_are_refused(tiny, tmp_path):
    from qlab.export import load_folder, load_qtensors, save_folder, save_qtensors
    from qlab.methods.hqq import hqq

    small, report = qlab.quantize_model(tiny[0], "hqq", "int3-asym-g32-sfp16")
    layer = next(layer for _, layer in quant_layers(small))
    assert layer.zero_point.is_floating_point()
    assert layer.qweight.bits_per_weight == pytest.approx(3 + 2 * 16 / 32)
    save_folder(small, tiny[1], tmp_path / "own")
    back = load_folder(tmp_path / "own")
    for (_, ours), (_, theirs) in zip(quant_layers(small), quant_layers(back), strict=True):
        assert torch.equal(ours.weight, theirs.weight)
    q = hqq(torch.randn(8, 64), None, layer.scheme)
    save_qtensors(tmp_path / "w.safetensors", {"w": q})
    assert torch.equal(load_qtensors(tmp_path / "w.safetensors")["w"].dequantize(), q.dequantize())
    with pytest.raises(qlab.QlabError, match=r"real numbers.*HqqOptions"):
        save_foreign(small, tiny[1], tmp_path / "out", "gptq_v2")
    assert report.bits_per_weight > 3.9
