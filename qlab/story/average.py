"""Average the weights of several runs that began with the same weights.

Runs that part from one point and read other rows end at different points around the same valley.
Their mean often lies deeper in it than any of them (model soups, Wortsman et al. 2022,
arXiv:2203.05482), and it costs what one model costs. On a machine with many processors the runs go
side by side, and going on from the mean is how training is spread over machines that seldom talk
(local SGD, Stich 2019, arXiv:1805.09767).

Chapter: Meet the storyteller.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qlab.errors import QlabError
from qlab.files import new_folder


def average(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write a run whose weights are the mean of the runs' newest checkpoints.

    The state of the optimizers, the step and the log are those of the first run, so that ``qlab
    story train --out OUT`` goes on from the mean; it writes the model, too.

    Args:
        runs: folders of ``qlab story train``; all must be of one model and one tokenizer.
        out: the folder of the new run; must not exist.

    Raises: QlabError for a folder without checkpoint, or for runs of different models.
    """
    if not runs:
        raise QlabError("nothing to average: name one run or more")
    states = [_state(Path(run)) for run in runs]
    weights = [{k: v for k, v in s.items() if k.startswith("model.")} for s in states]
    shapes = {k: v.shape for k, v in weights[0].items()}
    vocabulary = (Path(runs[0]) / "tokenizer" / "tokenizer.json").read_bytes()
    for run, found in zip(runs, weights, strict=True):
        if {k: v.shape for k, v in found.items()} != shapes:
            raise QlabError(f"{run} is a run of another model than {runs[0]}: average like runs")
        if (Path(run) / "tokenizer" / "tokenizer.json").read_bytes() != vocabulary:
            raise QlabError(f"{run} has another tokenizer than {runs[0]}: average like runs")
    mean = {k: torch.stack([w[k].float() for w in weights]).mean(0) for k in shapes}
    first = Path(runs[0])
    with new_folder(out) as fresh:
        shutil.copytree(first / "tokenizer", fresh / "tokenizer")
        (fresh / "checkpoint").mkdir()
        save_file({**states[0], **mean}, fresh / "checkpoint" / "state.safetensors")
        shutil.copy(first / "checkpoint" / "progress.json", fresh / "checkpoint")
    return Path(out)


def _state(run: Path) -> dict[str, torch.Tensor]:
    file = run / "checkpoint" / "state.safetensors"
    for needed in (file, file.with_name("progress.json"), run / "tokenizer" / "tokenizer.json"):
        if not needed.is_file():
            raise QlabError(
                f"no {needed.relative_to(run)}: no checkpoint in {run} to average; "
                "name folders that 'qlab story train' wrote"
            )
    return load_file(file)
