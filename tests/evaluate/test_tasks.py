"""Questions about stories of the world, and their answers, beside lm-eval's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.errors import QlabError
from qlab.evaluate.harness import run_harness
from qlab.evaluate.tasks import (
    CHOICES,
    KINDS,
    Question,
    answer_questions,
    by_kind,
    judge,
    make_questions,
)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
def test_a_question_has_one_right_answer_that_its_story_tells(seed, kind):
    (question,) = make_questions(1, seed, [kind])
    assert question.kind == kind and question.steps == (2 if kind in ("finder", "gone") else 1)
    assert len(set(question.choices)) == CHOICES and 0 <= question.answer < CHOICES
    assert not question.context.endswith(" ")
    right = question.choices[question.answer]
    text = question.context.lower()
    if kind == "where":  # told in other words, such as "near the toy shop"
        told = [c for c in question.choices if c.split("the ")[-1].removeprefix("old ") in text]
        assert told == [right]
    elif kind in ("what", "found", "promised", "felt"):
        assert [c for c in question.choices if c.lower() in text] == [right]
    elif kind != "gone":  # the difference of two numbers need not be told
        assert right.lower() in text


def test_two_numbers_make_the_third():
    numbers = "zero one two three four five six seven eight nine ten".split()
    for question in make_questions(12, 5, ["gone"]):
        gone = numbers.index(question.choices[question.answer])
        said = [i for i, word in enumerate(numbers) if word in question.context.lower().split()]
        text = question.context.lower()
        whole = [i for i, word in enumerate(numbers) if word in text]
        assert gone >= 1 and any(a - b == gone for a in whole for b in whole), (said, question)


def test_the_same_seed_the_same_questions_and_one_a_story():
    some, more = make_questions(24, 3), make_questions(40, 3)
    assert some == more[:24] and some != make_questions(24, 4)
    assert len({q.context for q in more}) == 40
    counts = [len(found) for found in by_kind(more).values()]
    assert len(counts) == len(KINDS) and max(counts) - min(counts) <= 1
    # The right answer stands anywhere, or a model could learn its place.
    assert {q.answer for q in more} == set(range(CHOICES))


def test_test_stories_are_not_training_stories():
    trained = {q.context for q in make_questions(40, 3, split="train")}
    assert not trained & {q.context for q in make_questions(40, 3)}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": 0}, "0 questions"),
        ({"count": 1, "kinds": ["whom"]}, "no kind of question 'whom'"),
        ({"count": 1, "kinds": []}, "no kind of question"),
        ({"count": 1, "split": "all"}, "no split 'all'"),
    ],
)
def test_bad_requests_are_refused(given, words):
    with pytest.raises(QlabError, match=words):
        make_questions(**given)


def small_questions(seed=0):
    """In the words of the tiny model's tokenizer, with endings of one and of many tokens."""
    rng = np.random.default_rng(seed)
    words = "once upon a time the fox and moon".split()
    made = []
    for i in range(6):
        context = " ".join(rng.choice(words, 4 + 5 * i))
        choices = []
        while len(choices) < CHOICES:
            choice = " ".join(rng.choice(words, rng.integers(1, 4)))
            if choice not in choices:
                choices.append(choice)
        made.append(Question("who", 1, context, tuple(choices), i % CHOICES))
    return made


def plain_nats(model, tokenizer, question):
    """Each choice by itself, without a cache."""
    found = []
    for choice in question.choices:
        start = tokenizer(question.context)["input_ids"]
        ids = tokenizer(f"{question.context} {choice}")["input_ids"]
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).double()
        found.append(sum(float(log_p[i - 1, ids[i]]) for i in range(len(start), len(ids))))
    return found


def test_a_shared_context_changes_nothing(tiny):
    model, tokenizer = tiny
    questions = small_questions()
    for question, answer in zip(
        questions, answer_questions(model, tokenizer, questions), strict=True
    ):
        # float32 logits of a model two layers deep; sums of at most a dozen tokens.
        assert answer.nats == pytest.approx(plain_nats(model, tokenizer, question), abs=1e-3)
        assert answer.picked == int(np.argmax(answer.nats))


@settings(max_examples=60, deadline=None)
@given(
    nats=st.lists(st.floats(-50, -0.01), min_size=4, max_size=4),
    lengths=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    answer=st.integers(0, 3),
)
def test_the_pick_is_the_likeliest(nats, lengths, answer):
    found = judge(Question("who", 1, "x", tuple("a" * n for n in lengths), answer), nats)
    assert nats[found.picked] == max(nats) and found.right == (found.picked == answer)
    rates = [x / n for x, n in zip(nats, lengths, strict=True)]
    assert rates[found.picked_by_length] == max(rates)


def test_a_question_beyond_the_context_is_refused(tiny):
    model, tokenizer = tiny
    long = Question("who", 1, "the fox and the moon " * 300, ("a", "b", "c", "d"), 0)
    with pytest.raises(QlabError, match="512 tokens"):
        answer_questions(model, tokenizer, [long])


def agree(model, tokenizer, questions):
    """Ours and lm-eval's: the same log-likelihoods, picks and accuracies."""
    ours = answer_questions(model, tokenizer, questions)
    theirs = run_harness(model, tokenizer, questions)
    for a, b in zip(ours, theirs.answers, strict=True):
        # float32 sums in another order (a batch of whole rows against a cache): 1e-3 nats of
        # sums of up to some 30 nats.
        np.testing.assert_allclose(a.nats, b.nats, atol=2e-3)
        ranked = sorted(a.nats)
        assert a.picked == b.picked or ranked[-1] - ranked[-2] < 4e-3
    n = len(questions)
    if [a.picked for a in ours] == [b.picked for b in theirs.answers]:
        share = sum(a.right for a in ours) / n
        assert theirs.accuracy == pytest.approx(share)
        assert theirs.stderr == pytest.approx((share * (1 - share) / (n - 1)) ** 0.5)
    if [a.picked_by_length for a in ours] == [b.picked_by_length for b in theirs.answers]:
        assert theirs.accuracy_by_length == pytest.approx(sum(a.right_by_length for a in ours) / n)


@pytest.mark.oracle("evaluate accuracy", "lm-eval", "equal picks; log-likelihoods to 2e-3 nats")
def test_lm_eval_on_a_tiny_model(tiny):
    agree(*tiny, small_questions())


@pytest.mark.oracle("evaluate accuracy", "lm-eval", "equal picks; log-likelihoods to 2e-3 nats")
def test_lm_eval_on_the_quantized_storyteller():
    story = qlab.story.load()
    small, _ = qlab.quantize_model(story.model, "rtn", "int4-channel")
    agree(small, story.tokenizer, make_questions(8, 2))


def test_lm_eval_writes_nothing(tiny, capfd):
    run_harness(*tiny, small_questions()[:2])
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_no_questions(tiny):
    with pytest.raises(QlabError, match="no questions"):
        run_harness(*tiny, [])
