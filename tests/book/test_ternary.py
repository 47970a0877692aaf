"""What the chapter on ternary weights says, on input of our own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.gguf import dequantize, quantize
from qlab.nn import quant_layers
from qlab.training import TrainOptions, convert, prepare, story_batches, train
from qlab.training.ternary import ternarize

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(seed=seeds)
def test_five_codes_fit_into_a_byte(seed):
    codes = np.random.default_rng(seed).integers(-1, 2, 100)
    packed = ((codes.reshape(-1, 5) + 1) * 3 ** np.arange(5)).sum(1).astype(np.uint8)
    back = packed[:, None].astype(np.int64) // 3 ** np.arange(5) % 3 - 1
    assert np.array_equal(back.reshape(-1), codes)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_product_needs_additions_only(seed):
    g = torch.Generator().manual_seed(seed)
    q = ternarize(torch.randn(6, 64, generator=g))
    x = qlab.quantize(torch.randn(3, 64, generator=g), "int8-token")
    xs, cs = x.codes.numpy().astype(np.int64), q.codes.numpy()
    added = np.array([[a[c == 1].sum() - a[c == -1].sum() for c in cs] for a in xs])
    y = added * float(q.scale) * x.scale.numpy()
    expected = (x.dequantize().double() @ q.dequantize().double().T).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_the_threshold_of_ternary_weight_networks_has_less_error():
    """For normal weights: 0.7 mean |W| and the mean of the rest against mean |W| and half of it."""
    w = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    large = w.abs() > 0.7 * w.abs().mean()
    twn = torch.where(large, w.sign() * w.abs()[large].mean(), 0.0)
    sqnr = 10 * math.log10(float(w.square().sum() / (w - twn).square().sum()))
    assert sqnr > qlab.sqnr(w, ternarize(w)) + 0.5


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("where", ["tensor", "channel"])
def test_files_hold_float16_scales_exactly(kind, where):
    w = torch.randn(8, 512, generator=torch.Generator().manual_seed(1)) * 0.03
    trained = ternarize(w, f"ternary-{where}-sfp16").dequantize().numpy()
    assert np.array_equal(dequantize(quantize(trained, kind), kind), trained)


@pytest.mark.slow
def test_training_brings_back_what_rounding_destroys():
    """Ten steps on a few rows: from worse than equal probabilities to far better than those."""
    story = qlab.story.load()
    fake = prepare(story.model, "ternary-channel", method="absmean")
    options = TrainOptions(steps=10, lr=2e-3, warmup=2)
    log = train(fake, story_batches(story.tokenizer, batch=2, length=64), options)
    equal = math.log(len(story.tokenizer))
    assert log[0].task > equal and log[-1].task < equal - 1.5
    codes = {c for _, m in quant_layers(convert(fake)) for c in m.qweight.codes.unique().tolist()}
    assert codes == {-1, 0, 1}
