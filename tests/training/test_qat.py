"""prepare, train, convert: the same numbers from end to end, and plain words for bad input."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.errors import QlabError
from qlab.training import (
    FakeQuantLinear,
    TrainOptions,
    convert,
    distillation_loss,
    fake_layers,
    prepare,
    story_batches,
    task_loss,
    train,
    write_log,
)
from qlab.training.options import rate
from qlab.training.trainer import to_trainer
from tests.models import random_model

SHORT = TrainOptions(steps=6, lr=1e-2, warmup=1)


def rows_of(step, vocabulary=100):
    """int64 (2, 12): always the same few sequences, so that there is something to learn."""
    g = torch.Generator().manual_seed(step % 3)
    return torch.randint(3, vocabulary, (2, 12), generator=g)


@pytest.fixture(scope="module")
def plain():
    return random_model("qwen2")


@settings(max_examples=4, deadline=None)
@given(
    word=st.sampled_from(["int4-channel", "int2-asym-channel", "int3-full-g16", "fp4_e2m1-g32",
                          "nf4-g32", "ternary-channel", "int4-g16-sfp16", "int8-tensor"]),
    inputs=st.sampled_from([None, "int8-token", "int8-asym-token", "int8-asym-tensor", "int4-g16"]),
    method=st.sampled_from(["ste", "lsq", "range", "pact"]),
    kind=st.sampled_from(["qwen2", "gpt2", "opt"]),
)  # fmt: skip
def test_converted_outputs_are_equal_bit_for_bit(word, inputs, method, kind):
    model, data = random_model(kind), [rows_of(0)[:1], rows_of(1)[:1]]
    try:
        fake = prepare(model, word, inputs, method, calibration=data)
    except QlabError as error:
        assert method == "pact" and "PACT learns" in str(error)
        return
    train(fake, rows_of, TrainOptions(steps=2, lr=1e-2))
    small, ids = convert(fake), rows_of(7)
    fake.eval()
    with torch.no_grad():
        assert torch.equal(fake(input_ids=ids).logits, small(input_ids=ids).logits)
    # With gradients switched on evaluation has the same values.
    assert torch.equal(fake(input_ids=ids).logits.detach(), small(input_ids=ids).logits)
    names = [n for n, _ in qlab.nn.quant_layers(small)]
    assert names == [n for n, _ in fake_layers(fake)] and names


def test_without_training_ste_is_round_to_nearest(plain):
    ids = rows_of(0)
    small, _ = qlab.quantize_model(plain, "rtn", "int3-channel")
    with torch.no_grad():
        want = small(input_ids=ids).logits
        assert torch.equal(convert(prepare(plain, "int3-channel"))(input_ids=ids).logits, want)
    start, _ = qlab.quantize_model(plain, "mse", "int3-channel")
    fake = prepare(plain, "int3-channel", method="lsq")
    with torch.no_grad():
        assert torch.equal(fake(input_ids=ids).logits, start(input_ids=ids).logits)


@pytest.mark.parametrize("method", ["ste", "lsq", "range"])
def test_training_learns_and_leaves_the_original(plain, method):
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    fake = prepare(plain, "int2-asym-channel", method=method)
    rows = train(fake, rows_of, TrainOptions(steps=20, lr=1e-2, range_lr=1e-3, warmup=2))
    assert rows[-1].loss < 0.7 * rows[0].loss
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())
    assert [r.step for r in rows] == list(range(1, 21)) and not fake.training


def test_distillation_moves_towards_the_teacher(tiny):
    model, _ = tiny
    fake = prepare(model, "int2-asym-channel")
    options = TrainOptions(steps=20, lr=5e-3, warmup=2, distill=1.0, temperature=2.0)
    rows = train(fake, lambda step: rows_of(step, 300), options, teacher=model)
    assert rows[-1].distance < 0.5 * rows[0].distance
    assert rows[0].loss == rows[0].distance  # a share of 1 is nothing else


def test_losses_are_their_definitions():
    a, b = torch.randn(2, 5, 11), torch.randn(2, 5, 11)
    ids = torch.randint(0, 11, (2, 5))
    p, q = torch.softmax(b / 3, -1), torch.softmax(a / 3, -1)
    want = 9 * (p * (p / q).log()).sum(-1)[:, :-1].mean()
    assert distillation_loss(a, b, 3.0).item() == pytest.approx(want.item(), rel=1e-5)
    assert distillation_loss(a, a).item() == 0
    nll = -torch.log_softmax(a, -1)[:, :-1].gather(-1, ids[:, 1:, None]).mean()
    assert task_loss(a, ids).item() == pytest.approx(nll.item(), rel=1e-6)


def test_the_trainer_takes_the_same_steps(plain, tmp_path):
    options = TrainOptions(steps=6, lr=1e-2, warmup=2, distill=0.5, weight_decay=0.1)
    ours = prepare(plain, "int3-asym-channel", method="lsq")
    theirs = prepare(plain, "int3-asym-channel", method="lsq")
    rows = train(ours, rows_of, options, teacher=plain)
    trainer = to_trainer(theirs, rows_of, options, teacher=plain, folder=tmp_path / "t")
    trainer.train()
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[k], other[k]) for k in mine)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([r.loss for r in rows], abs=1e-4)


@pytest.mark.parametrize("method", ["ste", "lsq"])
def test_an_interrupted_training_goes_on_to_the_same_numbers(plain, method, tmp_path):
    whole = prepare(plain, "int3-channel", method=method)
    rows = train(whole, rows_of, SHORT)
    first = prepare(plain, "int3-channel", method=method)
    train(first, rows_of, SHORT, checkpoint=tmp_path / "c", stop_after=3)
    second = prepare(plain, "int3-channel", method=method)
    resumed = train(second, rows_of, SHORT, checkpoint=tmp_path / "c")
    assert resumed == rows
    a, b = whole.state_dict(), second.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    # Once more: there is nothing left to do.
    assert train(second, rows_of, SHORT, checkpoint=tmp_path / "c") == rows


def test_checkpoints_of_others_are_refused(plain, tmp_path):
    folder = tmp_path / "c"
    train(prepare(plain, "int3-channel"), rows_of, SHORT, checkpoint=folder, stop_after=2)
    for other in (prepare(plain, "int2-channel"), prepare(plain, "int3-channel", method="lsq"),
                  prepare(plain, "int3-channel", "int8-token")):  # fmt: skip
        with pytest.raises(QlabError, match=r"is of another scheme: layer 'model\.layers\.0"):
            train(other, rows_of, SHORT, checkpoint=folder)
    fake = prepare(plain, "int3-channel")
    with pytest.raises(QlabError, match=r"with lr=0.01, not 0.02"):
        train(fake, rows_of, TrainOptions(steps=6, lr=2e-2, warmup=1), checkpoint=folder)
    (folder / "progress.json").write_text("{")
    with pytest.raises(QlabError, match="is no checkpoint"):
        train(fake, rows_of, SHORT, checkpoint=folder)


def test_what_is_not_finite_is_named_with_step_and_layer(plain):
    name = "model.layers.1.mlp.down_proj"

    def poison(step):
        if step == 2:
            with torch.no_grad():
                fake.get_submodule(name).weight[0, 0] = float("nan")
        return rows_of(step)

    fake = prepare(plain, "int4-channel")
    with pytest.raises(QlabError, match=rf"step 3: layer '{name}': x has nan"):
        train(fake, poison, SHORT)
    fake = prepare(plain, "int4-channel", schemes={name: None})  # a plain layer among the others
    with pytest.raises(QlabError, match=rf"nan at step 3: .* parameter '{name}.weight'"):
        train(fake, poison, SHORT)
    fake = prepare(plain, "int4-channel")
    norm = fake.model.layers[1].input_layernorm
    norm.register_forward_hook(lambda m, i, o: o * float("inf"))
    with pytest.raises(QlabError, match=r"layer 'model.layers.1.self_attn.q_proj'|input_layernorm"):
        train(fake, rows_of, SHORT)
    fake = prepare(plain, "int4-channel")
    weight = fake.get_submodule(name).weight
    weight.register_hook(lambda g: g * float("nan"))
    with pytest.raises(QlabError, match=rf"gradient became nan at step 1, .*'{name}.weight'"):
        train(fake, rows_of, SHORT)


def test_bad_input(plain):
    with pytest.raises(QlabError, match="codebook is fitted anew"):
        prepare(plain, "kmeans4-channel")
    with pytest.raises(QlabError, match="unknown method 'lqs'"):
        prepare(plain, "int4-channel", method="lqs")
    with pytest.raises(QlabError, match="unknown start"):
        prepare(plain, "int4-channel", method="lsq", start="max")
    with pytest.raises(QlabError, match=r"layer 'model.layers.0.self_attn.q_proj': .*g24"):
        prepare(plain, "int4-g24")
    with pytest.raises(QlabError, match="prepared already"):
        prepare(prepare(plain, "int4-channel"), "int4-channel")
    with pytest.raises(QlabError, match="prepare first"):
        convert(plain)
    with pytest.raises(QlabError, match="needs a teacher"):
        train(prepare(plain, "int4-channel"), rows_of, TrainOptions(distill=0.5))
    with pytest.raises(QlabError, match="no layer is called"):
        prepare(plain, "int4-channel", schemes={"*.nothing": "int8-channel"})
    with pytest.raises(QlabError, match="static, which needs data"):
        prepare(plain, "int4-channel", "int8-asym-tensor")
    frozen = prepare(plain, "int4-channel").requires_grad_(False)
    with pytest.raises(QlabError, match="nothing to train"):
        train(frozen, rows_of, SHORT)
    for bad in ({"steps": 0}, {"lr": -1.0}, {"distill": 2.0}, {"schedule": "step"}):
        with pytest.raises(QlabError):
            TrainOptions(**bad)
    with pytest.raises(QlabError, match="needs a matrix"):
        FakeQuantLinear(torch.zeros(3), None, None)


def test_schedule():
    o = TrainOptions(steps=100, warmup=9)
    assert rate(0, o) == pytest.approx(0.1) and rate(9, o) == 1 and rate(100, o) == 0
    assert rate(54, o) == pytest.approx(1 - 45 / 91)
    c = TrainOptions(steps=100, warmup=0, schedule="cosine")
    assert rate(50, c) == pytest.approx(0.5)
    assert rate(99, TrainOptions(steps=100, schedule="constant")) == 1


def test_mixed_schemes(plain):
    fake = prepare(plain, "int4-channel", schemes={"*.down_proj": "int8-channel", "*.o_proj": None})
    found = {n: str(m.quantizer.scheme) for n, m in fake_layers(fake)}
    assert found["model.layers.1.mlp.down_proj"] == "int8-channel"
    assert not any(n.endswith("o_proj") for n in found)
    assert found["model.layers.0.self_attn.q_proj"] == "int4-channel"


def test_a_trained_model_is_exported_like_any_other(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    from qlab.export import load_folder, save_folder, save_foreign
    from qlab.gguf import to_gguf

    model, tokenizer = tiny
    fake = prepare(model, "int4-g32-sfp16", method="lsq")
    train(fake, lambda step: rows_of(step, 300), TrainOptions(steps=2))
    small, ids = convert(fake), rows_of(1, 300)
    with torch.no_grad():
        want = small(input_ids=ids).logits
        save_folder(small, tokenizer, tmp_path / "qlab")
        assert torch.equal(load_folder(tmp_path / "qlab")(input_ids=ids).logits, want)
        save_foreign(small, tokenizer, tmp_path / "ct", "compressed-tensors")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ct", dtype=torch.float32)
        torch.testing.assert_close(theirs(input_ids=ids).logits, want, rtol=1e-4, atol=1e-4)
        to_gguf(small, tokenizer, tmp_path / "s.gguf", "f32")
        back = qlab.load(tmp_path / "s.gguf").model
        torch.testing.assert_close(back(input_ids=ids).logits, want, rtol=1e-4, atol=1e-4)


def test_story_batches(tiny):
    _, tokenizer = tiny
    draw = story_batches(
        tokenizer, batch=3, length=20, seed=4, texts=["the fox", "and the moon", "once"]
    )
    assert draw(5).shape == (3, 20) and draw(5).dtype == torch.int64
    assert torch.equal(draw(5), draw(5)) and not torch.equal(draw(5), draw(6))
    with pytest.raises(QlabError, match="no texts"):
        story_batches(tokenizer, texts=[])
    with pytest.raises(QlabError, match="take 1 row"):
        story_batches(tokenizer, batch=0)


def test_log_file(plain, tmp_path):
    seen = []

    def evaluate(model):
        seen.append(model.training)
        return 1.5

    rows = train(
        prepare(plain, "int4-channel"), rows_of, SHORT, evaluate=evaluate, evaluate_every=4
    )
    assert [r.evaluation for r in rows] == [None, None, None, 1.5, None, 1.5]
    assert seen == [False, False]
    write_log(tmp_path / "log.csv", rows)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0].startswith("step,rate,loss") and len(lines) == 7
    assert json.dumps(rows[0].loss)
