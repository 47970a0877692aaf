"""The mean of runs: what it is, that training goes on from it, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlab.cli import main
from qlab.errors import QlabError
from qlab.story.average import average

STATE = "checkpoint/state.safetensors"


@pytest.fixture
def runs(tmp_path):
    """Two folders as ``qlab story train`` leaves them, with weights of two small tensors."""
    made = []
    for i in range(2):
        run = tmp_path / f"run{i}"
        (run / "checkpoint").mkdir(parents=True)
        (run / "tokenizer").mkdir()
        (run / "tokenizer" / "tokenizer.json").write_text("{}")
        g = torch.Generator().manual_seed(i)
        save_file(
            {
                "model.a": torch.randn(3, 4, generator=g),
                "model.b": torch.randn(5, generator=g),
                "optimizer.0.0.exp_avg": torch.full((2,), float(i)),
            },
            run / STATE,
        )
        (run / "checkpoint" / "progress.json").write_text(json.dumps({"step": i, "rows": []}))
        made.append(run)
    return made


def test_weights_are_the_mean_and_the_rest_is_the_first_runs(runs, tmp_path):
    out = average(runs, tmp_path / "mean")
    one, two, found = (load_file(run / STATE) for run in (*runs, out))
    for name in ("model.a", "model.b"):
        torch.testing.assert_close(found[name], (one[name] + two[name]) / 2)
    assert torch.equal(found["optimizer.0.0.exp_avg"], one["optimizer.0.0.exp_avg"])
    assert json.loads((out / "checkpoint" / "progress.json").read_text())["step"] == 0
    assert (out / "tokenizer" / "tokenizer.json").exists()


def test_the_mean_of_one_is_itself_and_order_does_not_matter(runs, tmp_path):
    same = load_file(average(runs[:1], tmp_path / "same") / STATE)
    assert torch.equal(same["model.a"], load_file(runs[0] / STATE)["model.a"])
    a = load_file(average(runs, tmp_path / "ab") / STATE)["model.a"]
    b = load_file(average(runs[::-1], tmp_path / "ba") / STATE)["model.a"]
    torch.testing.assert_close(a, b)


def test_unlike_runs_are_refused_and_nothing_is_written(runs, tmp_path, capsys):
    out = tmp_path / "mean"
    state = load_file(runs[1] / STATE)
    save_file({**state, "model.b": torch.zeros(6)}, runs[1] / STATE)
    with pytest.raises(QlabError, match="another model"):
        average(runs, out)
    save_file(state, runs[1] / STATE)
    (runs[1] / "tokenizer" / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(QlabError, match="another tokenizer"):
        average(runs, out)
    shutil.rmtree(runs[1] / "checkpoint")
    assert main(["story", "average", *map(str, runs), "--out", str(out)]) == 2
    assert f"no checkpoint in {runs[1]}" in capsys.readouterr().err
    (runs[0] / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(QlabError, match=r"no tokenizer/tokenizer\.json"):
        average(runs[:1], out)
    with pytest.raises(QlabError, match="nothing to average"):
        average([], out)
    assert not out.exists()


def test_an_existing_folder_is_left_alone(runs, tmp_path):
    (tmp_path / "mean").mkdir()
    with pytest.raises(QlabError, match="exists already"):
        average(runs, tmp_path / "mean")
