"""A tiny training run: resumed exactly, stopped at NaN, refused on bad data."""

import csv
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlab.errors import QlabError
from qlab.story import batches, load
from qlab.story.average import average
from qlab.story.settings import read_settings
from qlab.story.train import COLUMNS, apart, bring_in, build_model, build_optimizers, rate, train

CONFIG = """
[model]
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 2
context = 512

[tokenizer]
vocab_size = 300

[data]
stories = 0.5
world = 0.5

[training]
seed = 7
steps = 6
batch = 2
sequence = 64
warmup = 2
decay = 0.5
muon_lr = 0.02
muon_weight_decay = 0.1
adamw_lr = 0.003
feature_limit = 4
evaluate_every = 3
checkpoint_every = 3
"""


class Interrupted(Exception):
    """Stands for a power cut."""


@pytest.fixture(autouse=True)
def few_stories(monkeypatch):
    """A few stories to train and to evaluate on: enough to check a number, quick to read."""
    from qlab.story import batches
    from qlab.story import train as module

    whole, documents = module.texts, batches.project_documents
    monkeypatch.setattr(module, "texts", lambda split: whole(split)[:4])
    monkeypatch.setattr(
        batches, "project_documents", lambda: {k: v[:400] for k, v in documents().items()}
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def begin(tiny, tmp_path, config):
    """Start a run: ``begin(name, ...)`` -> its folder. The tokenizer is there already."""

    def run(name, **options):
        out = tmp_path / name
        if not (out / "tokenizer").exists():
            tiny[1].save_pretrained(out / "tokenizer")
        options.setdefault("config", config)
        return train(out, device="cpu", **options)

    return run


def interrupt(monkeypatch, step):
    """The run is cut before this step; the returned list holds the steps that were drawn."""
    drawn = []
    whole = batches.Batches.__call__

    def draw(self, now):
        if now == step:
            raise Interrupted
        drawn.append(now)
        return whole(self, now)

    monkeypatch.setattr(batches.Batches, "__call__", draw)
    return drawn


def state(out):
    return load_file(out / "checkpoint" / "state.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_six_steps_leave_a_model_that_loads(begin):
    out = begin("whole")
    story = load(out / "model")
    assert story.model.config.vocab_size == 300
    assert all(torch.isfinite(p).all() for p in story.model.parameters())
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert [int(r["step"]) for r in rows] == [3, 6]
    assert [int(r["tokens"]) for r in rows] == [3 * 2 * 64, 6 * 2 * 64]
    # Learned already: below the loss of a guess among 300 pieces.
    assert float(rows[1]["validation_loss"]) < float(rows[0]["validation_loss"]) < math.log(300)
    assert (out / "loss.svg").read_text().lstrip().startswith("<?xml")


def test_the_same_run_gives_the_same_weights(begin):
    assert equal(state(begin("one")), state(begin("two")))


def test_an_interrupted_run_ends_with_exactly_the_same_weights(begin, monkeypatch):
    whole = begin("whole")
    with monkeypatch.context() as patch:
        interrupt(patch, step=5)
        with pytest.raises(Interrupted):
            begin("cut")
    cut = whole.parent / "cut"
    assert json.loads((cut / "checkpoint" / "progress.json").read_text())["step"] == 3
    assert not (cut / "model").exists()
    with monkeypatch.context() as patch:
        drawn = interrupt(patch, step=None)
        begin("cut")
    assert drawn == [3, 4, 5]
    assert equal(state(whole), state(cut))
    final = load_file(whole / "model" / "model.safetensors")
    assert equal(final, load_file(cut / "model" / "model.safetensors"))
    # The log goes on, too: all but the seconds.
    logs = [list(csv.DictReader((f / "log.csv").open())) for f in (whole, cut)]
    for a, b in zip(*logs, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_a_run_with_detours_is_resumed_exactly_too(begin, monkeypatch, tmp_path):
    """They depend on the weights, so they are collected anew where a checkpoint is."""
    from qlab.story import detours

    said = []

    def in_circles(model, tokenizer, starts):
        """What a model that has learned nothing does not do: words, which depend on its weights."""
        now = float(model.model.embed_tokens.weight.double().abs().sum())
        said.append(f"It was {'very ' * (int(now * 1e6) % 97)}big. I like tea. I like tea.")
        return [said[-1]] * len(starts)

    monkeypatch.setattr(detours, "_continue", in_circles)
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.replace("world = 0.5", "detours = 0.5"))
    whole = begin("whole", config=path)
    with monkeypatch.context() as patch:
        interrupt(patch, step=5)
        with pytest.raises(Interrupted):
            begin("cut", config=path)
    begin("cut", config=path)
    assert equal(state(whole), state(whole.parent / "cut"))
    # At the start and at the checkpoint; in the run that was cut, at the checkpoint once more.
    assert said[:2] == said[2:4] and said[1:2] == said[4:] and said[0] != said[1]


def test_the_optimizers_go_on_where_they_were(begin, monkeypatch):
    """Without their state, the weights would come out otherwise."""
    from qlab.story import train as module

    whole = begin("whole")
    with monkeypatch.context() as patch:
        interrupt(patch, step=5)
        with pytest.raises(Interrupted):
            begin("cut")
    file = whole.parent / "cut" / "checkpoint" / "state.safetensors"
    kept = {k: v for k, v in load_file(file).items() if k.startswith("model.")}
    module.save_file(kept, file)
    assert not equal(state(whole), state(begin("cut")))


def test_a_run_that_is_cut_while_the_checkpoint_is_exchanged(begin, monkeypatch):
    """Between the two renames only the old one has a name."""
    whole = begin("whole")
    with monkeypatch.context() as patch:
        interrupt(patch, step=4)
        with pytest.raises(Interrupted):
            begin("cut")
    cut = whole.parent / "cut"
    (cut / "checkpoint").rename(cut / "checkpoint.old")
    with monkeypatch.context() as patch:
        drawn = interrupt(patch, step=None)
        begin("cut")
    assert drawn[0] == 3
    assert equal(state(whole), state(cut))


def test_a_finished_run_is_not_trained_further(begin, monkeypatch):
    out = begin("whole")
    before = state(out)
    drawn = interrupt(monkeypatch, step=None)
    begin("whole")
    assert drawn == [] and equal(before, state(out))


def test_more_steps_go_on_from_the_checkpoint(begin, monkeypatch):
    begin("whole")
    drawn = interrupt(monkeypatch, step=None)
    out = begin("whole", steps=8)
    assert drawn == [6, 7]
    assert json.loads((out / "checkpoint" / "progress.json").read_text())["step"] == 8


def test_a_loss_that_becomes_nan_stops_the_run_and_names_the_step(begin, tmp_path):
    path = tmp_path / "wild.toml"
    wild = CONFIG.replace("muon_lr = 0.02", "muon_lr = 1e30").replace("0.003", "1e30")
    path.write_text(wild)
    with pytest.raises(QlabError, match=r"the loss became (nan|inf) at step [12]: lower muon_lr"):
        begin("wild", config=path)
    assert not (tmp_path / "wild" / "model").exists()
    assert not (tmp_path / "wild" / "checkpoint").exists()


def test_nan_after_a_checkpoint_leaves_it_whole(begin, monkeypatch, tmp_path):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def broken(self, *args, **options):
        out = forward(self, *args, **options)
        if self.training_step >= 4:
            out.loss = out.loss * float("nan")
        return out

    drawn = interrupt(monkeypatch, step=None)
    monkeypatch.setattr(
        LlamaForCausalLM, "training_step", property(lambda self: drawn[-1]), raising=False
    )
    monkeypatch.setattr(LlamaForCausalLM, "forward", broken)
    with pytest.raises(QlabError, match="the loss became nan at step 4"):
        begin("broken")
    progress = json.loads((tmp_path / "broken" / "checkpoint" / "progress.json").read_text())
    assert progress["step"] == 3
    assert all(torch.isfinite(v).all() for v in state(tmp_path / "broken").values())


def test_bad_corpora_are_refused_before_anything_is_trained(begin, tmp_path):
    tales = tmp_path / "tales.jsonl"
    tales.write_text('{"text": "Once upon a time"}\n{"text": "Once up')
    table = tmp_path / "tales.parquet"
    table.write_text("PAR1")
    for corpus, message in [
        (tmp_path / "gone.txt", "no corpus file at"),
        (table, "expected .txt or .jsonl"),
        (tales, "tales.jsonl"),
    ]:
        with pytest.raises(QlabError, match=message):
            begin("refused", corpora=[corpus])
    assert not (tmp_path / "refused" / "checkpoint").exists()


def test_a_corpus_is_read_and_used(begin, tmp_path, config):
    tales = tmp_path / "tales.jsonl"
    text = "The moon and the fox looked at each other for a long time. " * 10
    tales.write_text(json.dumps({"text": text}) + "\n")
    path = tmp_path / "tales.toml"
    path.write_text(CONFIG.replace("world = 0.5", "fairy = 0.5"))
    without = state(begin("without", config=path, steps=1))
    assert not equal(without, state(begin("with", config=path, steps=1, corpora=[tales])))


def test_a_run_may_start_from_other_weights(begin, tiny_folder, tiny, tmp_path):
    """No steps: the weights come out as they went in, but for bfloat16."""
    path = tmp_path / "like.toml"
    like = CONFIG.replace("intermediate_size = 128", "intermediate_size = 96")
    path.write_text(like)
    out = begin("copy", config=path, steps=0, start_from=tiny_folder)
    source = tiny[0].state_dict()
    for name, weight in load(out / "model").model.state_dict().items():
        assert torch.equal(weight, source[name].bfloat16().float()), name


def test_there_must_be_weights_to_start_from(begin, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(QlabError, match=r"no model.safetensors in .*empty"):
        begin("copy", start_from=tmp_path / "empty")


def test_the_rate_warms_up_stays_and_falls(config):
    settings = read_settings(config)
    rates = [rate(step, settings) for step in range(settings.training.steps)]
    assert rates == pytest.approx([1 / 2, 1, 1, 1, 2 / 3, 1 / 3])


def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest(config):
    settings = read_settings(config)
    model = build_model(settings)
    muon, adamw = build_optimizers(model, settings)
    inside = {id(p) for p in model.model.layers.parameters() if p.ndim == 2}
    assert {id(p) for g in muon.param_groups for p in g["params"]} == inside
    rest = {id(p) for g in adamw.param_groups for p in g["params"]}
    assert not rest & inside
    assert rest | inside == {id(p) for p in model.parameters()}


def test_the_seed_decides_the_first_weights(config):
    from dataclasses import replace

    settings = read_settings(config)
    other = replace(settings, training=replace(settings.training, seed=8))
    one, again, two = (build_model(s).state_dict() for s in (settings, settings, other))
    assert equal(one, again) and not equal(one, two)


def test_a_fresh_model_knows_its_token_and_can_pass_it_on():
    """Half of the heads begin as projections of what they look at; embeddings outweigh layers."""
    from qlab.story.settings import read_settings
    from qlab.story.train import build_model

    settings = read_settings()
    model = build_model(settings)
    again = build_model(settings)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    config = model.config
    for layer in model.model.layers:
        for head in range(config.num_attention_heads):
            rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
            passed = layer.self_attn.o_proj.weight[:, rows] @ layer.self_attn.v_proj.weight[rows]
            projection = passed / 0.3
            copies = torch.allclose(projection @ projection, projection, atol=1e-4)
            assert copies == (head < config.num_attention_heads // 2)
    ids = torch.arange(3, 131)[None]
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    # The last entry is after the final norm. Before it, the embedding is most of what is there.
    embedded, last = states[0][0], states[-2][0]
    cosine = torch.nn.functional.cosine_similarity(embedded, last)
    assert cosine.mean() > 0.9


def test_training_goes_on_from_the_mean_of_two_runs(begin, tmp_path):
    one, two = begin("one", steps=3), begin("two", steps=3)
    state = "checkpoint/state.safetensors"
    other = load_file(two / state)
    save_file({k: v + 0.01 if k.startswith("model.") else v for k, v in other.items()}, two / state)
    mean = average([one, two], tmp_path / "mean")
    before = load_file(mean / state)["model.model.norm.weight"]
    assert (before - load_file(one / state)["model.model.norm.weight"]).abs().max() > 0.004
    begin("mean", steps=3)  # nothing left to do: the model of the mean is written
    written = load_file(mean / "model" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(written, before.to(torch.bfloat16))
    begin("mean", steps=6)
    assert json.loads((mean / "checkpoint" / "progress.json").read_text())["step"] == 6


def test_documents_of_a_row_do_not_see_each_other(tiny):
    """The logits of the second story of a row are those that it has alone."""
    model, tokenizer = tiny
    bos = tokenizer.bos_token_id
    g = torch.Generator().manual_seed(0)
    first, second, tail = (torch.randint(3, 90, (n,), generator=g) for n in (9, 14, 5))
    start = torch.tensor([bos])
    # A row may begin in the middle of a document.
    row = torch.cat([tail, start, first, start, second])[None]
    with torch.no_grad():
        packed = model(input_ids=row, **apart(row, bos)).logits[0]
        for at, part in (
            (0, tail),
            (5, torch.cat([start, first])),
            (15, torch.cat([start, second])),
        ):
            alone = model(input_ids=part[None]).logits[0]
            torch.testing.assert_close(packed[at : at + len(part)], alone, rtol=1e-4, atol=1e-5)
        assert (model(input_ids=row).logits[0, 15:] - packed[15:]).abs().max() > 1e-3


def test_a_far_feature_comes_in_and_the_others_stay():
    weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    weight[:, 5] = 30
    before = weight.clone()
    bring_in(weight, 4, share=0.1)
    others = [i for i in range(16) if i != 5]
    assert torch.equal(weight[:, others], before[:, others])
    assert torch.allclose(weight[:, 5], 0.9 * before[:, 5])
    for _ in range(40):
        bring_in(weight, 4, share=0.1)
    sizes = weight.square().mean(0).sqrt()
    # It stops within one step of the limit, and does not go on to zero.
    assert 0.9 * 4 <= sizes[5] / sizes.median() <= 4


@pytest.mark.parametrize(("limit", "least", "most"), [(0, 29.9, 30.1), (4, 28, 29.8)])
def test_training_brings_a_far_feature_in_where_a_limit_is_set(tmp_path, limit, least, most):
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.replace("feature_limit = 4", f"feature_limit = {limit}"))
    first = train(tmp_path / "first", config=config, steps=1, device="cpu") / "model"
    weights = load_file(first / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 9] = 30
    save_file(weights, first / "model.safetensors", metadata={"format": "pt"})
    run = train(tmp_path / "run", config=config, device="cpu", start_from=first)
    found = load_file(run / "checkpoint" / "state.safetensors")["model.model.embed_tokens.weight"]
    # Six steps of 0.3% where the limit is set; AdamW's own are 0.003 at most.
    assert least < found[:, 9].abs().mean() < most
