"""A quantized folder: what is written is what is read, whole or not at all."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import qlab
from qlab.export import is_quantized_folder, load_folder, save_folder
from qlab.files import new_file, new_folder


@pytest.fixture(scope="module")
def quantized(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("q") / "small"
    small, _ = qlab.quantize_model(tiny[0], "rtn", "int3-asym-g32-sfp16")
    save_folder(small, tiny[1], folder, method="rtn")
    return small, folder


def test_round_trip(tiny, quantized):
    small, folder = quantized
    assert is_quantized_folder(folder)
    source = qlab.load(folder)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(source.model(ids).logits, small(ids).logits)
    assert source.tokenizer("the moon")["input_ids"] == tiny[1]("the moon")["input_ids"]


def test_the_file_is_as_small_as_promised(tiny, quantized):
    small, folder = quantized
    stored = sum(
        t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values()
    )
    size = qlab.evaluate.model_size(small)
    assert stored == size.total


def damage(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def test_damaged_folders_are_refused(quantized, tmp_path):
    _, folder = quantized

    def cut(copy):
        raw = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(raw[: len(raw) // 2])

    def drop(copy):
        tensors = load_file(copy / "model.safetensors")
        tensors.pop("model.layers.0.mlp.up_proj.scale")
        save_file(tensors, copy / "model.safetensors")

    def newer(copy):
        config = json.loads((copy / "config.json").read_text())
        config["quantization_config"]["version"] = 99
        (copy / "config.json").write_text(json.dumps(config))

    for i, (change, says) in enumerate([(cut, "cut"), (drop, "scale"), (newer, "newer qlab")]):
        copy = damage(folder, tmp_path / str(i), change)
        with pytest.raises(qlab.QlabError, match=says):
            qlab.load(copy)


def test_an_existing_folder_is_kept_unless_told(tiny, quantized, tmp_path):
    small, _ = quantized
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    with pytest.raises(qlab.QlabError, match="exists already"):
        save_folder(small, tiny[1], out)
    assert (out / "precious.txt").read_text() == "keep"
    save_folder(small, tiny[1], out, overwrite=True)
    assert not (out / "precious.txt").exists()
    assert load_folder(out) is not None


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    with pytest.raises(qlab.QlabError, match="No space left"), new_folder(tmp_path / "a") as folder:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "b.txt") as file:
        file.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_doubly_quantized_scales_stay_bytes(tiny, tmp_path):
    """In the model, in its folder and after reading it: 4 + 8/64 bits and a little, not 4.5."""
    from qlab.core.double_tensor import DoubleTensor
    from qlab.evaluate import model_size
    from qlab.nn import quant_layers

    model, tokenizer = tiny
    small, report = qlab.quantize_model(model, method="nf4", scheme="nf4-g32", progress=False)
    once, _ = qlab.quantize_model(
        model, method="nf4", scheme="nf4-g32", options={"double": False}, progress=False
    )
    assert model_size(once).bits_per_weight == 4 + 32 / 32
    assert model_size(small).bits_per_weight == pytest.approx(report.bits_per_weight)
    assert 4 + 8 / 32 < model_size(small).bits_per_weight < 4.4
    save_folder(small, tokenizer, tmp_path / "out", method="nf4")
    back = dict(quant_layers(load_folder(tmp_path / "out")))
    for name, layer in quant_layers(small):
        assert layer.scale is None and isinstance(back[name].qweight, DoubleTensor)
        assert back[name].qweight.nbytes == layer.qweight.nbytes
        assert torch.equal(back[name].weight, layer.weight)
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert not any(n.endswith((".scale", ".zero_point")) for n in names)
