"""What DeepSpeed did with the training of qlab.training.processes, against a run here and now."""

import json
from importlib import resources

import pytest

import qlab
from qlab.errors import QlabError
from qlab.training import TrainOptions, prepare, story_batches, train
from qlab.training.processes import train_processes
from qlab.training.zero import FLOAT32, zero_memory
from tools.record_deepspeed import CONFIGS, RECORD, ROOT
from tools.weights import weights_hash

REMEDY = "run tools/record_deepspeed.py in DeepSpeed's environment"


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_the_record_is_of_these_weights_and_files(record):
    assert record["weights"] == weights_hash(), REMEDY
    assert set(record["versions"]) >= {"deepspeed", "torch", "transformers", "accelerate"}
    assert set(record["configs"]) == set(CONFIGS)
    for name, config in record["configs"].items():
        file = resources.files("qlab") / "training" / f"deepspeed_{name}.json"
        assert json.loads(file.read_text(encoding="utf-8")) == config, f"{name}: {REMEDY}"
        assert config["zero_optimization"]["stage"] == int(name[4])
        assert ("offload_param" in config["zero_optimization"]) == name.endswith("offload")
    assert (ROOT / record["script"]).is_file()


@pytest.mark.oracle(
    "training ste",
    "deepspeed (recorded)",
    "the same losses under ZeRO 1 to 3, to the order of sums",
)
def test_each_stage_takes_the_steps_of_one_process(record):
    """The recorded losses against the plain loop, here and now."""
    how = record["run"]
    story = qlab.story.load()
    options = TrainOptions(
        steps=how["steps"], lr=how["lr"], warmup=how["warmup"], distill=how["distill"],
        seed=how["seed"],
    )  # fmt: skip
    batches = story_batches(story.tokenizer, how["batch"], how["length"], how["seed"])
    rows = train(prepare(story.model, how["scheme"]), batches, options, teacher=story.model)
    assert len(rows) == how["steps"]
    for name, run in record["runs"].items():
        assert run["processes"] == (1 if name == "plain" else 2)
        for row, loss in zip(rows, run["losses"], strict=True):
            # The first loss precedes any step: only sums differ. Later ones follow weights of which
            # AdamW has sent some the other way, where the gradient was nearly zero.
            assert loss == pytest.approx(row.loss, rel=1e-5 if row.step == 1 else 1e-3), name
        assert run["codes differ"] < 0.02, name


def test_each_process_held_what_the_formula_says(record):
    whole = record["runs"]["plain"]["held"][0]
    parameters = whole["weights"] / 4
    assert whole["moments"] == 2 * whole["weights"]
    for name in CONFIGS:
        for held in record["runs"][name]["held"]:
            stage = int(name[4])
            expected = zero_memory(parameters, 2, stage, precision=FLOAT32)
            # Shards are padded to equal lengths; small parameters of stage 3 stay whole.
            assert held["weights"] == pytest.approx(expected.weights, rel=0.02), name
            assert held["moments"] == pytest.approx(expected.optimizer, rel=0.02), name


def test_bad_input(tiny, monkeypatch):
    import torch

    model, _ = tiny
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(QlabError, match="accelerate leaves DeepSpeed out"):
        train_processes(
            prepare(model, "int4-g32"), lambda step: torch.ones(2, 8).long(), TrainOptions(steps=1),
            cpu=True,
        )  # fmt: skip
