"""AWQ against autoawq 0.2.9, recorded by tools/record_awq.py (it is archived and conflicts)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import qlab
from qlab.calibrate.blocks import BlockRunner
from qlab.methods.awq import (
    AwqOptions,
    awq,
    awq_groups,
    awq_scales,
    clip_limits,
    clipped,
    prepare,
    scale_block,
)
from qlab.nn import linear_layers, weight_of

ROOT = Path(__file__).resolve().parents[2]
RECORD = dict(np.load(Path(__file__).parent / "data" / "awq.npz"))
spec = importlib.util.spec_from_file_location("record_awq", ROOT / "tools" / "record_awq.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)  # draws the inputs of the record

MODELS = [
    pytest.param(bits, duo, id=f"{bits} bits{', duo' if duo else ''}")
    for bits, duo in recorder.MODELS
]


def scheme_of(bits, group_size, zero_point):
    size = "channel" if group_size == -1 else f"g{group_size}"
    return f"int{bits}-{'asym-' if zero_point else ''}{size}"


def groups_of(w, scheme):
    return w.reshape(-1, qlab.Scheme.parse(scheme).granularity.block_shape(w.shape)[1])


@pytest.mark.oracle("method awq", "autoawq (recorded)", "equal bits of the rounded weights")
@pytest.mark.parametrize("case", recorder.PSEUDO, ids=lambda c: scheme_of(*c))
@pytest.mark.parametrize("kind", recorder.KINDS)
def test_pseudo_quantization_bit_for_bit(kind, case):
    """Wherever theirs is defined: a group with numbers of both signs, not all below 1e-5."""
    w, scheme = recorder.matrix(kind), scheme_of(*case)
    name = "pseudo {} {} {} {}".format(kind, *case)
    theirs = RECORD[name]
    q = qlab.quantize(w, scheme)
    ours, blocks = groups_of(q.dequantize(), scheme), groups_of(w, scheme)
    theirs = groups_of(theirs, scheme)
    low, high = blocks.min(1), blocks.max(1)
    zero_point = case[2]
    wide = (high - low if zero_point else np.abs(blocks).max(1)) >= 1e-5
    same = wide & ((low <= 0) & (high >= 0) if zero_point else True)
    np.testing.assert_array_equal(ours[same], theirs[same])
    scales = RECORD[name + " scales"].reshape(-1)
    np.testing.assert_array_equal(np.asarray(q.scale).reshape(-1)[same], scales[same])
    if kind in ("normal", "wide", "an outlier", "half zeros", "huge", "small"):
        assert same.all()
    # Elsewhere ours is at least as near: theirs gives up what lies beyond its zero point.
    for i in np.flatnonzero(~same):
        assert np.square(ours[i] - blocks[i]).sum() <= np.square(theirs[i] - blocks[i]).sum()


def test_groups_of_one_sign_are_lost_by_autoawq():
    """Its zero point cannot reach a range without 0; qlab widens the range."""
    w = recorder.matrix("constant")
    theirs = RECORD["pseudo constant 4 32 True"]
    assert (w == 0.25).all() and (theirs < 1e-4).all()
    np.testing.assert_array_equal(qlab.quantize(w, "int4-asym-g32").dequantize(), w)


def blocks(bits, duo):
    """Each block of the small Llama with the searches of its groups, scales folded in."""
    model, ids = recorder.small_llama()
    options = AwqOptions(duo=duo, tokens=None)
    for block in BlockRunner(model, list(ids.split(1)), skip=()):
        yield block, scale_block(block, awq_groups(block), f"int{bits}-asym-g32", options)


@pytest.mark.oracle("method awq", "autoawq (recorded)", "the same searched scales")
@pytest.mark.parametrize(("bits", "duo"), MODELS)
def test_the_search_finds_the_same_scales(bits, duo):
    seen = 0
    for index, (_, searches) in enumerate(blocks(bits, duo)):
        for one in searches:
            name = f"model {bits} {duo} {index}.{one.group.layers[0]}"
            # float32 sums in another order; a code at a tie moves a loss by about 1e-4 of itself.
            np.testing.assert_allclose(one.losses, RECORD[f"{name}.losses"], rtol=1e-3)
            best = int(RECORD[f"{name}.losses"].argmin())
            assert one.ratio == best / 20
            np.testing.assert_allclose(one.scales, RECORD[f"{name}.scales"], rtol=1e-5)
            seen += 1
    assert seen == 8


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("kind", recorder.CLIPPED)
def test_the_clipping_limits_are_equal(kind, bits):
    w, x = torch.from_numpy(recorder.matrix(kind, 64)), torch.from_numpy(recorder.inputs())
    ours = clip_limits(w, x, f"int{bits}-asym-g32")
    theirs = torch.from_numpy(RECORD[f"clip {kind} {bits}"])
    assert torch.equal(ours, theirs)
    assert (ours < w.reshape(64, -1, 32).abs().amax(2)).float().mean() > 0.2  # some are clipped


@pytest.mark.oracle("method awq", "autoawq (recorded)", "the same clipping limits")
@pytest.mark.parametrize(("bits", "duo"), MODELS)
def test_the_clipping_limits_are_the_same_in_a_model(bits, duo):
    """Given all 96 tokens, as theirs. The weights come from the search, so their last bits differ.

    A range that clips both ends of a group has its zero point at exactly 7.5 (3.5 with 3 bits): the
    last bit of the limit decides to which side it is rounded, and so, now and then, what is best.
    """
    seen = 0
    for index, (block, _) in enumerate(blocks(bits, duo)):
        layers = dict(block.linear_layers())
        for name, inputs in block.gather(list(layers), needs=("sample",)).items():
            key = f"model {bits} {duo} {index}.{name}.limits"
            if key not in RECORD:
                assert name.endswith(("q_proj", "k_proj"))
                continue
            theirs = torch.from_numpy(RECORD[key])
            w, scheme = weight_of(layers[name]), f"int{bits}-asym-g32"
            assert len(inputs.sample) == 96
            ours = clip_limits(w, inputs.sample, scheme)
            equal = torch.isclose(ours, theirs, rtol=1e-4)
            assert equal.float().mean() > 0.96, key
            x = inputs.sample.reshape(96, -1, 32)

            def error(limit, w=w, x=x, scheme=scheme):
                """Of what each group of each row adds to the output."""
                delta = (qlab.quantize(clipped(w, limit), scheme).dequantize() - w).reshape(
                    len(w), -1, 32
                )
                return torch.einsum("tgi,rgi->trg", x, delta).square().sum(0)

            assert error(ours).sum() < 1.005 * error(theirs).sum()
            seen += 1
    assert seen == 10


def test_the_weights_at_the_end_are_the_same():
    model, ids = recorder.small_llama()
    scheme = qlab.Scheme.parse("int4-asym-g32")
    limits = prepare(model, list(ids.split(1)), scheme, AwqOptions(tokens=None), skip=("lm_head",))
    for name, layer in linear_layers(model):
        ours = awq(weight_of(layer), limits.get(name), scheme).dequantize()
        theirs = torch.from_numpy(
            RECORD[f"model 4 False {name.removeprefix('model.layers.')}.weight"]
        )
        # Equal but where a limit or a code was a tie: a few of thousands.
        off = (ours - theirs).abs() > 1e-4 * theirs.abs().max()
        assert off.float().mean() < 0.01, name


def test_the_formula_of_the_scales_is_theirs():
    """From the scales that won, the statistics follow: s ∝ mean|x|^ratio."""
    model, ids = recorder.small_llama()
    block = next(iter(BlockRunner(model, list(ids.split(1)), skip=())))
    name = "self_attn.q_proj"
    mean_abs = block.gather([name], needs=())[name].mean_abs
    theirs = torch.from_numpy(RECORD[f"model 4 False 0.{name}.scales"])
    ratio = float(RECORD[f"model 4 False 0.{name}.losses"].argmin()) / 20
    torch.testing.assert_close(awq_scales(mean_abs, ratio), theirs, rtol=1e-5, atol=0)
    assert float(theirs.max() * theirs.min()) == pytest.approx(1, rel=1e-5)


def test_clipping_by_hand():
    w = torch.tensor([[1.0, -4.0, 2.0, 0.5]])
    limit = torch.tensor([[2.0, 1.0]])
    assert clipped(w, limit).tolist() == [[1.0, -2.0, 1.0, 0.5]]
