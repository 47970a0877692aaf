"""The weights in training are what their README says."""

import re
from pathlib import Path

import pytest
import torch

import qlab
from qlab.evaluate.study import continue_greedily, split_opening
from qlab.story.detours import before_circle
from qlab.story.settings import read_settings
from qlab.story.world import split_sentences

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tools" / "checkpoint"


@pytest.fixture(scope="module")
def waiting():
    return qlab.story.load(FOLDER / "model")


def test_its_perplexity_is_what_its_readme_says(waiting):
    shipped = qlab.story.load()
    texts = shipped.validation()
    before, now = (qlab.perplexity(s.model, s.tokenizer, texts) for s in (shipped, waiting))
    assert now < 1.05 * before
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"perplexity {now:.1f} on the validation stories (shipped: {before:.1f})" in said


def test_it_repeats_itself_less_than_the_shipped_weights(waiting):
    """Given an opening, it goes on for five sentences, and says nothing twice."""
    shipped, circles = qlab.story.load(), {}
    openings = [split_opening(text)[0] for text in shipped.validation()]
    for name, story in (("shipped", shipped), ("waiting", waiting)):
        told = continue_greedily(story.model, story.tokenizer, openings, 140)
        circles[name] = sum(before_circle(text) is not None for text in told)
    assert circles["waiting"] < 0.5 * circles["shipped"]
    assert all(len(split_sentences(text)) >= 5 for text in told)
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    found = re.search(r"after (\d+) of the (\d+) openings .* \(shipped: (\d+)\)", said)
    after, of, before = map(int, found.groups())
    assert of == len(openings)
    # Sums differ in the last digits between machines, and now and then a likeliest piece with them.
    assert circles == pytest.approx({"waiting": after, "shipped": before}, abs=2)


def test_rounding_costs_what_its_readme_says(waiting):
    texts = waiting.validation()
    before = qlab.perplexity(waiting.model, waiting.tokenizer, texts)
    cost = {}
    for bits in (8, 4, 3):
        small, _ = qlab.quantize_model(waiting.model, "rtn", f"int{bits}-channel")
        cost[bits] = 100 * (qlab.perplexity(small, waiting.tokenizer, texts) / before - 1)
    said = (FOLDER / "README.md").read_text(encoding="utf-8")
    costs = re.search(r"costs ([\d.]+) / ([\d.]+) / ([\d.]+) percent at 8 / 4 / 3 bits", said)
    # To the digits that are given; the sums differ in the last ones between machines.
    assert [cost[8], cost[4], cost[3]] == [
        pytest.approx(float(value), abs=within)
        for value, within in zip(costs.groups(), (0.02, 0.1, 0.7), strict=True)
    ]


def test_no_feature_of_its_embeddings_is_far_from_the_others(waiting):
    size = waiting.model.model.embed_tokens.weight.float().square().mean(0).sqrt()
    limit = read_settings(FOLDER / "settings.toml").training.feature_limit
    # A step of training, and the mean of two runs, may leave a feature a little beyond it.
    assert size.max() / size.median() < 1.02 * limit


def test_it_has_the_tokenizer_of_the_shipped_weights(waiting):
    shipped = qlab.story.load()
    assert waiting.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    assert torch.equal(
        torch.tensor(waiting.tokenizer("Once upon a time")["input_ids"]),
        torch.tensor(shipped.tokenizer("Once upon a time")["input_ids"]),
    )
