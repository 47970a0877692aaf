"""The recorded runs reach what the project claims of them, and are those of the script."""

import csv
import json
from dataclasses import asdict
from importlib import resources

import numpy as np
import pytest

from tools.train_results import LOGS, RECORD, RUNS, SCHEMES, SEEDS
from tools.weights import weights_hash

RUNS_OF = {run.name: run for run in RUNS}
# Share of what rounding to nearest loses that training must win back.
TARGETS = {4: 0.70, 3: 0.80, 2: 0.95}


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def perplexity(record, name):
    return record["runs"][name]["perplexity"]


def test_each_run_is_one_of_the_script(record):
    assert len(RUNS_OF) == len(RUNS)  # names are unique
    for name, run in record["runs"].items():
        assert run["config"] == asdict(RUNS_OF[name]), name
        assert run["perplexity"] > 1
    assert set(record["about"]["versions"]) >= {"torch", "transformers", "python", "qlab"}
    assert record["about"]["schemes"] == {str(b): w for b, w in SCHEMES.items()}
    assert resources.files("qlab").joinpath("records", "training.json").is_file()


def test_the_record_is_of_these_weights(record):
    assert record["about"]["weights"] == weights_hash(), "run tools/train_results.py --fresh"


def test_each_training_has_its_log(record):
    for name, run in record["runs"].items():
        if not run["config"]["steps"]:
            continue
        with (LOGS / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == run["config"]["steps"]
        losses = np.array([float(row["loss"]) for row in rows])
        assert np.isfinite(losses).all()


@pytest.mark.parametrize("bits", sorted(TARGETS))
def test_training_recovers_what_is_claimed(record, bits):
    full, rtn = perplexity(record, "none-32"), perplexity(record, f"rtn-{bits}")
    for seed in SEEDS:
        ours = perplexity(record, f"qaf-{bits}-kl-ste-{seed}")
        assert (rtn - ours) / (rtn - full) >= TARGETS[bits], f"seed {seed}: {ours}"
        if bits < 4:
            assert ours < perplexity(record, f"gptq-{bits}")


def test_ternary_weights_come_back_from_nothing(record):
    """Rounded, the model is worse than equal probabilities; trained, it is a storyteller again."""
    full, rtn = perplexity(record, "none-32"), perplexity(record, "rtn-1")
    trained = [perplexity(record, f"qaf-1-kl-absmean-{seed}") for seed in SEEDS]
    assert rtn > 4096 and max(trained) < 2 * full
    # Not far from two bits: the fourth level and the zero point gain little in so few steps.
    two_bits = [perplexity(record, f"qaf-2-kl-ste-{seed}") for seed in SEEDS]
    assert 1 < np.mean(trained) / np.mean(two_bits) < 1.25
