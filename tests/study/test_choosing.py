"""The rules of the decision aid, on options of our own and on those of the case study."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import qlab
from qlab.core import Scheme
from qlab.errors import QlabError
from qlab.study import choosing
from qlab.study.choosing import Choice, Device, Needs, Option, Size, Task, choose, obstacles

ENGINES = ("qlab", "llama.cpp", "vLLM")
names = st.sets(st.sampled_from(ENGINES), min_size=1).map(lambda s: tuple(sorted(s)))
options = st.lists(
    st.builds(
        Option,
        st.text("abc", min_size=1, max_size=3),
        st.floats(1, 32),
        st.floats(0, 2),
        st.floats(1, 5),
        names,
    ),
    min_size=1,
    max_size=12,
)
needs = st.builds(
    Needs,
    st.builds(Size, st.just("m"), st.floats(1e6, 1e11), st.integers(1, 80), st.integers(64, 2048)),
    st.builds(Device, st.just("d"), st.floats(1e8, 1e12), st.floats(1e9, 4e12), names),
    st.builds(Task, st.just("t"), st.integers(1, 64), st.integers(1, 10**5)),
    st.floats(0, 100),
    st.floats(0, 2),
)


@settings(max_examples=120, deadline=None)
@given(options, needs)
def test_what_is_recommended_satisfies_every_demand(all_options, demands):
    found = choose(all_options, demands)
    if found.best is None:
        assert found.relax and found.fits == 0 and all(obstacles(o, demands) for o in all_options)
        return
    for option in (found.best, found.smallest, found.fastest):
        weights = demands.size.weights * option.bits / 8
        size, task = demands.size, demands.task
        caches = task.texts * task.tokens * size.layers * size.numbers * 2
        assert weights + caches <= 0.8 * demands.device.memory
        assert demands.device.bandwidth / (weights + caches) >= demands.speed
        assert option.loss <= demands.loss
        assert set(option.engines) & set(demands.device.engines)
    fit = [o for o in all_options if not obstacles(o, demands)]
    assert found.fits == len(fit)
    assert found.best.loss == min(o.loss for o in fit)
    assert found.smallest.bits == min(o.bits for o in fit)


@settings(max_examples=80, deadline=None)
@given(options, needs, st.floats(1, 10))
def test_more_of_anything_never_gives_worse_quality(all_options, demands, factor):
    before = choose(all_options, demands)
    assume(before.best is not None)
    device = demands.device
    for more in (
        replace(demands, device=replace(device, memory=device.memory * factor)),
        replace(demands, device=replace(device, bandwidth=device.bandwidth * factor)),
        replace(demands, device=replace(device, engines=ENGINES)),
        replace(demands, speed=demands.speed / factor),
        replace(demands, loss=demands.loss * factor),
        replace(demands, task=replace(demands.task, texts=1)),
    ):
        after = choose(all_options, more)
        assert after.best.loss <= before.best.loss and after.fits >= before.fits


@settings(max_examples=80, deadline=None)
@given(options, needs)
def test_what_is_said_to_help_helps(all_options, demands):
    """Each way to relax is one number: with that number something fits."""
    found = choose(all_options, demands)
    assume(found.best is None)
    easier = {
        "the memory": replace(demands, device=replace(demands.device, memory=math.inf)),
        "the speed": replace(demands, speed=0.0),
        "the loss": replace(demands, loss=math.inf),
        "the engine": replace(demands, device=replace(demands.device, engines=ENGINES)),
    }
    said = {line.partition(":")[0] for line in found.relax} & set(easier)
    for name, other in easier.items():
        assert (choose(all_options, other).best is not None) == (name in said), name
    if not said:
        assert found.relax[0].startswith("more than one demand at once")


def test_the_numbers_that_it_says():
    """One option of 4 bits; 8 billion weights make 4 GB."""
    one = [Option("four", 4.0, 0.1, 1.1, ("qlab",))]
    size, task = Size("8B", 8e9, 1, 1), Task("one", 1, 1)
    device = Device("small", 10e9, 40e9, ("qlab",))
    assert choose(one, Needs(size, device, task)) == Choice(one[0], one[0], one[0], 1)
    for demands, words in (
        (Needs(size, replace(device, memory=4e9), task), "the memory: 5 GB in place of 4"),
        (Needs(size, device, task, speed=20), "the speed: 10 tokens/s in place of 20"),
        (Needs(size, device, task, loss=0.01), "the loss: 0.1 nats in place of 0.01"),
        (Needs(size, replace(device, engines=("vLLM",)), task), "the engine: four runs in qlab"),
        (Needs(size, device, task, 20, 0.01), "more than one demand at once: speed and loss"),
    ):
        found = choose(one, demands)
        assert found.best is None and found.relax[0].startswith(words), found.relax
    long = choose(one, Needs(Size("8B", 8e9, 100, 2048), device, Task("long", 64, 10**6)))
    assert found.relax and "caches alone" in long.relax[-1]
    for bad in (Needs(size, device, task, speed=math.nan), Needs(size, device, task, loss=-1)):
        with pytest.raises(QlabError, match="0 or above"):
            choose(one, bad)
    with pytest.raises(QlabError, match="no options"):
        choose([], Needs(size, device, task))


def lines():
    from qlab.study import read_lines

    found = {}
    for line in read_lines():
        if line.kind in ("method", "mix"):
            found[line.method and "quantized", line.scheme, line.activations] = line
    return list(found.values())


@pytest.mark.parametrize("line", lines(), ids=lambda line: line.name)
def test_a_layout_is_claimed_where_it_holds_the_weights(line):
    """Try: write one layer of that scheme in each layout."""
    from qlab.activations import ActivationQuant
    from qlab.export import layouts
    from qlab.gguf.mixes import get_mix
    from qlab.nn import QuantLinear

    claimed = choosing.exports(line.method, line.scheme, line.activations)
    if line.kind == "mix":
        assert get_mix(line.scheme) and claimed == ("gguf",)
        return
    if claimed == ("bitsandbytes",) or line.method == "llm_int8":
        assert line.method in ("nf4", "llm_int8")
        return
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    inputs = ActivationQuant(Scheme.parse(line.activations)) if line.activations else None
    layer = QuantLinear(qlab.quantize(w, line.scheme), None, inputs)
    write = {
        "gptq": lambda x: layouts.to_gptq(x, 1),
        "awq": layouts.to_awq,
        "compressed-tensors": lambda x: layouts.to_compressed(x, torch.float32),
    }
    for name in claimed:
        assert write[name](layer)


def test_who_loads_what_is_what_the_coverage_record_shows():
    from qlab.coverage import coverage

    record = {one.subject.removeprefix("export "): one.engines for one in coverage("export")}
    for layout, loaders in choosing.LOADERS.items():
        shown = {engine.removesuffix(" (recorded)") for engine in record[layout]}
        restores = {"transformers"} if layout in ("gguf", "compressed-tensors") else set()
        left_out = {"qlab", "qlab engine"} | restores
        assert set(loaders) == shown - left_out, layout


def test_options_of_a_record(tmp_path):
    base = {"bits_per_weight": 4.5, "file_bytes": 10, "schemes": {}}
    line = {"activations": "", "importance": False, "among": [], "steps": 0, "family": "x"}

    def row(name, method, scheme, kl, **more):
        measures = {"ratio": [1 + kl, 1, 2], "kl": [kl, 0, 1]}
        return {**base, "line": {**line, "name": name, "method": method, "scheme": scheme, **more},
                "measures": measures}  # fmt: skip

    rows = [
        row("whole", "", "", 0.0),
        row("q4", "", "q4_0", 0.2),
        row("gptq", "gptq", "int4-g128-sfp16", 0.1),
        row("student", "", "int4-channel", 0.05, steps=40),
    ]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"about": {}, "rows": rows}))
    found = choosing.read_options(path)
    assert [o.name for o in found] == ["whole", "student", "gptq", "q4"]
    assert [o.bits for o in found] == [16.0, 4.5, 4.5, 4.5]
    assert found[1].engines == ("qlab",) and "vLLM" in found[2].engines
    assert found[3].engines == ("qlab", "llama.cpp")
    with pytest.raises(QlabError, match="case study"):
        choosing.read_options(tmp_path / "none.json")
