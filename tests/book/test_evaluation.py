"""What the chapter on measuring says, on input of our own, and the record that it reads."""

import json
import math
import re
from collections import Counter
from importlib import resources

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

import qlab
from qlab.evaluate import overlap
from qlab.evaluate.tasks import answer_questions, make_questions
from tools.record_evaluation import QUESTIONS, SCHEMES, SEED
from tools.weights import weights_hash

sentences = st.lists(st.sampled_from("the fox saw a red kite and Wren ran".split()), min_size=1)


def words_of(text):
    """The chapter's."""
    return re.findall("[a-z0-9]+", text.lower())


def rouge_l(a, b):
    """The chapter's."""
    a, b = words_of(a), words_of(b)
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(row[j], before[j + 1]))
    return 2 * row[-1] / (len(a) + len(b))


def bleu(text, reference):
    """The chapter's."""
    a, b = words_of(text), words_of(reference)
    if not set(a) & set(b):
        return 0.0
    logs, misses = [], 0
    for k in range(1, 5):
        runs, there = (Counter(tuple(x[i : i + k]) for i in range(len(x) - k + 1)) for x in (a, b))
        total, hits = sum(runs.values()), sum((runs & there).values())
        if total == 0:
            break
        misses += hits == 0
        logs.append(math.log((hits or 2.0**-misses) / total))
    return 100 * min(1, math.exp(1 - len(b) / len(a))) * math.exp(sum(logs) / len(logs))


@pytest.mark.oracle("evaluate rouge", "rouge-score", "equal ROUGE-L to 1e-9")
@settings(max_examples=150, deadline=None)
@given(sentences, sentences)
def test_rouge_l_is_rouge_scores(a, b):
    a, b = " ".join(a) + ".", " ".join(b)
    theirs = rouge_scorer.RougeScorer(["rougeL"]).score(b, a)["rougeL"].fmeasure
    assert rouge_l(a, b) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.oracle("evaluate bleu", "sacrebleu", "equal BLEU to 1e-6")
@settings(max_examples=150, deadline=None)
@given(sentences, sentences)
def test_bleu_is_sacrebleus(a, b):
    a, b = (" ".join(words_of(" ".join(x))) for x in (a, b))
    theirs = BLEU(effective_order=True, tokenize="none").corpus_score([a], [[b]]).score
    assert bleu(a, b) == pytest.approx(theirs, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("the fox saw a red kite and ran".split()), min_size=2, max_size=20))
def test_exchanged_names_cost_no_word(rest):
    """Who does what can be turned around without a change of ROUGE-1."""
    text = " ".join(["Wren", *rest, "Nibbles"])
    other = " ".join(["Nibbles", *rest, "Wren"])
    assert overlap([other], [text]).rouge1 == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.3, 3))
def test_a_temperature_moves_kl_and_not_the_first_choice(seed, temperature):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(seed)) * 3
    p = torch.log_softmax(logits, -1)
    q = torch.log_softmax(logits / temperature, -1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert float(kl.min()) > -1e-5  # never negative but for float32
    assert bool((p.argmax(-1) == q.argmax(-1)).all())
    if abs(temperature - 1) > 0.05:
        assert float(kl.mean()) > 1e-4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 8), min_size=2, max_size=20))
def test_the_mean_of_perplexities_is_never_below(losses):
    assert np.mean(np.exp(losses)) >= np.exp(np.mean(losses)) * (1 - 1e-12)


def test_in_turn_removes_the_drift_whatever_the_noise():
    for seed in range(1, 5):
        rng = np.random.default_rng(seed)
        blocks, turns = [], []
        for _ in range(100):
            t = 1 + 0.2 * np.arange(200) / 200
            t += rng.exponential(2.0, 200) * (rng.random(200) < 0.1)
            blocks.append(np.median(t[100:]) / np.median(t[:100]))
            turns.append(np.median(t[1::2]) / np.median(t[::2]))
        # A drift of a fifth: the halves lie a tenth apart.
        assert np.mean(blocks) == pytest.approx(1.15 / 1.05, abs=0.02)
        assert np.mean(turns) == pytest.approx(1, abs=0.005)


@pytest.fixture(scope="module")
def record():
    file = resources.files("qlab").joinpath("records", "evaluation.json")
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_record_is_of_these_weights(record):
    assert record["about"]["weights"] == weights_hash(), "run tools/record_evaluation.py"
    assert record["about"]["questions"] == QUESTIONS and record["about"]["seed"] == SEED
    assert set(record["rows"]) == set(SCHEMES)


def test_the_record_can_be_made_again(record):
    """A few of its questions and one of its texts, at four bits."""
    story = qlab.story.load()
    small, _ = qlab.quantize_model(story.model, "rtn", "int4-channel")
    row = record["rows"]["int4-channel"]
    some = make_questions(6, SEED)
    answers = answer_questions(small, story.tokenizer, some)
    for digit, answer in zip(row["picked"][:6], answers, strict=True):
        best, second = sorted(answer.nats)[:-3:-1]
        assert answer.picked == int(digit) or best - second < 0.02, "run tools/record_evaluation.py"
    (score,) = qlab.evaluate.score_texts(small, story.tokenizer, story.validation()[:1])
    nll, tokens = row["scores"][0]
    assert tokens == score.tokens and nll == pytest.approx(score.nll, rel=1e-3)
