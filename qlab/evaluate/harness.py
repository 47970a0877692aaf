"""The same questions, asked by EleutherAI's lm-evaluation-harness (lm-eval), without a network.

lm-eval is what most published accuracies of language models were measured with. It knows a task by
its configuration: where the documents come from, what the model reads, and which endings it has to
choose from. Its own tasks fetch their documents from the hub; this one gets them from a list.

Source: Gao et al., "The language model evaluation harness", doi:10.5281/zenodo.10256836;
``docs/task_guide.md`` of lm-eval 0.4 for the words of the configuration.

Chapter: Measuring a quantized model.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qlab.errors import QlabError
from qlab.evaluate.tasks import Answer, Question, judge

TASK = "story_world"


@dataclass(frozen=True)
class HarnessResult:
    """What lm-eval reports.

    Attributes:
        accuracy: its ``acc``, share of questions whose likeliest choice is right.
        accuracy_by_length: its ``acc_norm``: log-likelihoods are divided by characters.
        stderr: its ``acc_stderr``, sqrt(acc (1 - acc) / (n - 1)).
        answers: of each question, from lm-eval's log-likelihoods.
    """

    accuracy: float
    accuracy_by_length: float
    stderr: float
    answers: list[Answer]


def task_config(questions: Sequence[Question]) -> dict[str, Any]:
    """The questions as a task of lm-eval; in a YAML file it would have the same keys."""
    from datasets import Dataset  # lm-eval brings it

    documents = [
        {"context": q.context, "choices": list(q.choices), "answer": q.answer} for q in questions
    ]
    return {
        "task": TASK,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1.0},
    }


def run_harness(
    model: Any, tokenizer: Any, questions: Sequence[Question], batch: int = 8
) -> HarnessResult:
    """Ask the questions through lm-eval's HFLM.

    Args:
        model: a transformers causal language model, quantized by qlab or not.
        tokenizer: its tokenizer.
        questions: from ``make_questions``, or your own.
        batch: rows computed at a time.

    Raises: QlabError without lm-eval, or without a question.
    """
    if not questions:
        raise QlabError("no questions: make some with qlab.evaluate.tasks.make_questions")
    with _quiet():
        try:
            from lm_eval.api.task import ConfigurableTask
            from lm_eval.evaluator import evaluate
            from lm_eval.models.huggingface import HFLM
        except ImportError:
            raise QlabError("lm-eval is not installed: pip install 'qlab[eval]'") from None
        from qlab.nn import dequantize_model

        plain = dequantize_model(model)
        lm = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=batch, device="cpu")
        task = ConfigurableTask(config=task_config(questions))
        # ``evaluate`` rather than ``simple_evaluate``: the latter also indexes lm-eval's
        # thousands of tasks, seeds every generator and describes the machine.
        found = evaluate(lm=lm, task_dict={TASK: task})
    samples = sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
    results = found["results"][TASK]
    answers = [
        judge(question, [nats for nats, _ in sample["filtered_resps"]])
        for question, sample in zip(questions, samples, strict=True)
    ]
    return HarnessResult(
        accuracy=float(results["acc,none"]),
        accuracy_by_length=float(results["acc_norm,none"]),
        stderr=float(results["acc_stderr,none"]),
        answers=answers,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warning that the model is an object: here that is the purpose."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
