"""How far training carried a model, and the recorded experiment on it."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qlab.errors import QlabError
from qlab.training import fake_layers, prepare
from qlab.training.change import codes_change, output_change, rounding_error, weight_change
from tests.models import random_model
from tools.record_transition import RATES, RECORD, STEPS, WIDTHS, name_of, next_rate
from tools.weights import weights_hash


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))


@pytest.fixture(scope="module")
def plain():
    return random_model("qwen2")


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0, 3), seed=st.integers(0, 99))
def test_weights_that_are_stretched(factor, seed):
    """W' = (1 + f) W is f away, whatever W is; and what does not move is 0 away."""
    small = model(seed)
    fake = prepare(small, "int4-channel", skip=())
    assert weight_change(small, fake) == 0
    with torch.no_grad():
        for _, layer in fake_layers(fake):
            layer.weight.mul_(1 + factor)
    # (1 + f) W is rounded to float32, and so is 1 + f.
    assert weight_change(small, fake) == pytest.approx(factor, rel=1e-5, abs=1e-6)


def test_the_sum_goes_over_all_layers_and_not_over_their_ratios():
    small = model()
    fake = prepare(small, "int4-channel", skip=())
    layers = dict(fake_layers(fake))
    with torch.no_grad():
        layers["1"].weight.add_(1.0)
    size = math.sqrt(
        sum(float(p.detach().double().square().sum()) for p in (small[0].weight, small[1].weight))
    )
    assert weight_change(small, fake) == pytest.approx(math.sqrt(48) / size, rel=1e-5)


def test_rounding_is_that_of_the_quantizer_and_stays_it_after_training():
    small = model()
    fake = prepare(small, "int3-channel", skip=())
    first = rounding_error(small, fake)
    with torch.no_grad():
        pairs = [
            (small[int(n)].weight, layer.quantizer(layer.weight)) for n, layer in fake_layers(fake)
        ]
    wrong = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    size = math.sqrt(sum(float(a.square().sum()) for a, _ in pairs))
    assert first == pytest.approx(wrong / size, rel=1e-5)
    with torch.no_grad():
        for _, layer in fake_layers(fake):
            layer.weight.add_(1.0)
    assert rounding_error(small, fake) == first
    assert rounding_error(small, prepare(small, "int8-channel", skip=())) < first / 20


def test_codes_change_where_weights_cross_to_another_level():
    small = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        small.weight.copy_(torch.tensor([[7.0, 1.1, -2.2, 3.3], [-7.0, 0.2, 5.4, 0.1]]))
    holder = nn.Sequential(small)
    fake = prepare(holder, "int4-channel", skip=())
    ((_, layer),) = fake_layers(fake)
    assert codes_change(holder, fake) == 0
    with torch.no_grad():
        layer.weight[0, 1] += 0.3  # 1.4 is still nearest to 1
        layer.weight[0, 2] += 1.0  # -2.2 was -2, -1.2 is -1
        layer.weight[1, 2] += 0.2  # 5.4 was 5, 5.6 is 6
    assert codes_change(holder, fake) == 2 / 8
    with torch.no_grad():
        layer.weight.copy_(small.weight * 1.01)  # all levels move with them, none is crossed
    assert codes_change(holder, fake) == 0


def test_hidden_states_of_the_same_model_are_equal_and_fewer_bits_change_more(plain):
    rows = [torch.arange(20)[None], torch.arange(30, 42)[None]]
    assert output_change(plain, plain, rows) == 0
    was = plain.training
    change = [
        output_change(plain, prepare(plain, scheme), rows)
        for scheme in ("int8-channel", "int4-channel", "int2-channel")
    ]
    assert 0 < change[0] < change[1] < change[2]
    assert plain.training == was


def test_clear_errors(plain):
    small = model()
    with pytest.raises(QlabError, match="prepare first"):
        weight_change(small, small)
    with pytest.raises(QlabError, match=r"layer '0'"):
        weight_change(
            nn.Sequential(nn.ReLU(), nn.Linear(12, 4)), prepare(small, "int4-channel", skip=())
        )
    with pytest.raises(QlabError, match="at least one row"):
        output_change(plain, plain, [])


# The recorded experiment.


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_the_search_ends_with_the_best_rate_enclosed():
    for best in range(len(RATES)):
        seen = {}
        while (place := next_rate(seen)) is not None:
            seen[place] = abs(place - best) + 1.0
        assert min(seen, key=seen.get) == best
        assert {best - 1, best + 1} & set(range(len(RATES))) <= set(seen)


def test_the_record_is_of_these_weights_and_of_the_script(record):
    assert record["about"]["weights"] == weights_hash(), "run tools/record_transition.py --fresh"
    assert record["about"]["steps"] == STEPS
    for name, run in record["runs"].items():
        assert (
            run["bits"] in WIDTHS
            and run["rate"] in RATES
            and name == name_of(run["bits"], run["rate"])
        )


@pytest.mark.parametrize("bits", WIDTHS)
def test_each_width_has_its_best_rate_enclosed(record, bits):
    seen = {
        RATES.index(run["rate"]): run["kl"]
        for run in record["runs"].values()
        if run["bits"] == bits
    }
    assert next_rate(seen) is None
