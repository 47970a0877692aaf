"""ROUGE and BLEU: how many words two texts share.

Both are computed by packages that papers use: rouge-score and sacrebleu.
Chapter: The case study, first telling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlab.errors import QlabError


@dataclass(frozen=True)
class Overlap:
    """Attributes:
    rouge1, rouge2, rougeL: mean F-measure over the texts, 0 to 1 (with stemming).
    bleu: corpus BLEU, 0 to 100.
    """

    rouge1: float
    rouge2: float
    rougeL: float
    bleu: float


def overlap(predictions: Sequence[str], references: Sequence[str]) -> Overlap:
    """Compare predictions with references, text by text.

    Raises: QlabError if the lists are empty or differ in length.
    """
    from rouge_score import rouge_scorer
    from sacrebleu.metrics import BLEU

    if not predictions or len(predictions) != len(references):
        raise QlabError(f"{len(predictions)} predictions for {len(references)} references")
    names = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(list(names), use_stemmer=True)
    pairs = zip(references, predictions, strict=True)
    scores = [scorer.score(reference, prediction) for reference, prediction in pairs]
    mean = {n: sum(s[n].fmeasure for s in scores) / len(scores) for n in names}
    bleu = BLEU(effective_order=True).corpus_score(list(predictions), [list(references)]).score
    return Overlap(mean["rouge1"], mean["rouge2"], mean["rougeL"], bleu)
