"""SmoothQuant's scales against torchao (installed) and llm-compressor (recorded)."""

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import qlab
from qlab.calibrate.blocks import BlockRunner
from qlab.methods.folding import fold, fold_groups
from qlab.methods.smoothquant import column_absmax, smoothing_scales

logging.disable(logging.WARNING)
from torchao.prototype.smoothquant import SmoothQuantConfig, SmoothQuantObserver  # noqa: E402
from torchao.quantization import quantize_  # noqa: E402
from torchao.quantization.quant_api import Int8DynamicActivationInt8WeightConfig  # noqa: E402

logging.disable(logging.NOTSET)

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((Path(__file__).parent / "data" / "smoothquant.json").read_text("utf-8"))


def recorder():
    """tools/record_smoothquant.py, which draws the inputs of the record."""
    path = ROOT / "tools" / "record_smoothquant.py"
    spec = importlib.util.spec_from_file_location("record_smoothquant", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pairs():
    """name -> inputs (tokens, 40) and weights (16, 40): ordinary and adversarial."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 40, generator=g), torch.randn(16, 40, generator=g) * 0.05
    far, dead, column = x.clone(), x.clone(), w.clone()
    far[3, 7], far[:, 9] = 500.0, 80.0
    dead[:, [1, 5]] = 0
    column[:, 3] = 0
    return {
        "normal": (x, w),
        "outliers": (far, w),
        "dead features": (dead, w),
        "a column of zeros": (x, column),
        "constant": (torch.full_like(x, -2.0), torch.full_like(w, 0.5)),
        "huge": (x * 1e15, w),
        "small": (x * 1e-3, w * 1e-2),
        "one token": (x[:1], w),
    }


@pytest.mark.oracle("method smoothquant", "torchao", "the same scales from the same statistics")
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", pairs())
def test_torchao_has_the_same_scales(name, alpha):
    x, w = pairs()[name]
    observer = SmoothQuantObserver(w, alpha)
    for part in x.split(7):
        observer(part)
    theirs, _, _ = observer.calculate_qparams()
    x_absmax, w_absmax = x.abs().amax(0), w.abs().amax(0)
    ours = smoothing_scales(x_absmax, w_absmax, alpha)
    known = (x_absmax > 0) & (w_absmax > 0)
    # Theirs adds 1.2e-7 to both ranges: that share of the smallest of them, and rounding.
    least = min(float(x_absmax[known].min()), float(w_absmax[known].min()))
    torch.testing.assert_close(ours[known], theirs[known], rtol=3e-7 + 1.2e-7 / least, atol=0)
    # Of a feature that is 0, theirs makes a factor of that 1.2e-7; ours leaves it alone.
    assert (ours[~known] == 1).all()


def test_torchao_multiplies_by_the_same_numbers():
    """A whole layer, W8A8 dynamic, through torchao's quantize_."""
    x, w = pairs()["outliers"]
    linear = torch.nn.Linear(40, 16, bias=False)
    linear.weight = torch.nn.Parameter(w.clone(), requires_grad=False)
    model = torch.nn.Sequential(linear)
    base = Int8DynamicActivationInt8WeightConfig(version=2)
    quantize_(model, SmoothQuantConfig(base, step="prepare", alpha=0.5))
    model(x)
    quantize_(model, SmoothQuantConfig(base, step="convert", alpha=0.5))
    with torch.no_grad():
        theirs = model(x)
    s = smoothing_scales(x.abs().amax(0), w.abs().amax(0), 0.5)
    made = model[0].weight
    torch.testing.assert_close(made.act_pre_scale, 1 / s, rtol=3e-6, atol=0)
    # torchao's symmetric int8 uses all 256 codes, a scale of amax / 127.5: int8-full in qlab.
    weights = qlab.quantize(w * s, "int8-full-channel")
    torch.testing.assert_close(made.scale, weights.scale, rtol=3e-6, atol=0)
    # A value within 3e-6 of a tie may go to the other code.
    assert (made.qdata != weights.codes).float().mean() < 0.01
    activations = qlab.quantize(x / s, "int8-full-token")
    ours = activations.dequantize() @ weights.dequantize().T
    assert qlab.sqnr(theirs, ours) > 70 > qlab.sqnr(x @ w.T, ours) > 35
    plain = qlab.quantize(x, "int8-full-token").dequantize() @ (
        qlab.quantize(w, "int8-full-channel").dequantize().T
    )
    assert qlab.sqnr(x @ w.T, ours) > qlab.sqnr(x @ w.T, plain) + 3


@pytest.mark.parametrize("case", RECORD["scales"])
def test_llm_compressor_has_the_same_scales(case):
    """From the same statistics: theirs are max - min of the activations and 2 max|W|."""
    kind, alpha = case.rsplit(" ", 1)
    ranges, weights = recorder().statistics(kind)
    w_absmax = torch.from_numpy(np.abs(np.concatenate(weights)).max(axis=0))
    ours = smoothing_scales(torch.from_numpy(ranges), 2 * w_absmax, float(alpha))
    theirs = torch.tensor(RECORD["scales"][case]).clamp(min=1e-5)  # their floor is applied later
    # pow may differ in the last bits from one build of torch to another.
    torch.testing.assert_close(ours, theirs, rtol=5e-7, atol=0)


def output_of(block, source):
    """What a norm of the block makes: (tokens, features)."""
    kept = []
    hook = block.module.get_submodule(source).register_forward_hook(
        lambda module, args, out: kept.append(out[0])
    )
    block.call(0)
    hook.remove()
    return kept[0]


@pytest.mark.oracle("method smoothquant", "llm-compressor (recorded)", "the same smoothed model")
@pytest.mark.parametrize("alpha", RECORD["norms"])
def test_llm_compressor_smooths_a_model_alike(alpha):
    """The norms of a small Llama after their whole modifier, ours given their statistics."""
    model, ids = recorder().small_llama()
    ours = {}
    for block in BlockRunner(model, [ids], skip=()):
        for group in fold_groups(block):
            x = output_of(block, group.source)
            ranges = x.amax(0) - x.amin(0)
            w = 2 * column_absmax(block.module, group.layers)
            fold(block.module, group, smoothing_scales(ranges, w, float(alpha)))
            norm = block.module.get_submodule(group.source)
            ours[block.full_name(group.source) + ".weight"] = norm.weight.detach()
    assert set(ours) == set(RECORD["norms"][alpha]) and len(ours) == 4
    for name, theirs in RECORD["norms"][alpha].items():
        # The activations went through other builds of the same model: float32 rounding.
        torch.testing.assert_close(ours[name], torch.tensor(theirs), rtol=1e-4, atol=1e-7)


def test_max_minus_min_is_not_max_abs():
    """At alpha 0.5 the two rules agree where a feature is symmetric, and only there."""
    low, high, w = torch.tensor([-3.0, 0.0]), torch.tensor([3.0, 6.0]), torch.tensor([0.1, 0.1])
    paper = smoothing_scales(torch.maximum(high, -low), w)
    theirs = smoothing_scales(high - low, 2 * w)
    assert torch.allclose(paper[0], theirs[0])
    assert torch.allclose(paper[1] / theirs[1], torch.tensor(2.0).sqrt())
