"""What the chapter on transformers and bitsandbytes says, on input of our own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.methods.nf4 import Nf4Options, nf4

SCHEME = qlab.Scheme.parse("nf4-g64")


def inputs():
    """name -> float32 (64, 128): ordinary and adversarial."""
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    outlier, holes = w.clone(), w.clone()
    outlier[3, 5] = 1e4
    holes[10:20] = 0
    return {
        "normal": w,
        "outlier": outlier,
        "rows of zeros": holes,
        "constant rows": torch.linspace(-3, 3, 64)[:, None].expand(64, 128).contiguous(),
        "huge": w * 1e30,
        "small": w * 1e-30,
        "zeros": torch.zeros(64, 128),
    }


def by_hand(w, double=False):
    """The chapter's loader in the open, for one layer."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        w.shape[1],
        w.shape[0],
        bias=False,
        compute_dtype=torch.float32,
        quant_type="nf4",
        compress_statistics=double,
    )
    layer.weight = bnb.nn.Params4bit(
        w.clone(), requires_grad=False, quant_type="nf4", compress_statistics=double
    ).to("cpu")
    return layer


def round_trip(layer):
    """What saving after use does on a processor with AVX512_BF16; on any processor."""
    import bitsandbytes.functional as bnbf

    w = layer.weight
    packed, state = bnbf._convert_weight_packed_for_cpu(w.data, w.quant_state)
    w.data, w.quant_state = bnbf._convert_weight_packed_for_cpu_inverse(packed, state)
    return layer


@pytest.mark.oracle("method nf4", "bitsandbytes", "equal codes in the layers that it loads")
@pytest.mark.parametrize("name", inputs())
def test_a_loaded_layer_holds_qlabs_codes(name):
    w = inputs()[name]
    theirs = by_hand(w).weight
    ours = nf4(w, None, SCHEME, Nf4Options(double=False))
    blocks = w.reshape(64, 2, 64).abs().amax(2)
    packed = theirs.data.reshape(-1)
    codes = torch.stack([packed >> 4, packed & 15], 1).reshape(64, 128)
    full = blocks.repeat_interleave(64, 1) > 0  # the code of a block of zeros is 0 whatever it is
    assert torch.equal(codes[full], ours.codes[full].to(codes.dtype))
    assert torch.equal(theirs.quant_state.absmax, blocks.reshape(-1))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), blocks=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_a_round_trip_turns_the_scales_of_plain_nf4(rows, blocks, seed):
    """The codes come back; the scales as (blocks of a row, rows), in bfloat16."""
    w = torch.randn(32 * rows, 64 * blocks, generator=torch.Generator().manual_seed(seed))
    before, after = by_hand(w).weight, round_trip(by_hand(w)).weight
    assert torch.equal(before.data, after.data)
    absmax = before.quant_state.absmax.reshape(32 * rows, blocks)
    assert after.quant_state.absmax.dtype == torch.bfloat16
    assert torch.equal(after.quant_state.absmax, absmax.T.to(torch.bfloat16))


def test_a_round_trip_of_double_quantization_keeps_the_order():
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    w *= torch.linspace(1, 20, 64)[:, None]  # scales that differ from row to row
    import bitsandbytes.functional as bnbf

    def scales(layer):
        state = layer.weight.quant_state
        return bnbf.dequantize_blockwise(state.absmax, state.state2) + state.offset

    before, after = scales(by_hand(w, True)), scales(round_trip(by_hand(w, True)))
    # bfloat16 keeps 8 bits, and the byte of the second quantization about 7 of the largest.
    assert torch.allclose(before, after, atol=0.02 * float(before.max()))
    assert not torch.allclose(before, before.reshape(64, 4).T.reshape(-1), atol=5)


@pytest.mark.oracle("method hqq", "hqq", "equal restored weights with its rounded zero point")
@pytest.mark.parametrize("name", ["normal", "outlier", "small"])
def test_hqq_rounds_its_zero_at_four_bits(name):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    from qlab.methods.hqq import HqqOptions, hqq

    w = inputs()[name]
    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    assert config["weight_quant_params"]["round_zero"] is True
    three = BaseQuantizeConfig(nbits=3, group_size=64, axis=1)
    assert three["weight_quant_params"]["round_zero"] is False
    plain = torch.nn.Linear(128, 64, bias=False)
    plain.weight.data = w.clone()
    theirs = HQQLinear(plain, config, compute_dtype=torch.float32, device="cpu").dequantize()
    ours = hqq(w, None, qlab.Scheme.parse("uint4-g64"), HqqOptions(round_zero=True)).dequantize()
    # They multiply by a scale of which they kept the inverse: a few last digits.
    assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5 * float(w.abs().max()))


def test_the_configuration_of_hqq_is_not_loaded_yet():
    """The chapter says so; when this fails, its section has to be rewritten."""
    from transformers import AutoModelForCausalLM, HqqConfig
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with pytest.raises(NotImplementedError):
            AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=HqqConfig(nbits=4, group_size=64), device_map="cpu"
            )
        with pytest.raises(TypeError, match="load_in_8bit"):
            AutoModelForCausalLM.from_pretrained(folder, load_in_8bit=True)
