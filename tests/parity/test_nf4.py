"""The method nf4 against bitsandbytes: every tensor that it saves, byte for byte."""

from __future__ import annotations

import logging

import bitsandbytes as bnb
import bitsandbytes.functional as F
import pytest
import torch

from qlab.core import Scheme
from qlab.methods.nf4 import Nf4Options, from_bitsandbytes, nf4, to_bitsandbytes

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
FORMATS = {"nf4": "nf4", "fp4": "fp4_bnb"}


def inputs():
    """name -> float32 (rows, 1024)."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(24, 1024, generator=g) * 0.05
    outlier, gaps = normal.clone(), normal.clone()
    outlier[::2, 7] = 1e3
    gaps[1:3] = 0
    gaps[5, 64:192] = 0
    return {
        "normal": normal,
        "one row": normal[:1],
        "outlier": outlier,
        "blocks of zeros": gaps,
        "zeros": torch.zeros(2, 1024),
        "constant rows": torch.linspace(-3, 3, 8)[:, None].expand(8, 1024).contiguous(),
        "heavy tails": torch.distributions.StudentT(2.0).sample((8, 1024)),
        "tiny": normal * 1e-30,
        "huge": normal * 1e34,
    }


@pytest.mark.oracle("method nf4", "bitsandbytes", "equal bytes of every saved tensor")
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("double", [True, False])
def test_the_saved_tensors(kind, size, double):
    for what, w in inputs().items():
        for dtype in (torch.float32, torch.bfloat16):
            w = w.to(dtype)
            packed, state = F.quantize_4bit(
                w, blocksize=size, quant_type=kind, compress_statistics=double
            )
            q = nf4(w, None, Scheme.parse(f"{FORMATS[kind]}-g{size}"), Nf4Options(double=double))
            ours = to_bitsandbytes(q)
            theirs = state.as_dict(packed=True) | {"": packed}
            assert set(ours) == set(theirs)
            for name, tensor in theirs.items():
                assert ours[name].dtype == tensor.dtype, (what, name)
                assert torch.equal(ours[name], tensor), (what, name)
            restored = F.dequantize_4bit(packed, state)
            assert torch.equal(q.dequantize(), restored), what
            back = from_bitsandbytes(theirs)
            assert torch.equal(back.dequantize(), restored) and back.nbytes == q.nbytes


@pytest.mark.engine("export bitsandbytes", "bitsandbytes")
@pytest.mark.engine("method nf4", "bitsandbytes")
def test_bitsandbytes_loads_what_qlab_saves():
    w = inputs()["normal"]
    q = nf4(w, None, Scheme.parse("nf4-g64"))
    parts = to_bitsandbytes(q)
    packed = parts.pop("")
    state = F.QuantState.from_dict(dict(parts), device=torch.device("cpu"))
    assert torch.equal(F.dequantize_4bit(packed, state), q.dequantize())


def test_a_layer_of_theirs_multiplies_by_the_same_weights():
    g = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(512, 96, bias=False)
    layer = bnb.nn.Linear4bit(512, 96, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict(linear.state_dict())
    layer = layer.to("cpu")
    q = nf4(linear.weight.detach(), None, Scheme.parse("nf4-g64"))
    x = torch.randn(4, 512, generator=g)
    layer(x)  # quantizes on its first use if it has not yet
    parts = to_bitsandbytes(q)
    assert torch.equal(layer.weight.data.flatten(), parts[""].flatten())
    exact = x.double() @ q.dequantize().double().T
    # Their kernel may compute in bfloat16: 2^-8 of the largest result, over sums of 512.
    assert (layer(x).double() - exact).abs().max() < 2**-6 * exact.abs().max()
