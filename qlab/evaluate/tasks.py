"""Multiple choice about stories whose facts are known, and how a language model answers it.

A question is a story of the world and the first words of one sentence more; the choices end that
sentence. A language model is not asked anything: it says how likely each ending is, and the
likeliest is its answer. Each question is about a story of its own, so answers are independent.

Questions of two steps need two facts at once: who found the kite, and what kind of character that
is; how many there were, and how many were left.

Source: Brown et al. 2020, "Language models are few-shot learners", arXiv:2005.14165, section 2.4,
for the choice by likelihood, and its division by the length of the ending.

Chapter: Measuring a quantized model.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlab.errors import QlabError
from qlab.story.world import Facts, WorldStory, stream
from qlab.story.worldparts import words as w

CHOICES = 4


@dataclass(frozen=True)
class Question:
    """A question of multiple choice.

    Attributes:
        kind: one of ``KINDS``.
        steps: facts that the answer needs, 1 or 2.
        context: the story and the beginning of a sentence, without a space at the end.
        choices: endings of the sentence, without a space before them; ``CHOICES`` of them.
        answer: index of the right one.
    """

    kind: str
    steps: int
    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def story(self) -> str:
        """The first words of the story, to tell questions apart."""
        return self.context[:60]


@dataclass(frozen=True)
class Answer:
    """What a model makes of a question.

    Attributes:
        nats: log-likelihood of each choice after the context, in nats.
        picked: the likeliest choice.
        picked_by_length: the same, when each log-likelihood is divided by its characters.
        right: whether ``picked`` is the answer.
        right_by_length: whether ``picked_by_length`` is.
    """

    nats: tuple[float, ...]
    picked: int
    picked_by_length: int
    right: bool
    right_by_length: bool


# What a kind makes of a story: (beginning of the sentence, right ending, endings to draw the wrong
# ones from: first those that must be among them). None where the story does not say.
_Made = tuple[str, str, list[str], list[str]]
_Maker = Callable[[WorldStory], "_Made | None"]


def _who(story: WorldStory) -> _Made:
    f = story.facts
    return "And that is the story of", f.hero, _names(f, f.hero), w.NAMES


def _where(story: WorldStory) -> _Made | None:
    f = story.facts
    if f.place is None:
        return None
    # Not where the hero goes to, nor any other place that the story names ("near the mill").
    spots = [phrase for place, (phrase, _) in w.PLACES.items() if place not in story.text]
    return "It all began", w.PLACES[f.place][0], [], spots


def _what(story: WorldStory) -> _Made | None:
    f = story.facts
    if f.object is None or f.attribute is None:
        return None
    return f"{f.hero} never forgot the {f.attribute}", f.object, [], w.OBJECTS


def _found(story: WorldStory) -> _Made | None:
    f = story.facts
    if f.found_at is None or f.object is None:
        return None
    spots = [spot for _, there in w.PLACES.values() for spot in there]
    return f"The {f.object} had been", f.found_at, [], spots


def _promised(story: WorldStory) -> _Made | None:
    f = story.facts
    if f.promise is None:
        return None
    return f"{f.hero} had promised to", f.promise, [], sorted(w.PROMISES)


def _felt(story: WorldStory) -> _Made | None:
    f = story.facts
    if f.feeling_after is None:
        return None
    return f"That is why {f.hero} felt", f.feeling_after, [], w.FEELINGS_UP


def _finder(story: WorldStory) -> _Made | None:
    """Two facts: who found it, and what kind of character that is."""
    f = story.facts
    kinds = {f.hero: f.hero_kind} | {name: kind for name, kind, _ in f.others}
    if f.found_by is None or f.object is None or f.found_by not in kinds:
        return None
    right = kinds[f.found_by]
    present = sorted({k for k in kinds.values() if k != right})
    return f"The one who found the {f.object} was the", right, present, [*w.ANIMALS, *w.CHILDREN]


def _gone(story: WorldStory) -> _Made | None:
    """Two facts: how many there were, and how many were left."""
    f = story.facts
    if f.number is None or f.number_left is None:
        return None
    whole, left = w.NUMBERS.index(f.number), w.NUMBERS.index(f.number_left)
    present = [f.number] + [f.number_left] * (left != whole - left)
    return "The number that was gone was", w.NUMBERS[whole - left], present, w.NUMBERS[1:]


# Kind -> (facts that it needs, what makes it).
_MAKERS: dict[str, tuple[int, _Maker]] = {
    "who": (1, _who),
    "where": (1, _where),
    "what": (1, _what),
    "found": (1, _found),
    "promised": (1, _promised),
    "felt": (1, _felt),
    "finder": (2, _finder),
    "gone": (2, _gone),
}
KINDS = tuple(_MAKERS)


def make_questions(
    count: int, seed: int = 0, kinds: Sequence[str] = KINDS, split: str = "test"
) -> list[Question]:
    """Questions about stories of the world, one a story, as many of each kind as can be.

    Args:
        count: how many.
        seed: the same seed always gives the same questions, and the first of more.
        kinds: names from ``KINDS``.
        split: of the world's stories; a model was trained on ``train``.

    Raises: QlabError for an unknown kind, no kind, or a count below 1.
    """
    if count < 1:
        raise QlabError(f"{count} questions: ask for one at least")
    if not kinds or (unknown := [k for k in kinds if k not in _MAKERS]):
        said = f"no kind of question '{unknown[0]}'" if kinds else "no kind of question"
        raise QlabError(f"{said}: choose from {', '.join(KINDS)}")
    rng = random.Random(f"qlab questions {seed}")
    asked: Counter[str] = Counter()
    found: list[Question] = []
    for story in stream(seed, split):
        # The kind that was asked least; a story that does not fit waits for nobody.
        rarest = min(asked[k] for k in kinds)
        kind = rng.choice([k for k in kinds if asked[k] == rarest])
        question = _question(story, kind, rng)
        if question is not None:
            asked[kind] += 1
            found.append(question)
        if len(found) == count:
            break
    return found


def answer_questions(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[Answer]:
    """The log-likelihood of every choice, and the choice that it makes.

    The context is computed once; the choices, a batch of ``CHOICES`` rows, go on from its keys and
    values. Tokens are those of the whole text from where the context's own end, as lm-eval has it.

    Args:
        model: a transformers causal language model (quantized or not).
        tokenizer: its tokenizer.
        questions: from ``make_questions``, or your own.

    Raises: QlabError for a question that does not fit into the model's context.
    """
    import torch

    from qlab.nn import dequantize_model

    plain = dequantize_model(model)
    limit = int(getattr(model.config, "max_position_embeddings", 2048))
    answers = []
    with torch.no_grad():
        for question in questions:
            start = tokenizer(question.context)["input_ids"]
            ends = [
                tokenizer(f"{question.context} {choice}")["input_ids"][len(start) :]
                for choice in question.choices
            ]
            if len(start) + max(map(len, ends)) > limit:
                raise QlabError(
                    f"the question about '{question.story} ...' has more than the {limit} tokens "
                    "of the model's context: ask about a shorter story"
                )
            answers.append(judge(question, _nats(plain, start, ends)))
    return answers


def judge(question: Question, nats: Sequence[float]) -> Answer:
    """The answer that these log-likelihoods of the choices make."""
    # Characters of the choice, without the space before it: what lm-eval divides by.
    per_character = [x / len(c) for x, c in zip(nats, question.choices, strict=True)]
    picked, by_length = int(np.argmax(nats)), int(np.argmax(per_character))
    return Answer(
        nats=tuple(float(x) for x in nats),
        picked=picked,
        picked_by_length=by_length,
        right=picked == question.answer,
        right_by_length=by_length == question.answer,
    )


def _nats(model: Any, start: list[int], ends: list[list[int]]) -> list[float]:
    """log p of each ending after the start, in nats."""
    import torch

    longest = max(map(len, ends))
    ids = torch.zeros(len(ends), longest, dtype=torch.long)
    for i, end in enumerate(ends):
        ids[i, : len(end)] = torch.tensor(end)
    out = model(input_ids=torch.tensor([start]), use_cache=True, logits_to_keep=1)
    logits = out.logits.expand(len(ends), -1, -1)  # (choices, 1, vocabulary): the first token
    if longest > 1:
        cache = out.past_key_values
        cache.batch_repeat_interleave(len(ends))
        rest = model(input_ids=ids[:, :-1], past_key_values=cache).logits
        logits = torch.cat([logits, rest], 1)
    log_p = torch.log_softmax(logits.float(), -1).gather(2, ids[..., None])[..., 0].double()
    return [float(log_p[i, : len(end)].sum()) for i, end in enumerate(ends)]


def _question(story: WorldStory, kind: str, rng: random.Random) -> Question | None:
    steps, make = _MAKERS[kind]
    made = make(story)
    if made is None:
        return None
    beginning, right, near, far = made
    near = [c for c in dict.fromkeys(near) if c != right]
    wrong = rng.sample(near, min(len(near), CHOICES - 1))
    # A wrong ending that the story tells too would be half right: only the near ones may be in it.
    fresh = [c for c in dict.fromkeys(far) if c not in (right, *near) and c not in story.text]
    wrong += rng.sample(fresh, CHOICES - 1 - len(wrong))
    choices = rng.sample([right, *wrong], CHOICES)
    context = f"{story.text} {beginning}"
    return Question(kind, steps, context, tuple(choices), choices.index(right))


def _names(facts: Facts, but: str) -> list[str]:
    return [name for name, _, _ in facts.others if name != but]


def by_kind(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Indices of the questions of each kind, in the order of ``KINDS``."""
    found: dict[str, list[int]] = {}
    for kind in KINDS:
        if of_kind := [i for i, q in enumerate(questions) if q.kind == kind]:
            found[kind] = of_kind
    return found
