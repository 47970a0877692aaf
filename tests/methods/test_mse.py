"""Method `mse`: the weights' squared error is never above that of min-max, row by row."""

import numpy as np
import pytest
import torch

import qlab
from qlab.core.granularity import to_blocks
from qlab.methods import get_method
from qlab.nn import linear_layers, quant_layers, weight_of

WORDS = [
    "int4-channel",
    "int3-g16",
    "int2-channel",
    "int8-tensor",
    "int4-full-g16",
    "int4-asym-g16",
    "int3-asym-channel",
    "uint4-channel",
    "int8-asym-channel",
    "ternary-channel",
    "binary-g16",
    "nf4-g16",
    "fp4_e2m1-channel",
    "fp8_e4m3-tensor",
    "log4-channel",
    "int4-g16-sfp16",
    "int4-g16-sbf16",
    "mxfp4",
    "nvfp4",
]


def block_errors(x, q):
    """Squared error of each block, in float64."""
    block = q.scheme.granularity.block_shape(tuple(x.shape))
    blocks, axes = to_blocks((q.dequantize().double() - x.double()) ** 2, block)
    return blocks.sum(dim=axes)


@pytest.mark.parametrize("word", WORDS)
def test_every_block_of_a_model_is_at_least_as_good_as_with_min_max(tiny, word):
    model, _ = tiny
    small, report = qlab.quantize_model(model, "mse", word)
    plain, baseline = qlab.quantize_model(model, "rtn", word)
    lower = 0
    for (_, layer), (_, one), (_, other) in zip(
        linear_layers(model), quant_layers(small), quant_layers(plain), strict=True
    ):
        x = weight_of(layer)
        mine, theirs = block_errors(x, one.qweight), block_errors(x, other.qweight)
        # Where both choose the same codes the scale differs in its last bits.
        assert bool((mine <= theirs * (1 + 1e-5)).all())
        lower += int((mine < 0.99 * theirs).sum())
    if word not in ("int8-asym-channel", "int8-tensor", "fp8_e4m3-tensor", "binary-g16"):
        assert lower > 0
        assert np.mean([r.sqnr for r in report.layers]) > np.mean([r.sqnr for r in baseline.layers])


def test_numpy_and_torch_agree_and_padding_is_removed():
    w = np.random.default_rng(0).standard_t(3, (5, 13)).astype(np.float32)
    method = get_method("mse")
    for word in ("int4-g8", "int4-asym-g8"):
        scheme = qlab.Scheme.parse(word)
        with pytest.raises(qlab.QlabError, match="does not divide"):
            method.quantize(w, None, scheme, method.options())
        one = method.quantize(w, None, scheme, method.options(pad=True))
        two = method.quantize(torch.from_numpy(w), None, scheme, method.options(pad=True))
        assert one.dequantize().shape == w.shape
        assert np.array_equal(one.codes, two.codes.numpy())
        assert np.array_equal(one.scale, two.scale.numpy())


def test_it_clips_where_clipping_pays_and_says_what_it_cannot_do(tiny):
    w = np.random.default_rng(1).standard_normal((4, 4096)).astype(np.float32)
    method = get_method("mse")
    clipped = {}
    for bits in (2, 3, 4, 8):
        q = method.quantize(w, None, qlab.Scheme.parse(f"int{bits}"), method.options())
        qmax = 2 ** (bits - 1) - 1
        clipped[bits] = float((np.abs(w) > (q.scale * (qmax + 0.5))).mean())
    # The fewer the steps, the more they are worth.
    assert list(clipped.values()) == sorted(clipped.values(), reverse=True)
    assert clipped[4] > 0
    model, _ = tiny
    for word, message in (
        ("int4-global", "global|tensor"),
        ("bf16", "16 bits"),
        ("kmeans4", "fit"),
    ):
        with pytest.raises(qlab.QlabError, match=message):
            qlab.quantize_model(model, "mse", word)
