"""Every kind of scheme goes through quantize_model, a folder, and back."""

import pytest
import torch
from safetensors.torch import load_file

import qlab
from qlab.export import load_folder, save_folder
from qlab.nn import quant_layers

SCHEMES = [
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "nvfp4",
    "nf4-g32",
    "log4-g32",
    "fp8_e4m3-channel",
    "ternary-channel",
    "binary-g32",
    "int4-full-g32-sbf16",
    "int4-asym-g32-sfp8_e4m3",
    "bf16",
    "kmeans3-channel",
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_of_any_scheme_is_written_and_read(tiny, tmp_path, scheme):
    small, report = qlab.quantize_model(tiny[0], "rtn", scheme)
    for name, layer in quant_layers(small):
        again = qlab.quantize(tiny[0].get_submodule(name).weight.detach(), scheme)
        assert torch.equal(layer.weight, again.dequantize())
    assert all(r.scheme == qlab.Scheme.parse(scheme).name for r in report.layers)
    save_folder(small, tiny[1], tmp_path / "out")
    back = load_folder(tmp_path / "out")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.equal(back(ids).logits, small(ids).logits)
    for (_, a), (_, b) in zip(quant_layers(small), quant_layers(back), strict=True):
        assert torch.equal(a.packed, b.packed) and torch.equal(a.scale, b.scale)
        assert a.scale.dtype == b.scale.dtype and a.scheme == b.scheme
        assert (a.tensor_scale is None) == (b.tensor_scale is None)
    # What is promised is what the file holds, to the byte.
    stored = load_file(tmp_path / "out" / "model.safetensors").values()
    size = sum(t.numel() * t.element_size() for t in stored)
    assert size == qlab.evaluate.model_size(small).total == qlab.evaluate.model_size(back).total
